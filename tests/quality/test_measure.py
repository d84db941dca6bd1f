"""Measuring on the reference model: what is exact measures as exact, and what is lost shows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from kvworker.answer.policy import find_policy
from kvworker.codec.specs import find_codec
from kvworker.quality import notes
from kvworker.quality.fidelity import agrees, divergence, overlap
from kvworker.quality.measure import compare, expected_tokens
from kvworker.quality.probe import Probe
from kvworker.quality.variants import FULL, ReadAs, Variant, alone_at, late_at, share_of

READ_AS: tuple[ReadAs, ...] = ("alone", "document", "prefix")
CONTEXT = notes.in_prompt(3, 8, 1)


@pytest.mark.parametrize("reading", READ_AS)
def test_computing_everything_is_full_prefill_however_passages_were_read(probe: Probe, reading: ReadAs) -> None:
    """Nothing stored is used, so the logits differ by rounding only."""
    stored = probe.read(CONTEXT, reading)
    text = CONTEXT.asks[0].text
    full, answered = probe.ask(CONTEXT, text), probe.ask(CONTEXT, text, stored, find_policy("all"))
    torch.testing.assert_close(answered.logits, full.logits, atol=1e-4, rtol=1e-4)
    assert answered.rows == 1.0


@pytest.mark.parametrize(("reading", "n_exact"), [("alone", 1), ("document", 2), ("prefix", 8)])
def test_as_many_leading_passages_are_exact_as_were_read_as_they_stand(probe: Probe, reading: ReadAs, n_exact: int) -> None:
    """The first alone, the first document's two, or all of them."""
    assert probe.read(CONTEXT, reading).n_exact == n_exact


def test_an_exact_prefix_answers_as_full_prefill_does_without_computing_it(probe: Probe) -> None:
    """What prefix caching promises."""
    text = CONTEXT.asks[0].text
    full, answered = probe.ask(CONTEXT, text), probe.ask(CONTEXT, text, probe.read(CONTEXT, "prefix"), find_policy("none"))
    torch.testing.assert_close(answered.logits, full.logits, atol=1e-4, rtol=1e-4)
    assert (answered.rows, answered.work) == (0.0, 0.0)


def test_a_codec_that_loses_nothing_changes_nothing(probe: Probe) -> None:
    """Raw bytes come back as they were."""
    stored = probe.read(CONTEXT, "alone")
    again = probe.recode(stored, find_codec("lossless"))
    pairs = [(a, b) for x, y in zip(stored.passages, again.passages, strict=True) for a, b in zip(x, y, strict=True)]
    assert all(torch.equal(a.k, b.k) and torch.equal(a.v, b.v) for a, b in pairs)


def test_a_document_longer_than_the_context_is_read_in_windows(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ingesting reads it; every passage of the prompt gets its KV."""
    context = notes.long_document(1, 4, 1)
    monkeypatch.setattr(probe.engine, "max_reading_tokens", 300)
    lengths = [chunks[0].k.shape[2] for chunks in probe.read(context, "document").passages]
    assert lengths == [len(probe.tokens(text)) for text in context.texts]


def test_late_chunking_knows_what_passages_read_alone_do_not(probe: Probe) -> None:
    """The earlier passages are not in the prompt: carried facts are answered from what the stored passages remember."""
    none, late = (Variant("none", 0.0, "alone", find_policy("none")), late_at((), 33)[0])
    tallies = compare(probe, [notes.retrieved_only(seed, 8, 4) for seed in range(4)], [FULL, none, late])
    full, alone, document = (tallies[v].accuracy("carried") for v in (FULL, none, late))
    assert document >= max(full, alone) + 0.2


def test_every_known_policy_is_compared_at_every_ratio() -> None:
    """A new file among the methods takes part without anybody listing it."""
    names = {variant.name for variant in alone_at((0.15, 0.3), 33)}
    assert {"none", "all", "exact", "first_k"} <= names
    assert {(v.name, v.ratio) for v in alone_at((0.15, 0.3), 33) if v.name == "first_k"} == {("first_k", 0.15), ("first_k", 0.3)}


@pytest.mark.parametrize(("policy", "share"), [("none", 0.0), ("all", 1.0), ("exact", 1.0)])
def test_a_policy_without_a_ratio_stands_at_the_share_that_it_repairs(policy: str, share: float) -> None:
    """Measured on a passage in the middle of a prompt."""
    assert share_of(find_policy(policy)) == share


def test_an_answer_may_start_with_or_without_its_space(probe: Probe) -> None:
    """Tokenizers differ in whom the space before a word belongs to."""
    assert probe.engine.encode("salt")[0] in expected_tokens(probe.engine, "salt")


def test_equal_logits_diverge_by_nothing() -> None:
    """Also where they are shifted by a constant, which softmax does not see."""
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert divergence(logits, logits + 3) == pytest.approx(0, abs=1e-9)
    assert overlap(logits, logits + 3) == pytest.approx(1)


def test_divergence_is_kullback_and_leiblers() -> None:
    """Of (3/4, 1/4) from (1/2, 1/2), in nats: 3/4 ln(3/2) + 1/4 ln(1/2)."""
    full, other = torch.log(torch.tensor([3.0, 1.0])), torch.zeros(2)
    assert divergence(full, other) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert overlap(full, other) == pytest.approx(0.75)


def test_distributions_agree_when_their_likeliest_token_is_the_same() -> None:
    """Whatever they think of the others."""
    assert agrees(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([2.0, 2.5, 0.0]))
    assert not agrees(torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0]))


def test_a_context_reads_its_prompt_from_its_documents() -> None:
    """In the order of the prompt."""
    context = replace(CONTEXT, prompt=((1, 1), (0, 0)))
    assert context.texts == (CONTEXT.documents[1][1], CONTEXT.documents[0][0])
