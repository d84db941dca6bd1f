"""Real processes of the command `larder`: started, found by the address that they print, stopped, killed."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO

from kvstore.core.tokens import read_tokens

LARDER = [sys.executable, "-m", "kvclient.cli.main"]
START_S = 300.0  # nearly all of it imports, on a machine that has other things to do; a process that dies is noticed at once
STOP_S = 120.0
_LISTENS = re.compile(r"listens on (\S+)(?:.*console at (\S+)/console)?")


class Running(Protocol):
    """What is asked of a process; subprocess.Popen does it."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        ...

    def wait(self, timeout: float) -> int:
        """Wait for the end and return the exit status; raises TimeoutExpired."""
        ...

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        ...

    def kill(self) -> None:
        """Send SIGKILL."""
        ...


@dataclass
class Process:
    """A running server of ours; `pages` is where its metrics and console are."""

    popen: Running
    address: str
    home: Path
    command: tuple[str, ...]
    pages: str = ""

    @property
    def token(self) -> str:
        """The token of the default tenant."""
        return read_tokens(data_dir(self.home) / "tokens")[0].token

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        return log_of(self.home, self.command).read_text()

    def client_env(self) -> dict[str, str]:
        """Return the environment of a client of this server."""
        return {**environment(self.home), "LARDER_ADDRESS": self.address, "LARDER_TOKEN": self.token}


def data_dir(home: Path) -> Path:
    """Return where processes keep their files unless told otherwise."""
    return home / "larder"


def environment(home: Path) -> dict[str, str]:
    """Return an environment in which nothing of this user is seen."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LARDER_")}
    return {**kept, "XDG_STATE_HOME": str(home), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}


def log_of(home: Path, command: tuple[str, ...]) -> Path:
    """Return where a command's stderr goes."""
    return home / f"{command[0]}.log"


def start(home: Path, *command: str, variables: Mapping[str, str] | None = None) -> Process:
    """Start a server and return it once it listens; fail with its log after START_S."""
    with log_of(home, command).open("a") as log:
        popen = subprocess.Popen(
            [*LARDER, *command], stdout=subprocess.PIPE, stderr=log, text=True, env={**environment(home), **(variables or {})}
        )
    assert popen.stdout is not None
    return listening(popen, popen.stdout, home, command)


def listening(running: Running, stdout: TextIO, home: Path, command: tuple[str, ...]) -> Process:
    """Return a server that was just started once it says where it listens; fail with its log after START_S."""
    found: queue.Queue[tuple[str, str]] = queue.Queue()
    threading.Thread(target=_read, args=(stdout, found), daemon=True).start()
    try:
        address, pages = found.get(timeout=START_S)
    except queue.Empty:
        address, pages = "", ""
    if not address:
        running.kill()
        running.wait(STOP_S)
        raise AssertionError(f"larder {' '.join(command)} does not listen:\n{log_of(home, command).read_text()}")
    return Process(running, address, home, command, pages)


def _read(stdout: TextIO, found: queue.Queue[tuple[str, str]]) -> None:
    """Put the addresses that a server prints, then read on so that it never waits for us; put nothing found as empty."""
    with stdout as lines:
        for line in lines:
            if match := _LISTENS.search(line):
                found.put((match[1], match[2] or ""))
    found.put(("", ""))


def stop(process: Process, by: signal.Signals = signal.SIGTERM) -> int:
    """Send one signal and return the exit status; a server that does not end in STOP_S is killed, which is a failure."""
    if process.popen.poll() is None:
        process.popen.send_signal(by)
    try:
        return process.popen.wait(STOP_S)
    except subprocess.TimeoutExpired:
        kill(process)
        raise AssertionError(f"larder {' '.join(process.command)} did not end:\n{process.log}") from None


def kill(process: Process) -> None:
    """Send SIGKILL and wait for the end."""
    process.popen.kill()
    process.popen.wait(STOP_S)


def run(process: Process, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a verb against a server and return what became of it."""
    return subprocess.run([*LARDER, *arguments], env=process.client_env(), capture_output=True, text=True, timeout=timeout_s, check=False)
