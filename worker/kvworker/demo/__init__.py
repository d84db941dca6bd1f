"""The demo and the examples it reads."""
