"""CacheGen's levels: what tables per channel are worth, when differences are, and that streams are what they should be."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from kvkernels import cachegen
from kvstore import rans
from kvstore.core.errors import FormatError, InvalidInputError
from kvstore.core.identity import KVLayout, LayerGroup, ModelIdentity
from kvworker.calibrate.collect import Collector
from kvworker.calibrate.statistics import Statistics
from kvworker.chunk import ChunkSpec, KVChunk
from kvworker.codec.stages import Fields, Tables
from kvworker.codec.streams import from_streams, to_streams
from kvworker.engine.engine import Study
from kvworker.methods.quantize.cachegen import Cachegen
from tests.codecs.synth import DIM, HEADS, layer, relative_error

MODEL = ModelIdentity("m", "0" * 64, KVLayout((LayerGroup((0,), HEADS, DIM, DIM, None),)), "float32", "1" * 64)
SPEC = ChunkSpec(1, HEADS, 256, DIM, DIM, "float32", (0,))
ALL_FINE = Cachegen(fine=32, coarse=32)


def collected(k: torch.Tensor, v: torch.Tensor) -> Statistics:
    """Return the statistics of a text of one layer."""
    collector, (_, n_heads, n_tokens, dim) = Collector(MODEL), k.shape
    ones = {0: torch.ones(n_tokens)}
    collector.add(Study((KVChunk(k, v),), {0: torch.ones(n_heads, dim)}, ones, ones))
    return collector.statistics()


@cache
def tables() -> Tables:
    """Return those of the synthetic layer's calibration text, with 32 bins."""
    seen = layer(100)
    return ALL_FINE.fit(collected(seen.k, seen.v))[0]


@cache
def coded() -> Fields:
    """Return another text of that layer, encoded."""
    text = layer(0)
    return ALL_FINE.bound({0: tables()}).encode(KVChunk(text.k[:, :, :256], text.v[:, :, :256]), SPEC)


def bits(side: str) -> float:
    """Return the bits a value of its stream."""
    return 8 * int(coded()[f"{side}.nbytes"]) / (256 * HEADS * DIM)


def cross_entropy(side: str, table: torch.Tensor) -> float:
    """Return the bits a value that a table (C, S) or (1, S) of frequencies promises."""
    x = getattr(layer(0), side)[0, :, :256].transpose(0, 1).flatten(1)
    symbols = cachegen.symbols_of(x, 15)[0].long()
    of_symbol = table.expand(HEADS * DIM, -1).gather(1, symbols.T)
    return float(-torch.log2(of_symbol / rans.TOTAL).mean())


@pytest.mark.parametrize("side", ["k", "v"])
def test_streams_are_as_small_as_their_tables_promise(side: str) -> None:
    """The check of the method: within 2 %."""
    promised = cross_entropy(side, tables()[f"{side}.frequencies"])
    assert promised <= bits(side) <= 1.02 * promised


@pytest.mark.parametrize(("side", "by_channel", "with_one"), [("k", 2.47, 2.71), ("v", 4.26, 4.28)])
def test_tables_by_channel_help_keys(side: str, by_channel: float, with_one: float) -> None:
    """Their channels differ; those of values hardly."""
    counts = tables()[f"{side}.frequencies"].sum(0, keepdim=True)
    one = torch.from_numpy(rans.frequencies(counts.numpy()).astype(np.int32))
    assert bits(side) == pytest.approx(by_channel, rel=0.1)
    assert cross_entropy(side, one) == pytest.approx(with_one, rel=0.1)
    assert bits("k") < 0.95 * cross_entropy("k", one) or side == "v"


def test_symbols_come_back_exactly() -> None:
    text = layer(0)
    back = ALL_FINE.bound({0: tables()}).decode(coded(), SPEC)
    for x, y in zip((text.k, text.v), back, strict=True):
        flat = x[0, :, :256].transpose(0, 1).flatten(1)
        assert torch.equal(y[0].transpose(0, 1).flatten(1), cachegen.values_of(*cachegen.symbols_of(flat, 15), 15, torch.float32))


def test_differences_are_off_where_neighbours_are_not_alike_enough() -> None:
    """The tokens of the synthetic layer are correlated by 0.9 less noise, over ten tokens by half of it."""
    assert not tables()["k.delta"].any()
    assert not tables()["v.delta"].any()


def walk(seed: int) -> torch.Tensor:
    """Return keys (1, H, T, D) that change slowly, each channel over its own range."""
    rng = torch.Generator().manual_seed(seed)
    steps = 0.02 * torch.randn(1, HEADS, 400, DIM, generator=rng)
    return (torch.randn(1, HEADS, 1, DIM, generator=rng) + steps.cumsum(2)) * torch.linspace(0.5, 2, DIM)


def test_differences_are_on_where_neighbours_are_alike() -> None:
    """Where they are, their scale is smaller, and so is the error."""
    x, noise = walk(1), torch.randn(1, HEADS, 400, DIM, generator=torch.Generator().manual_seed(2))
    errors = {}
    for delta in ("auto", "off"):
        stage = Cachegen(fine=32, coarse=32, delta=delta)
        bound = stage.bound(stage.fit(collected(x, noise)))
        spec = replace(SPEC, n_tokens=95)
        fields = bound.encode(KVChunk(x[:, :, 300:395], noise[:, :, :95]), spec)
        errors[delta] = relative_error(bound.decode(fields, spec)[0], x[:, :, 300:395])
        assert ("k.anchors" in fields, "v.anchors" in fields) == (delta == "auto", False)
    assert errors["auto"] < 0.3 * errors["off"]


def test_early_layers_have_more_bins() -> None:
    """As released: of 32 layers the first 10 for K and the first 2 for V, here of 6 the first 2 and the first."""
    own = collected(walk(1), walk(2)).layers[0]
    found = Cachegen().fit(Statistics(b"", 1, dict.fromkeys(range(6), own)))
    assert [int(found[n]["k.half"]) for n in range(6)] == [15, 15, 7, 7, 7, 7]
    assert [int(found[n]["v.half"]) for n in range(6)] == [15, 7, 7, 7, 7, 7]


def test_streams_are_never_longer_than_plain_codes() -> None:
    """Symbols that the tables hold for impossible take 12 bits each, so they are packed."""
    sure = rans.frequencies(np.array([[[1 << 40, *[0] * 15]]]))
    symbols = [torch.full((50, 1), 9, dtype=torch.uint8), torch.zeros(50, 1, dtype=torch.uint8)]
    streams = to_streams(symbols, [16, 16], sure.repeat(2, 0))
    assert [len(stream) for stream in streams] == [25, 4]
    back = from_streams(streams, [50, 50], [16, 16], sure.repeat(2, 0))
    assert all(torch.equal(x, y) for x, y in zip(symbols, back, strict=True))


def test_streams_beyond_their_limit_are_refused() -> None:
    sure = rans.frequencies(np.ones((1, 1, 16), np.int64))
    with pytest.raises(FormatError, match="a stream of 26 B where 25 B are the most"):
        from_streams([bytes(26)], [50], [16], sure)


@pytest.mark.parametrize("lengths", [[-1], [1 << 30]])
def test_lengths_that_lie_are_refused(lengths: list[int]) -> None:
    fields = {**coded(), "k.nbytes": torch.tensor(lengths, dtype=torch.int32)}
    with pytest.raises(FormatError, match="do not lie within"):
        ALL_FINE.bound({0: tables()}).decode(fields, SPEC)


@pytest.mark.parametrize("params", [{"fine": 48}, {"fine": 16, "coarse": 32}, {"delta": "maybe"}])
def test_what_it_cannot_do_is_refused(params: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError, match="choose bins in"):
        Cachegen(**params)  # type: ignore[arg-type]
