"""Benchmarks by name: `larder bench NAME` runs the class whose name is its file's."""
