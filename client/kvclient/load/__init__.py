"""Make load on a worker: when requests come, what they ask, what came of them."""
