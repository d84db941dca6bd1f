"""Every supported family, with windows and without: what comes back from a store answers like a plain full prefill of the library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from kvclient.records import Report, Token
from kvstore.planners.cost import CostModel
from kvstore.server.config import DiskConfig, MemoryConfig, StoreConfig, TiersConfig
from kvstore.server.opening import open_store
from kvworker.answer.answer import Question
from kvworker.answer.policy import parse_policy
from kvworker.engine.engine import Segment
from kvworker.engine.sampling import Sampling
from kvworker.serve import runtime
from kvworker.serve.runtime import Caller, Worker
from kvworker.settings import WorkerSettings
from tests.engine.prompts import Tiny, load_tiny
from tests.engine.tiny_models import TINY_MODELS
from tests.worker.waiting import until

TEXTS = ["Aldermoor exports salt and wool.", "It trusts Corwick.", "Corwick mends every pump of the old harbour."]
QUESTION = " What does Aldermoor export?"
TOLERANCE = 1e-4  # fp32 logits of magnitude 5 over a few hundred summands; observed at most 2e-5
N_ANSWER = 8


@dataclass
class Served:
    """A tiny model behind a worker and a store."""

    tiny: Tiny
    worker: Worker
    caller: Caller

    def prompt_ids(self, names: Sequence[str]) -> list[int]:
        """Return the tokens of a prompt."""
        passages = [passage for passage, _ in self.worker.resolve(self.caller, names)]
        return [*(token for p in passages for token in p.token_ids), *self.tiny.engine.encode(QUESTION)]

    def logits(self, names: Sequence[str], policy: str) -> torch.Tensor:
        """Return the logits behind a prompt whose passages all come from the store."""
        loader = self.worker._loader
        resolved = self.worker.resolve(self.caller, names)
        sources = [loader.hold(self.caller.tenant, key, len(p.token_ids)) for p, key in resolved]
        loader.lane(self.caller.store).add(sources)
        until(lambda: all(source.has_arrived for source in sources))
        segments = [Segment(p.token_ids, source) for (p, _), source in zip(resolved, sources, strict=True)]
        segments.append(Segment(tuple(self.tiny.engine.encode(QUESTION))))
        return self.tiny.engine.prefill(segments, parse_policy(policy).select(segments)).first_logits

    def ask(self, names: Sequence[str], policy: str) -> tuple[list[int], Report]:
        """Return the answer's tokens and its report."""
        question = Question(tuple(names), QUESTION, Sampling(max_new_tokens=N_ANSWER), policy, "always_load")
        *tokens, report = self.worker.ask(self.caller, question)
        assert isinstance(report, Report)
        return [token.id for token in tokens if isinstance(token, Token)], report

    def check(self, names: Sequence[str], policy: str) -> None:
        """Fail unless logits and greedy tokens are those of a plain full prefill; for the logits every passage is loaded."""
        ids = self.prompt_ids(names)
        torch.testing.assert_close(self.logits(names, policy), self.tiny.logits(ids), rtol=0, atol=TOLERANCE)
        token_ids, report = self.ask(names, policy)
        assert token_ids == self.tiny.greedy(ids, N_ANSWER)
        assert any(row.action == "load" for row in report.passages) == (policy != "all")  # what is computed whole is not loaded


@pytest.fixture(scope="module", params=TINY_MODELS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve every tiny model in turn, over memory and disk, with passages stored under a document and alone."""
    folder: Path = tmp_path_factory.mktemp(request.param)
    tiny = load_tiny(request.param, folder / request.param)
    tiers = TiersConfig(memory=MemoryConfig(capacity=8 << 20), disk=DiskConfig(capacity=8 << 20, fsync="never"))
    service = open_store(StoreConfig(data_dir=str(folder / "data"), tiers=tiers))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "calibrate", lambda *_: CostModel())
        worker = Worker(tiny.engine, WorkerSettings())
    caller = Caller("alice", service.bind("alice"))
    for source, read_as in (("document", "document"), ("alone", "alone")):
        assert len(list(worker.ingest(caller, source, TEXTS, read_as))) == 3
    yield Served(tiny, worker, caller)
    worker.close()
    service.close()


@pytest.mark.parametrize("source", ["document", "alone"])
def test_recomputing_all_rows_of_stored_passages_in_another_order_equals_a_full_prefill(served: Served, source: str) -> None:
    """The exactness test that every selective policy shares."""
    served.check([f"{source}#{i}" for i in (2, 0, 1)], "all")


def test_a_single_leading_passage_without_repair_equals_prefix_caching(served: Served) -> None:
    """Its rows were computed at the start of a prompt, where they stand again."""
    served.check(["alone#2"], "none")


def test_a_document_in_its_own_order_without_repair_equals_prefix_caching(served: Served) -> None:
    """Late chunking stored each passage behind exactly what precedes it here."""
    served.check([f"document#{i}" for i in range(3)], "none")


def test_a_repair_of_every_row_of_all_but_the_first_equals_a_full_prefill(served: Served) -> None:
    """The first passage comes from the store, rows of the others overwrite what was loaded."""
    served.check([f"alone#{i}" for i in range(3)], "first_k:k=1000")
