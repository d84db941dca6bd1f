"""Other systems' clients, measured beside ours on one machine and in one run."""
