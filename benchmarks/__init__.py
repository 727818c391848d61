"""Measurements and campaigns: not imported by the library."""
