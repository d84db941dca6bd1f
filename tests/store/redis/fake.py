"""A server that speaks as a test says: hostile, slow, or of two minds."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Mapping
from types import TracebackType

Words = list[bytes]


class FakeRedis:
    """Answers each command with what `script` returns: bytes, or None to hang up; a context manager.

    A script may wait on `stopped`, which is set at the end, to say nothing.
    """

    def __init__(self, script: Callable[[Words], bytes | None]) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.stopped = threading.Event()
        self.port = int(self._listener.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self.port}"
        self.open_connections = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> FakeRedis:
        self._threads[0].start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stopped.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=10)
        self._listener.close()

    def _accept(self) -> None:
        while not self.stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self.open_connections += 1
        try:
            with connection, connection.makefile("rb") as commands:
                while (line := commands.readline()) and not self.stopped.is_set():
                    words = [commands.read(int(commands.readline()[1:]) + 2)[:-2] for _ in range(int(line[1:]))]
                    reply = self._script(words)
                    if reply is None:
                        return
                    connection.sendall(reply)
        except OSError:
            return  # the client closed first
        finally:
            with self._lock:
                self.open_connections -= 1


def bulk(value: bytes) -> bytes:
    """Return a value as a reply."""
    return b"$%d\r\n%s\r\n" % (len(value), value)


def read_reply(stored: Mapping[bytes, bytes], words: Words) -> bytes:
    """Return the reply to a GETRANGE, as Redis gives it: empty for a key that is not there."""
    value, first, last = stored.get(words[1], b""), int(words[2]), int(words[3])
    return bulk(value[first : last + 1])
