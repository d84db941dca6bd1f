"""LoRC: latents are what the factors of the weights give, errors are those of the axes left out, and ranks fall with depth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import kvworker.reference
from kvkernels import lorc
from kvstore.core.errors import InvalidInputError
from kvworker.calibrate.collect import Collector
from kvworker.calibrate.files import latest_statistics, save_statistics
from kvworker.calibrate.statistics import Statistics
from kvworker.calibrate.texts import readings
from kvworker.chunk import KVChunk
from kvworker.codec.artifacts import Artifacts
from kvworker.engine.engine import Study
from kvworker.engine.engine_hf import load_engine
from kvworker.engine.rope import placed, unplaced
from kvworker.methods.transform.lorc import Lorc
from tests.codecs.synth import layer, relative_error
from tests.codecs.synth_model import ROPE, seen
from tests.contracts.codecs import identity_for, make_passage

INPUTS, CHANNELS, RANK = 48, 32, 12


def factors() -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs (T, I) and weights (I, C) with a falling spectrum."""
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(INPUTS, CHANNELS, generator=draw) * 0.8 ** torch.arange(CHANNELS)
    turn = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=draw))[0]
    return torch.randn(4000, INPUTS, generator=draw), w @ turn


def test_latents_are_the_inputs_times_the_larger_factors() -> None:
    """K V_r = x U_r S_r: what is computed already turns into what the factorised model would have computed. Signs of axes are free."""
    x, w = factors()
    u, s, _ = torch.linalg.svd(w, full_matrices=False)
    basis, _ = lorc.axes(w.T @ w)
    z = lorc.project((x @ w)[None, None], torch.zeros(1, CHANNELS), basis[None, :, :RANK])[0, 0]
    expected = x @ u[:, :RANK] * s[:RANK]
    assert relative_error(z.abs(), expected.abs()) < 1e-4


def test_white_inputs_lose_the_energy_of_the_axes_left_out() -> None:
    """Here 0.0635 where the singular values say 0.0632."""
    x, w = factors()
    basis, _ = lorc.axes(w.T @ w)
    k, zero = (x @ w)[None, None], torch.zeros(1, CHANNELS)
    back = lorc.rebuild(lorc.project(k, zero, basis[None, :, :RANK]), zero, basis[None, :, :RANK], 1)
    energy = torch.linalg.svdvals(w).square()
    assert relative_error(back, k) == pytest.approx(float((energy[RANK:].sum() / energy.sum()).sqrt()), rel=0.05)


def test_all_axes_lose_nothing() -> None:
    text, stage = layer(0, 200), Lorc(most=100, least=100)
    spec = replace(KVChunk(text.k, text.v).spec, layers=(0,))
    stage = stage.bound(stage.fit(seen()))
    back = stage.restore(*stage.apply(KVChunk(text.k, text.v), spec), spec)
    assert relative_error(back.k, text.k) < 1e-6
    assert relative_error(back.v, text.v) < 1e-6


def test_ranks_fall_with_depth_from_most_to_least() -> None:
    """Each layer counts by the logarithm of its condition number."""
    found = lorc.ranks([1.0, 2.0, 0.5, 3.0], 60, 40)
    assert found == sorted(found, reverse=True)
    assert (found[0], found[-1]) == (60, 40)
    assert lorc.ranks([2.0], 60, 40) == [60]


def random_statistics(n_layers: int) -> Statistics:
    """Return statistics of a model with 32 channels, weights left out."""
    identity = identity_for((n_layers, 2, 16, 16))
    collector, ones = Collector(identity), {n: torch.ones(105) for n in range(n_layers)}
    collector.add(Study(make_passage(identity, 105), {n: torch.ones(2, 16) for n in range(n_layers)}, ones, ones))
    return collector.statistics()


def test_layers_of_a_run_have_one_rank_and_missing_latents_are_zero() -> None:
    stage = Lorc(most=75, least=25, run=2)
    stage = stage.bound(stage.fit(random_statistics(4)))
    ranks = stage.table("k.rank", range(4))[:, 0].tolist()
    assert ranks[0] == ranks[1] == 24 > ranks[2] == ranks[3]
    chunk = make_passage(identity_for((4, 2, 16, 16)), 5)[0]
    inner, _ = stage.apply(chunk, replace(chunk.spec, layers=(0, 1, 2, 3)))
    assert inner.k.shape == (4, 1, 5, 24)
    assert not inner.k[2:, ..., ranks[2] :].any()
    assert inner.k[:2].all()


@pytest.mark.parametrize("first", [1, 1000])
def test_keys_rebuilt_and_turned_are_those_projected_there(first: int) -> None:
    text, stage = layer(0, 64), Lorc()
    stage = stage.bound(stage.fit(seen()))
    spec = replace(KVChunk(text.k, text.v).spec, layers=(0,))
    moved = unplaced(placed(text.k, ROPE, first), ROPE, first)
    here, there = (stage.restore(*stage.apply(KVChunk(k, text.v), spec), spec).k for k in (text.k, moved))
    assert relative_error(placed(there, ROPE, first), placed(here, ROPE, first)) < 1e-5


def test_axes_of_activations_lose_less_than_those_of_weights_on_a_trained_model() -> None:
    """The reference model at a quarter of its axes, layer by layer, on text that was not looked at; statistics as they are kept."""
    engine = load_engine(Path(kvworker.reference.__file__).parent / "model", device="cpu")
    texts = readings(engine, ())
    collector = Collector(engine.identity)
    collector.add(engine.study(next(texts)[:600]))
    artifacts = Artifacts(engine.identity.namespace)
    save_statistics(collector.statistics(), engine.identity, artifacts)
    statistics, kv = latest_statistics(artifacts), engine.study(next(texts)[:300]).kv
    assert statistics is not None
    losses = []
    for basis in ("activations", "weights"):
        stage = Lorc(basis, 25, 25)
        stage = stage.bound(stage.fit(statistics))
        specs = [replace(chunk.spec, layers=group.layers) for chunk, group in zip(kv, engine.identity.layout.groups, strict=True)]
        backs = [stage.restore(*stage.apply(chunk, spec), spec) for chunk, spec in zip(kv, specs, strict=True)]
        losses.append(
            [
                [relative_error(a, b) for a, b in zip(x, y, strict=True)]
                for back, chunk in zip(backs, kv, strict=True)
                for x, y in ((back.k, chunk.k), (back.v, chunk.v))
            ]
        )
    by_activations, by_weights = torch.tensor(losses)
    assert (by_activations <= by_weights).all()


def test_weights_that_nobody_told_are_asked_for() -> None:
    with pytest.raises(InvalidInputError, match="needs weights, which these statistics lack"):
        Lorc("weights").fit(random_statistics(2))


@pytest.mark.parametrize("params", [{"basis": "text"}, {"most": 30}, {"least": 0}, {"most": 101}, {"run": 0}])
def test_what_it_cannot_do_is_refused(params: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match="choose basis in"):
        Lorc(**params)  # type: ignore[arg-type]
