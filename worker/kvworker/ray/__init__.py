"""A pool of workers on a Ray cluster; only this package imports Ray."""
