"""Statistics of a model's KV: what the engine tells, what is kept of it, and what is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from kvstore.core.errors import FormatError, InvalidInputError, NotFoundError
from kvworker.calibrate import calibrate
from kvworker.calibrate.calibrate import Reach, gather, prepare
from kvworker.calibrate.clusters import cluster
from kvworker.calibrate.collect import N_SKIPPED, Collector
from kvworker.calibrate.files import SUBJECT, latest_statistics, save_statistics
from kvworker.calibrate.fit import complete
from kvworker.calibrate.statistics import Statistics
from kvworker.calibrate.texts import readings
from kvworker.codec.artifact import Artifact
from kvworker.codec.artifacts import Artifacts
from kvworker.codec.specs import find_codec
from kvworker.engine.engine import Study
from kvworker.engine.engine_hf import HFEngine
from kvworker.engine.rope import placed
from tests.contracts.codecs import identity_for, make_passage
from tests.engine.prompts import load_tiny, random_passages

MODEL = identity_for((2, 2, 16, 24), (1, 1, 8, 8))


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HFEngine:
    """Return tiny models: plain, with normed queries, and with windows beside full attention."""
    return load_tiny(request.param, tmp_path_factory.mktemp(request.param)).engine


def study(n_tokens: int, seed: int) -> Study:
    """Return a random text of MODEL whose attention masses number its tokens."""
    passage = make_passage(MODEL, n_tokens, seed)
    sizes = {0: (2, 16), 1: (2, 16), 2: (1, 8)}
    numbers = {layer: torch.arange(n_tokens).float() + 1000 * seed for layer in sizes}
    return Study(passage, {layer: torch.full(size, float(seed)) for layer, size in sizes.items()}, numbers, numbers)


def collected(studies: Sequence[Study], n_sampled: int = 4096) -> Statistics:
    """Return the statistics of texts."""
    collector = Collector(MODEL, n_sampled)
    for each in studies:
        collector.add(each)
    return collector.statistics()


def test_a_study_has_the_kv_that_reading_alone_exports(engine: HFEngine) -> None:
    (ids,) = random_passages([23])
    for told, exported in zip(engine.study(ids).kv, engine.export([ids])[0], strict=True):
        torch.testing.assert_close(told.k, exported.k)
        torch.testing.assert_close(told.v, exported.v)


def test_the_attention_that_tokens_get_is_all_that_rows_pay(engine: HFEngine) -> None:
    """Each of 23 rows pays 1, and the first layer's squares are no more than that."""
    told = engine.study(random_passages([23])[0])
    for layer, mass in told.mass.items():
        assert float(mass.sum()) == pytest.approx(23.0, rel=1e-4)
        assert (told.mass_square[layer] <= mass * (1 + 1e-6)).all()


def test_query_weights_are_equal_within_a_rotated_pair(engine: HFEngine) -> None:
    told = engine.study(random_passages([23])[0])
    for group in engine.identity.layout.groups:
        assert group.rope is not None
        half = group.rope.rotary_dim // 2
        for layer in group.layers:
            assert told.q_square[layer].shape == (group.kv_heads, group.k_dim)
            assert torch.equal(told.q_square[layer][:, :half], told.q_square[layer][:, half : 2 * half])
            assert float(told.q_square[layer].min()) > 0


def test_probes_ask_as_the_model_asks(engine: HFEngine) -> None:
    """Of a text of few rows all are probes: placed where they stood, with the keys, they make the attention that was told."""
    told = engine.study(random_passages([23])[0])
    for group, chunk in zip(engine.identity.layout.groups, told.kv, strict=True):
        for n, layer in enumerate(group.layers):
            queries, keys = placed(told.probes[layer], group.rope, 0), placed(chunk.k[n], group.rope, 0)
            scores = queries @ keys.repeat_interleave(len(queries) // len(keys), 0).transpose(1, 2)
            at = torch.arange(23)
            hidden = (at > at[:, None]) | (at <= at[:, None] - (group.window or 23))
            weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).mean(0)
            torch.testing.assert_close(weights.sum(0), told.mass[layer], rtol=1e-3, atol=1e-4)


def test_a_study_leaves_nothing_behind_in_the_engine(engine: HFEngine) -> None:
    (ids,) = random_passages([9])
    before = engine.export([ids])[0]
    engine.study(ids)
    assert all(torch.equal(a.k, b.k) for a, b in zip(before, engine.export([ids])[0], strict=True))


def test_moments_are_those_of_all_texts_without_their_first_tokens() -> None:
    studies = [study(30, 1), study(20, 2)]
    seen = collected(studies, n_sampled=7)
    rows = torch.cat([each.kv[0].k[1][:, N_SKIPPED:] for each in studies], 1)
    k = seen.layers[1].k
    assert seen.n_tokens == rows.shape[1] == 40
    for found, expected in ((k.low, rows.amin(1)), (k.high, rows.amax(1)), (k.mean, rows.mean(1)), (k.square, rows.square().mean(1))):
        torch.testing.assert_close(found, expected)
    assert float(seen.layers[1].q_square[0, 0]) == pytest.approx((25 * 1 + 15 * 2) / 40)


def test_a_small_text_is_sampled_whole() -> None:
    seen = collected([study(30, 1)])
    assert torch.equal(seen.layers[2].v.sample, study(30, 1).kv[1].v[0][:, N_SKIPPED:])


def test_all_layers_and_sides_sample_the_same_tokens() -> None:
    studies = [study(300, seed) for seed in (1, 2, 3)]
    seen = collected(studies, n_sampled=50)
    numbers = seen.layers[0].mass.long()
    assert len(set(numbers.tolist())) == 50
    for layer, (group, place) in enumerate([(0, 0), (0, 1), (1, 0)]):
        assert torch.equal(seen.layers[layer].mass.long(), numbers)
        expected = torch.stack([studies[n // 1000 - 1].kv[group].v[place][:, n % 1000] for n in numbers.tolist()], 1)
        assert torch.equal(seen.layers[layer].v.sample, expected)


def test_sampled_tokens_tell_which_were_neighbours() -> None:
    """Of two in one text the numbers differ by as many tokens as lie between them; between texts there is a gap."""
    seen = collected([study(100, seed) for seed in (1, 2)], n_sampled=50).layers[0]
    text, row = seen.mass.long() // 1000, seen.mass.long() % 1000
    beside = text[1:] == text[:-1]
    assert torch.equal(seen.place.diff()[beside], row.diff()[beside])
    assert int(seen.place.diff()[~beside].min()) >= 64


def test_every_token_is_as_likely_to_be_sampled() -> None:
    """Of 20 texts of 100 tokens each gives 25 of 500 on average; four standard deviations are 19."""
    seen = collected([study(100 + N_SKIPPED, seed) for seed in range(20)], n_sampled=500)
    counts = torch.bincount(seen.layers[0].mass.long() // 1000, minlength=20)
    assert int((counts - 25).abs().max()) < 19


def test_a_text_of_nothing_but_sinks_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="more than 5 tokens, got 5"):
        collected([study(5, 1)])
    with pytest.raises(InvalidInputError, match="no text was given"):
        collected([])


def test_statistics_are_kept_and_found_again(tmp_path: Path) -> None:
    seen = collected([study(30, 1)])
    save_statistics(seen, MODEL, Artifacts(MODEL.namespace, tmp_path))
    back = latest_statistics(Artifacts(MODEL.namespace, tmp_path))
    assert back is not None
    assert (back.n_tokens, back.namespace, sorted(back.layers)) == (seen.n_tokens, seen.namespace, [0, 1, 2])
    for name in ("sample", "low", "high", "mean", "square"):
        assert torch.equal(getattr(back.layers[1].k, name), getattr(seen.layers[1].k, name))
    assert torch.equal(back.layers[1].mass_square, seen.layers[1].mass_square)


def test_tables_that_are_no_statistics_say_what_to_run() -> None:
    artifacts = Artifacts(MODEL.namespace)
    artifacts.add(Artifact(MODEL.namespace, SUBJECT, {0: {"k.low": torch.zeros(1)}}))
    with pytest.raises(FormatError, match="run `larder calibrate` again"):
        latest_statistics(artifacts)


def test_kept_statistics_fit_a_codec_that_nobody_named_before(tmp_path: Path) -> None:
    artifacts = Artifacts(MODEL.namespace, tmp_path)
    with pytest.raises(NotFoundError, match="larder calibrate"):
        complete(find_codec("skvq:group=16"), artifacts)
    save_statistics(collected([study(30, 1)]), MODEL, artifacts)
    assert complete(find_codec("skvq:group=16"), artifacts) == complete(find_codec("skvq:group=16"), Artifacts(MODEL.namespace, tmp_path))


def test_calibrating_again_takes_the_place_of_older_tables(tmp_path: Path, engine: HFEngine) -> None:
    artifacts = Artifacts(engine.identity.namespace, tmp_path / "artifacts")
    text = tmp_path / "text.txt"
    specs = []
    for word in ("salt and rope ", "the quick fox "):
        text.write_text(word * 100, "utf-8")
        specs.append(prepare(engine, [find_codec("skvq")], artifacts, [text], Reach(64))[0].spec)
    assert specs[0] != specs[1]
    assert complete(find_codec("skvq"), artifacts).spec == specs[1]


def test_gathering_ends_with_the_tokens_or_the_texts(engine: HFEngine) -> None:
    texts = random_passages([20, 20, 20])
    assert gather(engine, texts, Reach(n_tokens=30)).n_tokens == 2 * 15
    assert gather(engine, texts, Reach()).n_tokens == 3 * 15


def test_gathering_ends_in_time_but_reads_one_text(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(calibrate.time, "monotonic", lambda: float(next(clock)))
    assert gather(engine, random_passages([20, 20]), Reach(seconds=50.0)).n_tokens == 15


def test_texts_are_cut_to_what_the_model_reads_behind_a_bos(engine: HFEngine, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("salt " * 5000, "utf-8")
    found = list(readings(engine, [tmp_path]))
    assert max(map(len, found)) == min(2048, engine.max_reading_tokens)
    assert {ids[0] for ids in found} == ({engine.bos_id} if engine.bos_id is not None else {found[0][0]})


def test_the_same_files_give_the_same_texts(engine: HFEngine, tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"{name} exports salt. " * 20, "utf-8")
    assert list(readings(engine, [tmp_path])) == list(readings(engine, [tmp_path]))


@pytest.mark.parametrize(("data", "message"), [(None, "cannot be read"), (b"\xff\xfe\xff", "is not UTF-8"), (b"salt", "no text has more")])
def test_a_text_that_cannot_be_used_is_refused(engine: HFEngine, tmp_path: Path, data: bytes | None, message: str) -> None:
    path = tmp_path / "text.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InvalidInputError, match=message):
        list(readings(engine, [path]))


def test_clusters_find_what_lies_together() -> None:
    points = torch.cat([centre + 0.01 * torch.randn(9, 2, generator=torch.Generator().manual_seed(0)) for centre in (5.0, -3.0, 0.0)])
    assert cluster(points, 3).tolist() == [2] * 9 + [0] * 9 + [1] * 9


@pytest.mark.parametrize("n_points", [1, 2, 5])
def test_more_clusters_than_points_are_no_error(n_points: int) -> None:
    labels = cluster(torch.ones(n_points, 2), 8)
    assert 0 <= int(labels.min()) <= int(labels.max()) < 8
