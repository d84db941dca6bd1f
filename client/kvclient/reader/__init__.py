"""Stored chunks and the tables that some are coded with, as numpy arrays: for engines that have no torch.

Written from `proto/FORMAT.md` and independent of the worker's codecs: the tests hold the two against each other.
"""
