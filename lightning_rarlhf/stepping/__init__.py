"""Optimizer steps by hand: gradients in parts, guards, and what a step logs."""
