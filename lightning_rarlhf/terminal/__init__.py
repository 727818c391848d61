"""What people read on a terminal: one line, no control characters, no secrets."""
