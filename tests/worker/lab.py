"""A worker over a tiny model and a real store in memory, and stores that fail in every way a store can fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvclient.records import Report, Token
from kvstore.core.api import BlobReader, Hit, PutNote, PutReceipt, StoreAPI
from kvstore.core.blob import Buffer, BufferedBlob
from kvstore.core.errors import DeadlineError
from kvstore.core.key import ChunkKey
from kvstore.core.manifest import Manifest
from kvstore.server.service import StoreService
from kvworker.answer.answer import Question
from kvworker.bench.passing import Passing
from kvworker.engine.sampling import Sampling
from kvworker.ingest.ingest import Ingested
from kvworker.serve.runtime import Caller, Worker
from tests.engine.prompts import Tiny

TEXTS = ["Aldermoor exports salt.", "It trusts Corwick since long ago.", "Corwick mends every pump."]
QUESTION = " What?"
N_ANSWER = 6


class Wrapped(Passing):
    """A store that passes every call on and notes some; tests override what they want to go wrong."""

    def __init__(self, store: StoreAPI) -> None:
        super().__init__(store)
        self.gets: list[ChunkKey] = []
        self.puts: list[PutNote] = []

    def get(self, key: ChunkKey, timeout_s: float | None = None) -> BlobReader | None:
        """Pass on and count."""
        self.gets.append(key)
        return super().get(key, timeout_s)

    def put(self, blob: Buffer, note: PutNote) -> PutReceipt:
        """Pass on and count."""
        self.puts.append(note)
        return super().put(blob, note)


class FailingLookup(Wrapped):
    """Raises from lookup."""

    def __init__(self, store: StoreAPI, error: Exception) -> None:
        super().__init__(store)
        self.error = error

    def lookup(self, keys: Sequence[ChunkKey], lease_s: float = 0.0, timeout_s: float | None = None) -> list[Hit]:
        """Raise."""
        raise self.error


class SlowlyFailingLookup(Wrapped):
    """Takes a while to fail in lookup, until it is mended."""

    def __init__(self, store: StoreAPI, seconds: float) -> None:
        super().__init__(store)
        self.seconds, self.lookups, self.is_mended = seconds, 0, False

    def lookup(self, keys: Sequence[ChunkKey], lease_s: float = 0.0, timeout_s: float | None = None) -> list[Hit]:
        """Wait and raise."""
        self.lookups += 1
        if self.is_mended:
            return super().lookup(keys, lease_s, timeout_s)
        threading.Event().wait(self.seconds)
        raise DeadlineError("too late")


class FailingGet(Wrapped):
    """Raises from get, for all keys or for chosen ones."""

    def __init__(self, store: StoreAPI, error: Exception, only: Sequence[ChunkKey] = ()) -> None:
        super().__init__(store)
        self.error, self.only = error, only

    def get(self, key: ChunkKey, timeout_s: float | None = None) -> BlobReader | None:
        """Raise, or pass on."""
        if not self.only or key in self.only:
            raise self.error
        return super().get(key, timeout_s)


class LosingGet(Wrapped):
    """Finds in lookup what it has lost by the time of get."""

    def get(self, key: ChunkKey, timeout_s: float | None = None) -> BlobReader | None:
        """Miss."""
        return None


class HungGet(Wrapped):
    """Never answers a get until the test opens the gate; a get then misses."""

    def __init__(self, store: StoreAPI) -> None:
        super().__init__(store)
        self.gate = threading.Event()

    def get(self, key: ChunkKey, timeout_s: float | None = None) -> BlobReader | None:
        """Hang."""
        self.gets.append(key)
        assert self.gate.wait(30)
        return None


@dataclass
class TamperedReader:
    """A reader whose parts go through a function of the test, which may raise; counts closings."""

    reader: BlobReader
    change: Callable[[int, memoryview], memoryview]
    closed: int = 0

    @property
    def manifest(self) -> Manifest:
        """Pass on."""
        return self.reader.manifest

    @property
    def nbytes(self) -> int:
        """Pass on."""
        return self.reader.nbytes

    @property
    def tier(self) -> str:
        """Pass on."""
        return self.reader.tier

    def part(self, index: int) -> memoryview:
        """Return what the test makes of the part."""
        return self.change(index, self.reader.part(index))

    def close(self) -> None:
        """Pass on."""
        self.closed += 1
        self.reader.close()


class TamperedParts(Wrapped):
    """Hands out parts that went through a function of the test."""

    def __init__(self, store: StoreAPI, change: Callable[[int, memoryview], memoryview]) -> None:
        super().__init__(store)
        self.change = change
        self.readers: list[TamperedReader] = []

    def get(self, key: ChunkKey, timeout_s: float | None = None) -> BlobReader | None:
        """Open a tampered reader."""
        reader = super().get(key, timeout_s)
        if reader is None:
            return None
        self.readers.append(TamperedReader(reader, self.change))
        return self.readers[-1]


class LyingGet(Wrapped):
    """Answers every get with one blob, whatever was asked for."""

    def __init__(self, store: StoreAPI, blob: Buffer) -> None:
        super().__init__(store)
        self.blob = blob

    def get(self, key: ChunkKey, timeout_s: float | None = None) -> BlobReader | None:
        """Return the one blob."""
        return BufferedBlob(self.blob, "lies")


class Refusing(Wrapped):
    """Raises from every put."""

    def __init__(self, store: StoreAPI, error: Exception) -> None:
        super().__init__(store)
        self.error = error

    def put(self, blob: Buffer, note: PutNote) -> PutReceipt:
        """Raise."""
        self.puts.append(note)
        raise self.error


@dataclass
class Answer:
    """An answer that was read to its end."""

    token_ids: list[int]
    text: str
    report: Report


@dataclass
class Lab:
    """A worker, a store, one tenant, and the plain model that the answers are compared with."""

    tiny: Tiny
    worker: Worker
    service: StoreService
    caller: Caller
    contexts: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def caller_with(self, store: StoreAPI) -> Caller:
        """Return the tenant with another store."""
        return Caller(self.caller.tenant, store)

    def ingest(self, source: str = "a.txt", texts: Sequence[str] = TEXTS, read_as: str = "document") -> list[Ingested]:
        """Store the passages of a source."""
        return list(self.worker.ingest(self.caller, source, texts, read_as))

    def names(self, source: str = "a.txt", texts: Sequence[str] = TEXTS) -> tuple[str, ...]:
        """Ingest and return the passages' ids."""
        return tuple(done.passage.content.hex() for done in self.ingest(source, texts))

    def ask(
        self,
        names: Sequence[str],
        store: StoreAPI | None = None,
        policy: str = "all",
        planner: str = "always_load",
        text: str = QUESTION,
        sampling: Sampling = Sampling(max_new_tokens=N_ANSWER),  # noqa: B008 (frozen)
        read_as: str = "auto",
        ttft_target_s: float = 0.0,
    ) -> Answer:
        """Ask and read the answer to its end."""
        caller = self.caller if store is None else self.caller_with(store)
        events = list(self.worker.ask(caller, Question(tuple(names), text, sampling, policy, planner, read_as, ttft_target_s)))
        report = events.pop()
        assert isinstance(report, Report)
        tokens = [event for event in events if isinstance(event, Token)]
        assert len(tokens) == len(events)
        return Answer([token.id for token in tokens], "".join(token.text for token in tokens), report)

    def keys(self, names: Sequence[str]) -> list[ChunkKey]:
        """Return the chunk keys of passages."""
        return [key for _, key in self.worker.resolve(self.caller, names)]

    def prompt_ids(self, names: Sequence[str], text: str = QUESTION) -> list[int]:
        """Return the tokens of a prompt."""
        passages = [passage for passage, _ in self.worker.resolve(self.caller, names)]
        return [*(token for passage in passages for token in passage.token_ids), *self.tiny.engine.encode(text)]

    def expected(self, names: Sequence[str], text: str = QUESTION) -> list[int]:
        """Return what a plain full prefill generates greedily."""
        return self.tiny.greedy(self.prompt_ids(names, text), N_ANSWER)
