"""What the client hands out: frozen records of passages, answers and reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvstore.core.key import ChunkKey


@dataclass(frozen=True)
class Passage:
    """One passage of a document: its identity (64 hex digits), document, place from 0, length in tokens and first words."""

    id: str
    source: str
    index: int
    n_tokens: int
    preview: str


@dataclass(frozen=True)
class IngestedPassage:
    """What became of one passage of `n_passages`: `is_computed` is False when its chunk of `nbytes` was stored before.

    `tokens_read` is how many tokens went through the model for it, those of passages that only gave context included.
    """

    passage: Passage
    is_computed: bool
    nbytes: int
    n_passages: int
    tokens_read: int


@dataclass(frozen=True)
class Ingested:
    """A document whose passages are all stored: `n_computed` of them were computed now, which took `tokens_read` tokens.

    `nbytes` is the size of all their chunks together.
    """

    source: str
    passages: tuple[Passage, ...]
    n_computed: int
    nbytes: int
    tokens_read: int

    @property
    def ids(self) -> list[str]:
        """The passages' ids, in the document's order."""
        return [passage.id for passage in self.passages]


@dataclass(frozen=True)
class ResolvedPassage:
    """Where a passage's chunk is found: its key, and the tokens that it was computed from."""

    passage: Passage
    key: ChunkKey
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Token:
    """One token of an answer; its text may be empty while a character is incomplete."""

    id: int
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class PassageReport:
    """What was done for one passage of a question and why: action "load" or "compute", tier, variant, bytes and seconds.

    `read_as` says how a loaded passage had been read, "document" or "alone"; it is empty for one that was computed in the prompt. `reason`
    is why it was computed, in a word: that of the store's miss, or "chosen" by the planner, "sooner" than its load came, "failed" to load,
    "policy" computes all its rows; it is empty for one that was loaded.
    """

    passage: Passage
    action: str
    tier: str
    variant: str
    nbytes: int
    seconds: float
    why: str
    rows_recomputed: int
    read_as: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """How a question was answered.

    `ttft_split_s` splits the time to the first token into lookup, plan, queue, load and prefill, in seconds. `quality` is the declared loss
    of codec and policy, or "unmeasured". `target` says what a target for the first token changed, "" where there was none.
    """

    request_id: str
    passages: tuple[PassageReport, ...]
    planner: str
    policy: str
    ttft_split_s: Mapping[str, float]
    ttft_s: float
    predicted_ttft_s: float
    tokens_loaded: int
    tokens_recomputed: int
    tokens_generated: int
    quality: str
    target: str = ""

    def __str__(self) -> str:
        head = f"first token after {self.ttft_s:.3f} s, {self.tokens_loaded} tokens loaded, {self.tokens_recomputed} recomputed"
        target = [self.target] if self.target else []
        return "\n".join([f"{head} ({self.planner}, {self.policy}; quality {self.quality})", *target, *map(_line, self.passages)])


_READ = {"document": "in its document", "alone": "alone"}


def _line(row: PassageReport) -> str:
    """Return one passage's row of a printed report."""
    where = f"{row.passage.source}#{row.passage.index}"
    read = f", read {_READ[row.read_as]}" if row.read_as in _READ else ""
    return f"  {where}: {row.action} {row.nbytes} B from {row.tier or 'no tier'} in {row.seconds:.4f} s{read}: {row.why}"


@dataclass(frozen=True)
class AnswerExplanation:
    """What was decided for an earlier question: its report, and the decisions one per line."""

    report: Report
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Info:
    """What a worker serves: model, namespace digest in hex, device, defaults, and where its store is (empty: the same address)."""

    model: str
    namespace: str
    device: str
    codec: str
    policy: str
    planner: str
    max_context_tokens: int
    store_address: str
