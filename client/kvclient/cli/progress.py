"""Progress for people: on stderr, only where it is a terminal, and only where rich is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of `total` steps; yields a function that advances it by a number of steps."""
    if not sys.stderr.isatty():
        yield lambda n: None
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ModuleNotFoundError:
        yield lambda n: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda n: bar.advance(task, n)


@contextmanager
def waiting(label: str) -> Iterator[Callable[[], None]]:
    """Show that something is going on until the block ends or the yielded function is called."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        yield lambda: None
        return
    with Console(stderr=True).status(label) as status:
        yield status.stop
