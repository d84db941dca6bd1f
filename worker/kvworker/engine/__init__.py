"""Model runtimes: the Engine interface, the Hugging Face engine, and what it is made of."""
