"""A network between two processes that can be cut, slowed, blocked or made to lie while connections run over it, and mended again."""

from __future__ import annotations

import asyncio
import random
import threading
from contextlib import suppress
from enum import Enum

_RECEIVE_NBYTES = 64 << 10
_SLOW_S = 0.03  # for each piece of at most that size: 2 MB/s
_FLIPPED_SHARE = 0.2  # of pieces


class Harm(Enum):
    """What a network does."""

    CUT = "cut"  # connections break, and nobody gets through
    SLOW = "slow"
    HOLE = "black hole"  # what is sent is neither delivered nor refused; it comes when the network is mended
    ONE_WAY = "one way"  # what the server says is held back; it hears everything
    FLIP = "flip"  # bits are others than they were


class Wire:
    """Listens on a port of this machine and passes everything on to another one; its harm may change at any time.

    What a black hole held back comes when it is gone, as with packets that are sent again; nothing is lost in the middle of a connection
    but by a cut.
    """

    def __init__(self, target_port: int, seed: int = 0) -> None:
        self._target_port, self._rng = target_port, random.Random(seed)
        self._harm: Harm | None = None
        self._links: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wire", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.port = int(self._server.sockets[0].getsockname()[1])

    def harm(self, harm: Harm) -> None:
        """Do harm from now on."""
        asyncio.run_coroutine_threadsafe(self._set(harm), self._loop).result(10)

    def mend(self) -> None:
        """Do none from now on."""
        asyncio.run_coroutine_threadsafe(self._set(None), self._loop).result(10)

    def close(self) -> None:
        """Break everything and stop listening."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        self._mended = asyncio.Event()
        return await asyncio.start_server(self._link, "127.0.0.1", 0)

    async def _set(self, harm: Harm | None) -> None:
        self._harm = harm
        if harm is Harm.CUT:
            self._break()
        (self._mended.clear if harm else self._mended.set)()

    async def _end(self) -> None:
        self._server.close()
        self._harm = Harm.CUT
        self._mended.set()
        self._break()
        while self._links:
            await asyncio.sleep(0.005)

    def _break(self) -> None:
        for writer in self._links:
            writer.transport.abort()

    async def _link(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        """Pass on both ways until either side ends."""
        far_out: asyncio.StreamWriter | None = None
        self._links.add(near_out)
        try:
            with suppress(OSError):
                if self._harm is not Harm.CUT:
                    far_in, far_out = await asyncio.open_connection("127.0.0.1", self._target_port)
                    self._links.add(far_out)
                    ways = self._pass(near_in, far_out, (Harm.HOLE,)), self._pass(far_in, near_out, (Harm.HOLE, Harm.ONE_WAY))
                    await asyncio.gather(*ways)
        finally:
            for writer in (near_out, far_out):
                if writer is not None:
                    writer.transport.abort()
                    self._links.discard(writer)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, held_by: tuple[Harm, ...]) -> None:
        """Pass on one way; the end of it is the end of both."""
        with suppress(OSError):
            while data := await source.read(_RECEIVE_NBYTES):
                while self._harm in held_by:
                    await self._mended.wait()
                if self._harm is Harm.SLOW:
                    await asyncio.sleep(_SLOW_S)
                if self._harm is Harm.FLIP and self._rng.random() < _FLIPPED_SHARE:
                    data = self._flipped(data)
                sink.write(data)
                await sink.drain()
        sink.transport.abort()

    def _flipped(self, data: bytes) -> bytes:
        """Return the bytes with one bit changed."""
        at = self._rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << self._rng.randrange(8)]) + data[at + 1 :]
