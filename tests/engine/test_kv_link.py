"""Link tokens behind passages: what is loaded equals what is computed under the mask that the model is trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from kvstore.core.errors import InvalidInputError
from kvworker.answer.policy import parse_policy
from kvworker.engine.engine import Apart, Segment, laid_out, spans_of, unsourced
from kvworker.engine.engine_hf import HFEngine
from kvworker.engine.sampling import Sampling
from kvworker.quality.variants import every_policy, fixed_policies, policies_at
from tests.engine.prompts import Tiny, open_engine, random_passages, random_question, stored
from tests.engine.test_arrangement import under_mask

TOLERANCE = 1e-4  # as in the splice tests
LENGTHS = (9, 14, 6)
FIRST, N = 200, 2
POLICY = parse_policy(f"kv_link:first_id={FIRST},n={N}")


def with_special_tokens(tiny: Tiny) -> HFEngine:
    """Return an engine whose tokens 200 to 205 are special, as a model's that was trained with links."""
    _, model = open_engine(tiny)
    tokenizer = AutoTokenizer.from_pretrained(tiny.directory, local_files_only=True)
    tokenizer.add_special_tokens({"additional_special_tokens": tokenizer.convert_ids_to_tokens(list(range(FIRST, FIRST + 3 * N)))})
    return HFEngine(model, tokenizer, tiny.engine.identity, tiny.engine.eos_ids)


def prompt(engine: HFEngine) -> list[Segment]:
    """Return passages that were read alone, and a question."""
    passages = random_passages(LENGTHS)
    return stored(passages, [engine.export([p])[0] for p in passages], random_question())


@pytest.mark.parametrize("computed", [(), (1,), (0, 1, 2)], ids=str)
def test_loaded_or_computed_passages_equal_a_prefill_under_the_mask(tiny: Tiny, computed: Sequence[int]) -> None:
    """Links see everything before them and passages only themselves, wherever a passage comes from."""
    engine = with_special_tokens(tiny)
    segments = POLICY.arrange([replace(s, source=None) if i in computed else s for i, s in enumerate(prompt(engine))])
    generation = POLICY.finish(engine.begin(segments))
    torch.testing.assert_close(generation.first_logits, under_mask(tiny, laid_out(segments)), rtol=0, atol=TOLERANCE)
    assert generation.rows_computed == sum(LENGTHS[i] for i in computed) + 3 * N + 7


def test_steps_that_leave_out_a_loaded_passage_compute_its_links(llama: Tiny) -> None:
    """As when computing races loading: the second passage is loaded between two that are computed."""
    engine = with_special_tokens(llama)
    segments = POLICY.arrange(prompt(engine))
    first, second, third, _ = spans_of(segments)
    run = engine.begin(segments)
    assert run.compute(range(first.start, first.stop))
    assert run.compute([*range(second.stop - N, second.stop), *range(third.start, third.stop)])
    torch.testing.assert_close(POLICY.finish(run).first_logits, under_mask(llama, laid_out(segments)), rtol=0, atol=TOLERANCE)


def test_answers_go_on_behind_links(llama: Tiny) -> None:
    """Ten generated tokens, with everything loaded and with everything computed."""
    engine = with_special_tokens(llama)
    loaded = POLICY.arrange(prompt(engine))
    computed = [replace(segment, source=None) for segment in loaded]
    one, other = (list(POLICY.finish(engine.begin(segments, Sampling(max_new_tokens=10)))) for segments in (loaded, computed))
    assert one == other


def test_each_passage_is_followed_by_links_of_its_own() -> None:
    """The model is trained with their order; positions run on over them."""
    arranged = POLICY.arrange([Segment((1, 2)), Segment((3,)), Segment((4, 5))])
    assert [(s.token_ids, s.apart) for s in laid_out(arranged)] == [
        ((1, 2), Apart()),
        ((200, 201), None),
        ((3,), Apart()),
        ((202, 203), None),
        ((4, 5), None),
    ]
    assert [(span.start, span.stop) for span in spans_of(arranged)] == [(0, 4), (4, 7), (7, 9)]


def test_links_are_computed_whatever_has_a_source(llama: Tiny) -> None:
    """Nobody stores them."""
    assert unsourced(POLICY.arrange(prompt(llama.engine)))[: 2 * N] == [9, 10, 25, 26]


def test_planners_count_the_links_of_every_passage() -> None:
    """They are what a loaded passage still costs."""
    assert POLICY.work(POLICY.arrange([Segment((1, 2)), Segment((3,)), Segment((4, 5))]), 4) == [N, N, 0]


def test_a_model_without_such_tokens_is_refused(llama: Tiny) -> None:
    """Tokens that say something link nothing."""
    with pytest.raises(InvalidInputError, match="token 200 is no special token of this model"):
        llama.engine.begin(POLICY.arrange(prompt(llama.engine)))


def test_passages_beyond_the_trained_links_are_refused(llama: Tiny) -> None:
    """Three passages take six of six tokens, a fourth has none left."""
    with pytest.raises(InvalidInputError, match="token 206 is no special token"):
        with_special_tokens(llama).begin(POLICY.arrange([Segment((1,))] * 5))


@pytest.mark.parametrize("spec", ["kv_link", "kv_link:first_id=200,n=0", "kv_link:first_id=-5"])
def test_it_wants_to_be_told_the_first_link(spec: str) -> None:
    """No two families have the same."""
    with pytest.raises(InvalidInputError, match="needs the id of the model's first link token"):
        parse_policy(spec)


def test_comparisons_leave_out_what_only_some_models_are_trained_for() -> None:
    """They run every other policy over whatever model is there."""
    assert "kv_link" not in {p.name for p in (*fixed_policies(), *every_policy(), *policies_at(0.5, 20))}
