"""Both clients behind one blocking interface, so that one test body holds them to the same behaviour."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

from kvclient import AsyncLarder, Larder


class Threads:
    """Drives the blocking client."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.larder = Larder(*args, **options)

    def do(self, subject: Any, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the client, or of something that it handed out."""
        return getattr(subject, method)(*args, **options)

    def each(self, iterable: Any) -> Iterator[Any]:
        """Iterate."""
        yield from iterable

    def close(self) -> None:
        """Close the client."""
        self.larder.close()


class Asyncio:
    """Drives the asyncio client in an event loop of its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self.larder = AsyncLarder(*args, **options)

    def do(self, subject: Any, method: str, *args: Any, **options: Any) -> Any:
        """Call a method within the loop and wait for it where it is a coroutine."""

        async def call() -> Any:
            value = getattr(subject, method)(*args, **options)
            return await value if inspect.isawaitable(value) else value

        return self._runner.run(call())

    def each(self, iterable: Any) -> Iterator[Any]:
        """Iterate, one step of the loop per item."""
        iterator = aiter(iterable)
        while True:
            try:
                yield self.do(iterator, "__anext__")
            except StopAsyncIteration:
                return

    def close(self) -> None:
        """Close client and loop."""
        self.do(self.larder, "close")
        self._runner.close()


Twin = Threads | Asyncio
