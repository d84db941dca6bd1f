# Written by client/generate_sync.py from kvclient/_async/__init__.py; change that file and run it again.
"""The threads client; `kvclient/_sync` is written from it."""
