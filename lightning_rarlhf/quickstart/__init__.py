"""The method on a synthetic task: no download, no GPU, three minutes (``python -m lightning_rarlhf.quickstart``)."""
