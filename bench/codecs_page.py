"""Write docs/codecs.md from what `larder bench codecs` measured.

python -m bench.codecs_page tests/bench/results.csv docs/codecs.md
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import equal_bits
from bench.codec_results import PEER, RAW, Measured, read_codecs
from kvstore.core.discovery import find, known_names
from kvworker.bench.codec_catalogue import UNCALIBRATED
from kvworker.codec.pipeline import Pipeline
from kvworker.codec.presets import LADDER
from kvworker.codec.registry import QUANTIZERS, TRANSFORMS
from kvworker.codec.specs import find_codec
from kvworker.codec.stages import Calibrated

_HEAD = (
    "| | bits | K error | V error | attention error | worst layer | top-1 | KL, nats | accuracy | encode GB/s | decode GB/s |",
    "| --- " * 11 + "|",
)
_ABOUT = """\
The reference model (6 layers, 2 KV heads of 32, bfloat16) reads text that no codec was calibrated with. Bits count everything that
is stored with a passage of 1,024 tokens; tables that a model has once are not among them. Scales weigh more in heads of 32 than in
those of 128: `int8` takes 9 bits here and 8.25 there. Errors are norms of what is off over norms of what should be; attention's is
a mean over layers, under the queries of the rows behind the passage. `top-1` and `KL` compare first tokens of answers with those
from raw KV; `accuracy` counts right ones. GB/s are of raw bytes on one core, in tensors of 64 channels a layer; wider models are
faster; they are empty where the machine was not quiet. `tests/bench/codecs.png` shows the same."""
_GUARD = """\
`worker.codec` or `--codec` names a preset or a codec. Before a passage is stored as a preset, a 64th of it, 72 tokens at least, is
encoded and decoded; where K, V or attention is off by more than the limit, the preset above takes it. Models whose query heads
share a KV head by six or more, or whose keys have a bias, take no preset below `balanced`. Byte stages of presets (`zstd`, `deflate`)
are left out where the worker's measured costs say that chunks are there sooner without: over shared memory and fast networks, where
`lossless` stores `raw`. Name the codec, and not the preset, to save the room in any case."""
_EQUAL = """\
Attention errors. A rival's lies between its settings of more and of fewer bits: groups of 32, 64 and 128, 4 bits and 2, of KIVI also 3.
Where none of them has so few bits, its error at its fewest stands there. KIVI has no sinks here, quanto and HQQ are as above."""
_WHEN = {
    "cachegen": "slow links, where a chunk is read whole",
    "clipped": "2 to 4 bits without calibration, where whole chunks are read",
    "cq": "the fewest bits per token where codebooks may be held beside the model",
    "cross": "remote and cold tiers: nothing decodes before all layers are here",
    "csr": "cold tiers, encoded off the critical path",
    "exponent_split": "where every bit must come back",
    "fp8": "caches that are float8 already, which it passes through",
    "hadamard": "4 bits without calibration where any token must decode alone",
    "int8": "memory and disk, where loss must not be seen",
    "kivi": "without calibration, where whole chunks are read",
    "kvquant": "few bits where outliers are known to matter",
    "lorc": "before a quantizer, for models with many KV heads",
    "mxfp4": "devices that read it natively",
    "nvfp4": "devices that read it natively, cold pages",
    "pca": "calibrated models on disk and behind a network: least attention error for its bits",
    "raw": "where decoding must cost nothing",
    "sinks": "before any lossy quantizer",
    "skvq": "2 bits where any token must decode alone",
    "think": "before a quantizer, where queries leave channels unused",
    "think_queries": "before a quantizer, for private prefixes: text that is read on where it stands",
    "turboquant": "3 to 4 bits without calibration where any token must decode alone",
    "deflate": "remote tiers; GPUs decode it in hardware",
    "lz4": "masks and other fields with long runs",
    "planes": "raw floats",
    "rans": "exponents and codes on slow links: the smallest, and the slowest to decode",
    "trim": "behind `cachegen`",
    "top16": "exponents, where a fixed length matters more than size",
    "zstd": "exponents and codes on the CPU",
}


def page(found: Sequence[Measured]) -> str:
    """Return the whole page."""
    by_name = {m.variant: m for m in found}
    raw = by_name[RAW]
    presets = [preset.name for preset in LADDER]
    others = [m for m in found if not m.variant.startswith(PEER) and m.variant not in (*presets, *UNCALIBRATED, RAW)]
    peers = [m for m in found if m.variant.startswith(PEER)]
    parts = [
        *_intro(raw),
        *("", "## Presets", "", *_ladder()),
        *("", *_HEAD, *(_line(by_name[name]) for name in (RAW, *presets, *UNCALIBRATED) if name in by_name)),
        *("", "## Codecs", "", *_HEAD, *(_line(m) for m in sorted(others, key=lambda m: -m.bits))),
        *("", "## Transformers' quantized cache", "", *_peers(peers)),
        *("", "## Presets beside rivals at equal bits", "", _EQUAL, "", *equal_bits.table(found)),
        *("", "## Methods", "", *_methods()),
    ]
    return "\n".join(parts) + "\n"


def _intro(raw: Measured) -> Iterator[str]:
    """Yield the head of the page."""
    yield "# Codecs"
    yield ""
    yield f"Written by `python -m bench.codecs_page` from what `larder bench codecs` measured on {raw.date} at {raw.commit}, {raw.device}."
    yield _ABOUT


def _ladder() -> Iterator[str]:
    """Yield what presets are."""
    yield _GUARD
    yield ""
    yield "| preset | limit | codec, calibrated | codec, not calibrated |"
    yield "| --- | --- | --- | --- |"
    for preset in LADDER:
        yield f"| `{preset.name}` | {preset.limit:g} | {f'`{preset.calibrated}`' if preset.calibrated else 'the same'} | `{preset.plain}` |"


def _peers(peers: Sequence[Measured]) -> Iterator[str]:
    """Yield what other libraries' quantizers do to the same KV, where they were installed."""
    if not peers:
        yield "Was not measured: `optimum-quanto` and `hqq` were not installed."
        return
    yield "As the cache calls them: K after RoPE, each passage at once. Its default are groups of 64."
    yield ""
    yield from (*_HEAD, *(_line(m) for m in sorted(peers, key=lambda m: -m.bits)))


def _line(m: Measured) -> str:
    """Return a row of a table."""
    v = m.metrics
    layer = f"{v['attn_err_worst_layer']:.3f} (layer {v['worst_layer']:.0f})" if v["attn_err"] else "0"
    values = [f"{v[name]:.4f}" if v[name] else "0" for name in ("k_err", "v_err", "attn_err")]
    answers = [f"{v['top1']:.4f}", f"{v['kl']:.4f}", f"{v['accuracy']:.4f}"]
    speeds = [_speed(v.get(name)) for name in ("encode_gb_per_s", "decode_gb_per_s")]
    name = m.variant.removeprefix(PEER) if m.variant.startswith(PEER) else f"`{m.variant}`"
    return f"| {' | '.join([name, f'{m.bits:.2f}', *values, layer, *answers, *speeds])} |"


def _speed(gb_per_s: float | None) -> str:
    """Return a speed, or nothing where none was measured on a machine that did nothing else."""
    if gb_per_s is None:
        return ""
    return f"{gb_per_s:.2f}" if gb_per_s >= 0.1 else f"{gb_per_s:.3f}"


def _methods() -> Iterator[str]:
    """Yield one line per stage: what it does, when to use it, and what it asks for."""
    yield "| stage | what it does | use it for | asks for |"
    yield "| --- | --- | --- | --- |"
    for package in (TRANSFORMS, QUANTIZERS, "kvstore.codecs"):
        for name in known_names(package):
            if (package, name) != ("kvstore.codecs", "raw"):
                stage = find(package, name)
                yield f"| `{name}` | {_does(stage)} | {_WHEN.get(name, '')} | {_asks(stage)} |"


def _does(stage: type) -> str:
    """Return the first line of a stage's description."""
    return (stage.__doc__ or "").strip().splitlines()[0].rstrip(".")


def _asks(stage: type) -> str:
    """Return what a stage costs beside bytes and time."""
    costs = {"calibration": issubclass(stage, Calibrated)}
    if not stage.__module__.startswith("kvstore"):
        traits = _traits(stage)
        costs["all layers at once"] = not traits[0]
        costs["all heads at once"] = not traits[1]
        costs["whole chunks"] = not traits[2]
    return ", ".join(name for name, is_so in costs.items() if is_so) or "nothing"


def _traits(stage: type) -> tuple[bool, bool, bool]:
    """Return whether layer groups, heads and tokens decode apart, for a quantizer alone or a transform before exact values."""
    text = stage.name if stage.__module__.startswith(QUANTIZERS) else f"{stage.name}+raw"  # type: ignore[attr-defined]
    codec: Pipeline = find_codec(text)
    return codec.traits.is_layer_streamable, codec.traits.is_tp_splittable, codec.traits.is_token_granular


def main() -> None:
    """Read a CSV file and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, help="what the benchmarks appended their rows to")
    parser.add_argument("page", type=Path, help="the file to write")
    arguments = parser.parse_args()
    arguments.page.parent.mkdir(parents=True, exist_ok=True)
    arguments.page.write_text(page(read_codecs(arguments.csv)), encoding="utf-8")
    print(arguments.page)


if __name__ == "__main__":
    main()
