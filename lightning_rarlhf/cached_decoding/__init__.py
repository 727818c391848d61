"""Decoding over cached keys and values, a token a row at a time."""
