"""What the names in questions stand for, as far as answers said so."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from kvclient.records import PassageReport
from kvworker.route.choose import PassageKey

DEVICE = "device"  # the tier of what a worker has at hand
_MOST_NAMES = 65_536
_GUESSED_NBYTES = 1 << 18  # of a passage that nobody asked for yet; the same for every worker, so it decides nothing
_FIRST_BYTES_PER_TOKEN = 1024.0
_WEIGHT = 0.1  # of one observation


class Names:
    """Remembers identity and size of passages by the names that questions give them. Thread-safe, bounded.

    A name that came to stand for another passage, because its document was edited, costs one question that is sent to a worker that does
    not have it, and nothing else: what a name stands for is decided by the worker.
    """

    def __init__(self, most_names: int = _MOST_NAMES) -> None:
        self._known: OrderedDict[PassageKey, tuple[str, int]] = OrderedDict()
        self._most_names, self._bytes_per_token = most_names, _FIRST_BYTES_PER_TOKEN
        self._lock = Lock()

    def wanted(self, tenant: str, names: Sequence[str]) -> dict[PassageKey, int]:
        """Return the passages that names stand for, with their bytes; a name that is not known stands for itself."""
        with self._lock:
            found = [self._known.get((tenant, name), (name, _GUESSED_NBYTES)) for name in names]
        return {(tenant, passage): nbytes for passage, nbytes in found}

    def learn(self, tenant: str, names: Sequence[str], rows: Sequence[PassageReport]) -> dict[PassageKey, int]:
        """Take in what a report says of a question's passages, which are in the question's order; return them with their bytes."""
        with self._lock:
            for name, row in zip(names, rows, strict=False):
                self._known[tenant, name] = row.passage.id, self._nbytes(row)
                self._known.move_to_end((tenant, name))
            while len(self._known) > self._most_names:
                self._known.popitem(last=False)
        return self.wanted(tenant, names)

    def _nbytes(self, row: PassageReport) -> int:
        """Return the bytes of a passage: those that were loaded, else what its tokens take as a rule."""
        n_tokens = max(1, row.passage.n_tokens)
        if row.nbytes and row.tier != DEVICE:
            self._bytes_per_token += _WEIGHT * (row.nbytes / n_tokens - self._bytes_per_token)
        return int(row.nbytes or n_tokens * self._bytes_per_token)
