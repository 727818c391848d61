"""What every module of the library can: evaluate, keep records, be guarded, load its networks."""
