"""Documents for the tests of catalogs, and what is asked of a catalog again and again."""

from __future__ import annotations

from kvworker.ingest.catalog import Catalog
from kvworker.ingest.passages import Passage, read_window
from kvworker.ingest.windows import Window

NAMESPACE = bytes(range(32))


def document(source: str, n_passages: int = 3, first_token: int = 0) -> list[Passage]:
    """Return the passages of a document."""
    tokens = [(256, first_token + i, 2**32 - 1) for i in range(n_passages)]
    return read_window(NAMESPACE, source, [f"text {i}" for i in range(n_passages)], tokens, Window(0, 0, n_passages))


def store(catalog: Catalog, passages: list[Passage], tenant: str = "alice", read_as: str = "document") -> list[Passage]:
    """Add passages and say that their source consists of them."""
    catalog.add(tenant, passages[0].source, {read_as: passages})
    return passages


def alone(passages: list[Passage]) -> list[Passage]:
    """Return the same passages read by themselves."""
    return [p.alone(NAMESPACE) for p in passages]


def read_as(catalog: Catalog, name: str, asked: str = "auto") -> list[str]:
    """Return the readings of a passage that may be used."""
    ((_, readings),) = catalog.readings("alice", [name], asked)
    return [r.read_as for r in readings]
