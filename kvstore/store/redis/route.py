"""Which Redis server has a key: the only one, or the node of a cluster that serves the key's slot."""

from __future__ import annotations

import sys
import threading
from binascii import crc_hqx
from typing import Protocol

from kvstore.core.errors import DeadlineError, TierUnavailableError
from kvstore.store.breaker import Breaker
from kvstore.store.redis.dial import Address, Dialer
from kvstore.store.redis.node import Node
from kvstore.store.redis.resp import Refusal

N_SLOTS = 16384


class Route(Protocol):
    """Finds the node of a key. Thread-safe."""

    def node_of(self, name: bytes) -> Node:
        """Return the node that has a key; raises TierUnavailableError or DeadlineError when nobody tells, or none has it."""

    def nodes(self) -> list[Node]:
        """Return all nodes that have keys."""

    @property
    def n_resting(self) -> int:
        """How many nodes are not asked for a while since they did not answer."""

    def redirect(self, node: Node, refusal: Refusal) -> Node:
        """Return the node that a node points to; raises the refusal's error when it does not point anywhere."""

    def close(self) -> None:
        """Close all connections. Safe to call again."""


class OneServer:
    """All keys are on one server."""

    def __init__(self, dialer: Dialer) -> None:
        # Never opens: a BreakerTier stands around the tier, and one breaker is enough.
        self._node = Node(dialer, dialer.seed, Breaker(f"redis at {dialer.seed}", failures=sys.maxsize))

    def node_of(self, name: bytes) -> Node:
        return self._node

    def nodes(self) -> list[Node]:
        return [self._node]

    @property
    def n_resting(self) -> int:
        return 0

    def redirect(self, node: Node, refusal: Refusal) -> Node:
        raise refusal.error(f"redis at {node.address}")

    def close(self) -> None:
        self._node.close()


class Cluster:
    """Keys are spread over the nodes by 16,384 slots; each node has a breaker of its own.

    Who serves which slot is asked when it is first needed, and again behind every redirection and every node that failed: a replica may
    have taken its place.
    """

    def __init__(self, dialer: Dialer, cool_down_s: float = 5.0) -> None:
        self._dialer = dialer
        self._cool_down_s = cool_down_s
        self._lock = threading.Lock()
        self._nodes: dict[Address, Node] = {}
        self._slots: list[Node | None] = []
        self._is_stale = True

    def node_of(self, name: bytes) -> Node:
        self._refresh()
        slot = slot_of(name)
        node = self._slots[slot]
        if node is None:
            raise TierUnavailableError(f"redis: no node of the cluster serves slot {slot}")
        return node

    def nodes(self) -> list[Node]:
        self._refresh()
        return list(dict.fromkeys(node for node in self._slots if node is not None))

    @property
    def n_resting(self) -> int:
        return sum(node.breaker.is_open for node in list(self._nodes.values()))

    def redirect(self, node: Node, refusal: Refusal) -> Node:
        words = refusal.text.split(" ")
        if words[0] not in ("MOVED", "ASK") or len(words) != 3:
            raise refusal.error(f"redis at {node.address}")
        host, _, port = words[2].rpartition(":")
        if not port.isdecimal():
            raise refusal.error(f"redis at {node.address}")
        self._is_stale = True
        with self._lock:
            return self._node(Address(host or node.address.host, int(port)))

    def close(self) -> None:
        with self._lock:
            for node in self._nodes.values():
                node.close()
            self._nodes, self._slots, self._is_stale = {}, [], True

    def _refresh(self) -> None:
        """Ask for the slots if they may have changed; what was known stays when nobody answers."""
        if not self._is_stale:
            return
        with self._lock:
            if not self._is_stale:
                return
            slots = self._ask_anybody()
            self._slots = slots
            self._is_stale = False
            known = {node.address for node in slots if node is not None} | {self._dialer.seed}
            for address in [address for address in self._nodes if address not in known]:
                self._nodes.pop(address).close()

    def _ask_anybody(self) -> list[Node | None]:
        """Return the node of every slot, as the first node says that answers; those that answered last are asked first."""
        candidates = list({**self._nodes, self._dialer.seed: self._node(self._dialer.seed)}.values())
        errors: list[TierUnavailableError | DeadlineError] = []
        for node in sorted(candidates, key=lambda node: node.breaker.is_open):
            if node.breaker.is_open and self._slots:
                break
            try:
                return self._ask(node)
            except (TierUnavailableError, DeadlineError) as error:
                errors.append(error)
        if self._slots:
            return self._slots
        raise errors[0]

    def _ask(self, node: Node) -> list[Node | None]:
        """Return the node of every slot as one node says."""
        rows = node.ask_control(lambda control: control.execute_command("CLUSTER", "SLOTS"))
        slots: list[Node | None] = [None] * N_SLOTS
        try:
            for first, last, (host, port, *_), *_ in rows:  # type: ignore[attr-defined]
                if not 0 <= first <= last < N_SLOTS:
                    raise ValueError(f"slots {first} to {last}")
                owner = self._node(Address((host or b"").decode() or node.address.host, int(port)))
                slots[first : last + 1] = [owner] * (last + 1 - first)
        except (ValueError, TypeError, AttributeError) as error:
            raise TierUnavailableError(f"redis at {node.address}: its CLUSTER SLOTS cannot be read: {error}") from error
        return slots

    def _node(self, address: Address) -> Node:
        """Return the one object for an address. Called with the lock held."""
        if address not in self._nodes:
            breaker = _Stirring(self, f"redis at {address}", cool_down_s=self._cool_down_s)
            self._nodes[address] = Node(self._dialer, address, breaker)
        return self._nodes[address]

    def stir(self) -> None:
        """Have the slots asked for again before they are next needed."""
        self._is_stale = True


class _Stirring(Breaker):
    """A breaker of a cluster's node: its failures also put the cluster's picture of itself in doubt."""

    def __init__(self, cluster: Cluster, name: str, cool_down_s: float) -> None:
        super().__init__(name, cool_down_s=cool_down_s)
        self._cluster = cluster

    def fail(self) -> None:
        super().fail()
        self._cluster.stir()


def slot_of(name: bytes) -> int:
    """Return the slot of a key without braces, as all of ours are."""
    return crc_hqx(name, 0) % N_SLOTS
