"""How a Lightning Trainer is set up: strategies, precision, length, memory."""
