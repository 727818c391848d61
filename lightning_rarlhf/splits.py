"""How the rows of the splits are numbered, so that a prompt's number alone tells which split it is of."""

FIRST_INDEX = {"train": 1_000_000_000, "val": 2_000_000_000, "test": 3_000_000_000}
"""number of each split's first row; lower ones are of a file of the user's own (`predict`)"""
