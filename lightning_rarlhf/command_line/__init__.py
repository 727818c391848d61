"""The command line, and its errors in one line each."""
