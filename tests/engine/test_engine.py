"""What the engine promises beside exact numbers: sources, errors, generation, sampling and text."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvstore.core.errors import IdentityError, InvalidInputError
from kvworker.answer.policy import parse_policy
from kvworker.chunk import KVChunk
from kvworker.engine.engine import Generation, LoadFailed, Segment, Work
from kvworker.engine.engine_hf import HFEngine, load_engine
from kvworker.engine.sampling import Sampler, Sampling
from tests.engine.prompts import Kept, Lost, Tiny, open_engine, random_passages, random_question, stored
from tests.engine.tiny_models import BOS, EOS, N_VOCAB


def prompt(engine: HFEngine, lengths: tuple[int, ...] = (9, 20)) -> list[Segment]:
    """Return stored passages, read alone, and a question."""
    passages = random_passages(lengths)
    return stored(passages, [engine.export([p])[0] for p in passages], random_question())


def kept(segment: Segment) -> Kept:
    """Return the source of a stored segment."""
    assert isinstance(segment.source, Kept)
    return segment.source


def test_a_source_is_asked_for_each_layer_group_once_and_in_order(llama: Tiny) -> None:
    """Groups arrive in this order, so loading overlaps with computing."""
    segments = prompt(llama.engine)
    llama.engine.prefill(segments, parse_policy("none").select(segments))
    assert [kept(segment).asked for segment in segments[:2]] == [[0, 1], [0, 1]]


def test_a_source_is_asked_right_before_its_layer_group_runs(llama: Tiny) -> None:
    """A later group that is still loading does not hold up an earlier one."""
    engine, model = open_engine(llama)
    events: list[str] = []

    class Noting(Kept):
        def group(self, index: int) -> KVChunk:
            events.append(f"group {index}")
            return super().group(index)

    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda *_, i=i: events.append(f"layer {i}"))
    (passage,) = random_passages([9])
    segments = [Segment(tuple(passage), Noting(llama.engine.export([passage])[0])), Segment(tuple(random_question()))]
    engine.prefill(segments, parse_policy("none").select(segments))
    assert events == ["group 0", "layer 0", "layer 1", "group 1", "layer 2", "layer 3"]


def test_a_source_is_not_asked_when_all_its_rows_are_computed(llama: Tiny) -> None:
    """Bytes that nothing reads are not waited for."""
    segments = prompt(llama.engine)
    llama.engine.prefill(segments, parse_policy("all").select(segments))
    assert kept(segments[1]).asked == []


def test_a_lost_chunk_raises_and_leaves_the_engine_ready(llama: Tiny) -> None:
    """The caller computes the passage instead, on the same engine."""
    segments = prompt(llama.engine)
    expected = llama.engine.prefill(segments, parse_policy("none").select(segments)).first_logits
    broken = [segments[0], Segment(segments[1].token_ids, Lost()), segments[2]]
    with pytest.raises(LoadFailed, match="layer group 0 is gone"):
        llama.engine.prefill(broken, parse_policy("none").select(broken))
    assert torch.equal(llama.engine.prefill(segments, parse_policy("none").select(segments)).first_logits, expected)


@pytest.mark.parametrize("change", ["tokens", "dtype", "group"])
def test_a_chunk_of_another_shape_is_refused(llama: Tiny, change: str) -> None:
    """Torch would broadcast or cast some of them silently."""
    segments = prompt(llama.engine)
    passage = kept(segments[1]).passage
    wrong = {
        "tokens": tuple(KVChunk(c.k[:, :, :-1], c.v[:, :, :-1]) for c in passage),
        "dtype": tuple(KVChunk(c.k.half(), c.v.half()) for c in passage),
        "group": tuple(KVChunk(c.k[:1], c.v[:1]) for c in passage),
    }[change]
    segments[1] = Segment(segments[1].token_ids, Kept(wrong))
    with pytest.raises(IdentityError, match="the model needs"):
        llama.engine.prefill(segments, parse_policy("none").select(segments))


def test_stored_chunks_are_not_written_to(llama: Tiny) -> None:
    """Computed rows belong to the request; the device tier hands the same tensors to the next one."""
    segments = prompt(llama.engine)
    before = [(c.k.clone(), c.v.clone()) for c in kept(segments[1]).passage]
    list(llama.engine.prefill(segments, parse_policy("first_k:k=4").select(segments), Sampling(max_new_tokens=3)))
    assert all(torch.equal(c.k, k) and torch.equal(c.v, v) for c, (k, v) in zip(kept(segments[1]).passage, before, strict=True))


def test_exported_chunks_own_their_memory(llama: Tiny) -> None:
    """Keeping one passage must not keep its whole document."""
    chunk = llama.engine.export(random_passages([9, 20]))[0][0]
    assert chunk.k.untyped_storage().nbytes() == chunk.k.nbytes
    assert chunk.v.untyped_storage().nbytes() == chunk.v.nbytes


def test_exporting_leaves_no_hook_behind(llama: Tiny) -> None:
    """Not even when the pass fails: a forgotten hook would keep every later key alive."""
    engine, model = open_engine(llama)
    model.model.layers[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.export(random_passages([9]))
    assert not any(layer.self_attn.k_proj._forward_hooks for layer in model.model.layers)


def test_rows_of_the_prompt_are_counted(llama: Tiny) -> None:
    """The report and the cost model need it."""
    segments = prompt(llama.engine)
    rows = parse_policy("first_k:k=4").select(segments)
    assert llama.engine.prefill(segments, rows).work.rows == tuple(rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "7 rows have no source and are not computed, the first is 29"),
        ([*range(29, 35)], "1 rows have no source and are not computed, the first is 35"),
        ([*range(30, 36)], "1 rows have no source"),
        ([3, 3, *range(29, 36)], "ascend without repeats"),
        ([5, 3, *range(29, 36)], "ascend without repeats"),
        ([-1, *range(29, 36)], "within 0 and 35"),
        ([*range(29, 37)], "within 0 and 35"),
    ],
)
def test_rows_that_cannot_be_right_are_refused(llama: Tiny, rows: list[int], message: str) -> None:
    """A row without a source that is not computed would be uninitialised memory."""
    with pytest.raises(InvalidInputError, match=message):
        llama.engine.prefill(prompt(llama.engine), rows)


@pytest.mark.parametrize("token", [-1, N_VOCAB])
def test_a_token_outside_the_vocabulary_is_refused(llama: Tiny, token: int) -> None:
    """On a GPU such an index would end the process."""
    with pytest.raises(InvalidInputError, match=f"within 0 and {N_VOCAB - 1}"):
        llama.engine.export([[BOS, token]])


def test_more_tokens_than_the_context_are_refused(llama: Tiny) -> None:
    """The model has never seen such positions."""
    with pytest.raises(InvalidInputError, match="513 tokens do not fit the model's context of 512"):
        llama.engine.export([[7] * 513])


def test_an_empty_passage_is_refused(llama: Tiny) -> None:
    """It has no rows that a chunk could hold."""
    with pytest.raises(InvalidInputError, match="at least 1 token"):
        llama.engine.export([[BOS], []])


def test_an_empty_segment_is_refused() -> None:
    """It would be a part of the prompt without a place."""
    with pytest.raises(InvalidInputError, match="at least 1 token"):
        Segment(())


def whole(n_tokens: int) -> list[Segment]:
    """Return a prompt without any source."""
    return [Segment((BOS, *[9] * (n_tokens - 1)))]


def test_a_generation_ends_with_the_context(llama: Tiny) -> None:
    """A prompt of 510 tokens leaves room for two tokens that are read and one that is not."""
    engine = llama.engine
    generation = engine.prefill(whole(510), range(510), Sampling(max_new_tokens=50, temperature=5.0))
    assert 1 <= len(list(generation)) <= 3


def test_a_generation_ends_before_the_end_of_sequence() -> None:
    """The token itself is not part of the answer."""
    logits = torch.eye(3)
    generation = Generation(logits[0], Work((0,), 1), lambda token: logits[token + 1], frozenset([2]), Sampling())
    assert list(generation) == [0, 1]


def test_a_generation_of_one_token_runs_no_further_pass(llama: Tiny) -> None:
    """The first token comes from the prefill."""

    def step(_token: int) -> torch.Tensor:
        raise AssertionError("a pass was run")

    assert list(Generation(torch.eye(3)[1], Work((0,), 1), step, frozenset(), Sampling(max_new_tokens=1))) == [1]


def test_two_generations_do_not_disturb_each_other(llama: Tiny) -> None:
    """Requests take turns between tokens; each has a cache of its own."""
    sampling = Sampling(max_new_tokens=6)
    prompts = [whole(12), prompt(llama.engine)]
    rows = [parse_policy("none").select(segments) for segments in prompts]
    apart = [list(llama.engine.prefill(p, r, sampling)) for p, r in zip(prompts, rows, strict=True)]
    both = [iter(llama.engine.prefill(p, r, sampling)) for p, r in zip(prompts, rows, strict=True)]
    turns = [[next(tokens) for tokens in both] for _ in range(min(map(len, apart)))]
    assert [list(tokens) for tokens in zip(*turns, strict=True)] == [tokens[: len(turns)] for tokens in apart]


def test_a_seed_draws_the_same_tokens_again(llama: Tiny) -> None:
    """And another seed others."""
    sampling = Sampling(max_new_tokens=12, temperature=3.0, seed=4)
    first, again, other = (list(llama.engine.prefill(whole(5), range(5), s)) for s in (sampling, sampling, replace(sampling, seed=5)))
    assert first == again != other


def test_top_p_draws_from_the_likeliest_tokens_alone() -> None:
    """0.6 and 0.3 sum to 0.9: the third token is never drawn at top_p 0.8."""
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.8))
    assert {sampler.choose(torch.tensor([0.6, 0.3, 0.1]).log()) for _ in range(200)} == {0, 1}


@pytest.mark.parametrize(("field", "value"), [("max_new_tokens", 0), ("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.1)])
def test_sampling_parameters_out_of_range_are_refused(field: str, value: float) -> None:
    """NaN and negative probabilities would follow."""
    with pytest.raises(InvalidInputError, match=field):
        Sampling(**{field: value})  # type: ignore[arg-type]


def test_text_survives_encoding(llama: Tiny) -> None:
    """Special tokens are neither added nor shown."""
    ids = llama.engine.encode("Où est Zürich? 東京")
    assert BOS not in ids
    assert llama.engine.decode([BOS, *ids, EOS]) == "Où est Zürich? 東京"


def test_special_tokens_come_from_the_directory(llama: Tiny) -> None:
    """A passage starts with BOS, a generation stops at EOS."""
    assert (llama.engine.bos_id, llama.engine.eos_ids, llama.engine.max_context_tokens) == (BOS, frozenset([EOS]), 512)


def test_a_half_precision_model_splices_within_its_rounding(llama: Tiny) -> None:
    """bfloat16 keeps 8 bits: over four layers the logits, up to 6 in magnitude, move by a few of 2**-8 * 6 = 0.023."""
    engine = load_engine(llama.directory, device="cpu", dtype="bfloat16")
    segments = prompt(engine, (30,))
    spliced = engine.prefill(segments, parse_policy("none").select(segments)).first_logits
    computed = engine.prefill(segments, parse_policy("all").select(segments)).first_logits
    assert engine.identity.dtype == "bfloat16"
    assert (spliced - computed).abs().max() < 0.25
