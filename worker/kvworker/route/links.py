"""Channels to workers, and whether they answer."""

from __future__ import annotations

import threading
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from typing import Any

import grpc

from kvclient.channel import ClientTLS, opener
from kvclient.health import METHOD, REQUEST, as_bytes, check_serving
from kvclient.status import to_error
from kvstore.core.errors import DeadlineError, KVError
from kvworker.route.board import Board, Place


class Links:
    """One channel per address, opened when it is first used. Thread-safe; a file for TLS that is missing raises ConfigError here."""

    def __init__(self, tls: ClientTLS | None) -> None:
        self._open = opener(tls)
        self._channels: dict[str, grpc.Channel] = {}
        self._lock = threading.Lock()  # held while a channel is made, which connects nothing yet

    def to(self, address: str) -> grpc.Channel:
        """Return the channel to an address."""
        with self._lock:
            if address not in self._channels:
                self._channels[address] = self._open(address)
            return self._channels[address]

    def keep(self, addresses: Collection[str]) -> None:
        """Close the channels to all other addresses."""
        with self._lock:
            gone = [self._channels.pop(address) for address in list(self._channels) if address not in addresses]
        for channel in gone:
            channel.close()


class Watch:
    """Asks every worker of a board now and then whether it serves; a daemon thread from `start` to `stop`.

    Parameters
    ----------
    every_s : float
        Pause between two rounds.
    silence_s : float
        A worker that does not answer for so long is given up, though its connection stands.
    """

    def __init__(self, board: Board, links: Links, every_s: float = 0.5, silence_s: float = 5.0) -> None:
        self._board, self._links, self._every_s, self._silence_s = board, links, every_s, silence_s
        self._asked: set[Place] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="worker-watch", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and close all channels."""
        self._stopped.set()
        self._thread.join()
        self._links.keep(())

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            places = self._board.places()
            self._links.keep({address for _, address in places})
            for place in set(places) - self._asked:
                with suppress(ValueError):  # the channel was closed meanwhile
                    self._ask(place)

    def _ask(self, place: Place) -> None:
        """Begin one health check."""
        check = self._links.to(place[1]).unary_unary(METHOD, as_bytes, as_bytes)
        answer: Any = check.future(REQUEST, timeout=self._silence_s)
        self._asked.add(place)
        answer.add_done_callback(partial(self._hear, place))

    def _hear(self, place: Place, answer: Any) -> None:
        """Take in what a health check said."""
        self._asked.discard(place)
        try:
            check_serving(answer.result(), place[1])
            self._board.alive(place)
        except grpc.FutureCancelledError:
            return  # the channel was closed: the worker left
        except grpc.RpcError as error:
            silent = isinstance(to_error(error), DeadlineError)
            (self._board.give_up if silent else self._board.lost)(place)
        except KVError:
            self._board.lost(place)
