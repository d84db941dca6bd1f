"""The asyncio client; `kvclient/_sync` is written from it."""
