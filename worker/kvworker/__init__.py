"""The worker: reads passages with a model, stores their KV, and answers questions over what is stored."""

import os

# How long OpenMP's threads spin while they wait for each other, read when torch is loaded. The default takes the cores for its own: on two
# cores that others used as well, a prefill of 2,048 tokens took 4 to 10 times as long with it; on idle cores both take equally long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
