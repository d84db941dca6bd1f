"""Servers of ours that are forked off a process that has imported what they need: a start takes what the server does, not its imports.

What runs is the command itself, in a process of its own that can be stopped, killed and measured like any other.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from tests.e2e.processes import Process, environment, listening, log_of
from tests.threads import name_threads

IMPORTED = (
    "kvclient.cli.main",
    "kvstore.server.cli",
    "kvworker.serve.commands",
    "kvworker.serve.processes",
    "kvworker.engine.engine_hf",
    "kvworker.methods",
    "transformers.models.llama.modeling_llama",
)
_forking = threading.Lock()
_context = multiprocessing.get_context("forkserver")


class Forked:
    """A forked server; it can do what is asked of a Popen here."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Wait for the end and return the exit status; raises TimeoutExpired."""
        self._process.join(timeout)
        if (status := self.poll()) is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return status

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self._process.kill()


def fork(home: Path, *command: str, variables: Mapping[str, str] | None = None) -> Process:
    """Do what `start` does, without the imports."""
    ours, theirs = _context.Pipe(duplex=False)
    process = _context.Process(
        target=_run, args=(theirs, log_of(home, command), command, {**environment(home), **(variables or {})}), name=command[0], daemon=True
    )
    with _forking:
        _ensure_imported(home)
        process.start()
    theirs.close()
    stdout = os.fdopen(os.dup(ours.fileno()), "r")
    ours.close()
    return listening(Forked(process), stdout, home, command)


def _ensure_imported(home: Path) -> None:
    """Start the process that imports everything, unless it runs; its environment is that of our servers, for what imports read."""
    _context.set_forkserver_preload(list(IMPORTED))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
            patch.setenv(name, environment(home)[name])
        forkserver.ensure_running()


def _run(stdout: Connection, log: Path, command: tuple[str, ...], variables: Mapping[str, str]) -> None:
    """Become the command `larder`, with its output where the parent reads it."""
    from kvclient.cli.main import main

    os.environ.clear()
    os.environ.update(variables)
    os.dup2(stdout.fileno(), 1)
    stdout.close()
    name_threads()
    with log.open("a") as errors:
        os.dup2(errors.fileno(), 2)
    sys.exit(main(command))
