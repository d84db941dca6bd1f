"""Rendezvous hashing: which of several servers has a key, so that whoever knows their names agrees without asking anybody.

Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998): every server scores every key, and the highest score has
it. A server that joins or leaves moves only the keys that it wins or had, one n-th of all; the others stay where they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import xxhash


def ranked(key: bytes, servers: Sequence[str]) -> list[str]:
    """Return the servers by their score for a key, the highest first; the order in which they are given does not matter.

    The score is the xxh3-64 (seed 0) of the server's name in UTF-8, a zero byte and the key; equal scores go by name.
    """
    return sorted(servers, key=lambda server: (-_score(server, key), server))


def _score(server: str, key: bytes) -> int:
    """Return how much a server wants a key."""
    return xxhash.xxh3_64_intdigest(server.encode() + b"\0" + key)
