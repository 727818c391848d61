"""States on disk: written whole or not at all, checked when read, gone on from exactly."""
