"""What stores that serve the same keys learn of each other's invalidations: of two epochs, the larger is the true one.

Epochs only rise, so taking the larger of each makes any two servers agree, in whatever order and however often it is done. Clients carry
them from one server to the other; a proof under the tenant's secret, which only servers know, keeps a client from inventing one.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kvstore.core import canonical
from kvstore.core.api import Scope


@dataclass(frozen=True)
class Epoch:
    """How often a scope was invalidated, and the proof that a store said so."""

    number: int
    proof: bytes


EpochBook = Mapping[Scope, Epoch]


@dataclass(frozen=True)
class EpochAnswer:
    """One server's epochs of one tenant.

    `server` is the server's own name, "" for none; `digest` stands for all of `epochs`, which is None where the caller knew the digest.
    """

    server: str
    digest: bytes
    epochs: EpochBook | None


def prove(secret: bytes, scope: Scope, number: int) -> Epoch:
    """Return an epoch with its proof: HMAC-SHA256 under the tenant's secret over kind, name and number."""
    text = canonical.dumps([scope.kind, scope.value, number])
    return Epoch(number, hmac.digest(secret, b"larder/epoch/1\0" + text, "sha256"))


def is_proven(secret: bytes, scope: Scope, epoch: Epoch) -> bool:
    """Tell whether a store with this tenant's secret made the proof; takes the same time for every proof of 32 B."""
    return hmac.compare_digest(prove(secret, scope, epoch.number).proof, epoch.proof)


def larger(books: Iterable[EpochBook]) -> dict[Scope, Epoch]:
    """Return the larger of each epoch."""
    merged: dict[Scope, Epoch] = {}
    for book in books:
        for scope, epoch in book.items():
            if scope not in merged or merged[scope].number < epoch.number:
                merged[scope] = epoch
    return merged


def behind(book: EpochBook, target: EpochBook) -> dict[Scope, Epoch]:
    """Return the epochs of `target` that `book` has not reached."""
    return {scope: epoch for scope, epoch in target.items() if scope not in book or book[scope].number < epoch.number}
