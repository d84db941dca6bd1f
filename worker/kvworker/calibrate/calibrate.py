"""Look at a model's KV over text until enough was seen, and fit what its codecs need."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvclient.cli.progress import progress
from kvworker.calibrate.collect import Collector
from kvworker.calibrate.files import save_statistics
from kvworker.calibrate.fit import complete, fit
from kvworker.calibrate.probes import save_probes
from kvworker.calibrate.statistics import Statistics
from kvworker.calibrate.texts import readings
from kvworker.codec.artifacts import Artifacts
from kvworker.codec.pipeline import Pipeline
from kvworker.codec.stages import Calibrated
from kvworker.engine.engine import Engine


@dataclass(frozen=True)
class Reach:
    """How much text is read: tokens at most, and seconds after which no further text is begun."""

    n_tokens: int = 32_768
    seconds: float = 240.0


QUICK = Reach(4_096, 20.0)


def gather(
    engine: Engine,
    texts: Iterable[Sequence[int]],
    reach: Reach = Reach(),
    advance: Callable[[int], None] = lambda _: None,
) -> Statistics:
    """Read texts until enough was seen, at least one; return what they look like from within."""
    collector, n_seen, ends = Collector(engine.identity), 0, time.monotonic() + reach.seconds
    for token_ids in texts:
        collector.add(engine.study(token_ids))
        advance(len(token_ids))
        n_seen += len(token_ids)
        if n_seen >= reach.n_tokens or time.monotonic() > ends:
            break
    return collector.statistics()


def prepare(
    engine: Engine, codecs: Sequence[Pipeline], artifacts: Artifacts, paths: Sequence[Path] = (), reach: Reach = Reach()
) -> list[Pipeline]:
    """Gather statistics, keep them, fit every calibrated stage anew that names no artifact, and return the codecs ready for use."""
    with progress("reading text", reach.n_tokens) as advance:
        statistics = gather(engine, readings(engine, paths), reach, advance)
    save_statistics(statistics, engine.identity, artifacts)
    save_probes(statistics.probes, engine.identity.namespace, artifacts)
    stages = [stage for codec in codecs for stage in codec.stages if isinstance(stage, Calibrated) and not stage.artifact]
    fitted = {stage.subject: stage for stage in stages}
    with progress("fitting tables", len(fitted)) as advance:
        for stage in fitted.values():
            fit(stage, artifacts, statistics)
            advance(1)
    return [complete(codec, artifacts) for codec in codecs]
