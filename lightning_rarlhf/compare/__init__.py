"""A whole comparison by one command: `python -m lightning_rarlhf.compare`."""
