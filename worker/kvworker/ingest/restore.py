"""Give back to the store what it lost: passages that had to be computed because no chunk of theirs was stored."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

from kvstore.core.api import StoreAPI
from kvstore.core.errors import KVError
from kvworker.ingest.ingest import Ingestor
from kvworker.ingest.passages import Passage

_log = logging.getLogger(__name__)


class Restorer:
    """Computes and stores passages again on one thread, behind the answers; at most `most` wait, more are left for next time."""

    def __init__(self, ingestor: Ingestor, most: int) -> None:
        self._ingestor, self._most = ingestor, most
        self._waiting: set[tuple[str, bytes]] = set()
        self._lock = threading.Lock()
        self._is_closed = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="restore")

    def ask(self, tenant: str, store: StoreAPI, passage: Passage) -> bool:
        """Queue a passage; return False when it is queued already, the queue is full or the restorer is closed."""
        name = (tenant, passage.content)
        with self._lock:
            if self._is_closed or name in self._waiting or len(self._waiting) >= self._most:
                return False
            self._waiting.add(name)
            self._pool.submit(self._restore, tenant, store, passage)
        return True

    def close(self) -> None:
        """Finish the passage at hand and forget the others."""
        with self._lock:
            self._is_closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _restore(self, tenant: str, store: StoreAPI, passage: Passage) -> None:
        try:
            self._ingestor.restore(tenant, store, passage)
        except KVError as error:
            _log.warning("passage %s of %s was not stored again: %s", passage.content.hex()[:16], passage.source, error)
        except Exception:
            _log.exception("passage %s of %s was not stored again", passage.content.hex()[:16], passage.source)
        finally:
            with self._lock:
                self._waiting.discard((tenant, passage.content))
