"""How much memory a run will need on each device, before it is started: ``python -m lightning_rarlhf.memory``."""
