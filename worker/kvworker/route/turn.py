"""One request at one worker."""

from __future__ import annotations

from typing import Protocol


class Call(Protocol):
    """A call that is under way."""

    def cancel(self) -> object:
        """End it at once."""
        ...


class Turn:
    """A request that a worker was given; whoever gives the worker up, or the request, cancels it. Any thread may.

    Parameters
    ----------
    name, address : str
        The worker, and where it was when it was chosen.
    n_before : int
        Requests that it had then.
    """

    def __init__(self, name: str, address: str, n_before: int) -> None:
        self.name, self.address, self.n_before = name, address, n_before
        self._call: Call | None = None
        self._is_over = False

    @property
    def place(self) -> tuple[str, str]:
        """The worker's name and address."""
        return self.name, self.address

    def attach(self, call: Call) -> None:
        """Say which call it is; it is ended at once if the turn was cancelled before."""
        self._call = call
        if self._is_over:
            call.cancel()

    def cancel(self) -> None:
        """End the call, now or when it begins."""
        self._is_over = True
        if self._call is not None:
            self._call.cancel()
