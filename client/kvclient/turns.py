"""Which of several workers is asked: the one that answered last, until it does not."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence

from kvclient.address import check_address
from kvclient.retry import Retry

_TRIES = 10


class Turns:
    """Addresses in a circle. Thread-safe.

    Parameters
    ----------
    addresses : sequence of str
        One or more.
    start : int
        Index of the first to be asked.
    """

    def __init__(self, addresses: Sequence[str], start: int = 0) -> None:
        self._addresses, self._at = tuple(addresses), start
        self._lock = threading.Lock()

    @classmethod
    def among(cls, text: str) -> Turns:
        """Read "host:port" or several with commas between them; clients begin at different ones, so that all are used.

        Anything else raises ConfigError.
        """
        addresses = [part.strip() for part in text.split(",")]
        for address in addresses:
            check_address(address, otherwise=", or several with commas between them")
        return cls(addresses, random.randrange(len(addresses)))

    def retry(self) -> Retry:
        """Return how to try where the caller doesn't say: of several, until one that was restarted is connected to again, some 3 s."""
        return Retry() if len(self._addresses) == 1 else Retry(_TRIES)

    @property
    def current(self) -> str:
        """The address to ask."""
        return self._addresses[self._at]

    def circle(self) -> tuple[str, ...]:
        """Return all addresses, beginning with the one to ask."""
        at = self._at
        return self._addresses[at:] + self._addresses[:at]

    def failed(self, address: str) -> None:
        """Note that an address did not answer: if it is still the current one, it is the next one's turn."""
        with self._lock:
            if address == self.current:
                self._at = (self._at + 1) % len(self._addresses)

    def heard(self, address: str) -> None:
        """Note that an address answered where the current one was late: it is its turn."""
        with self._lock:
            self._at = self._addresses.index(address)
