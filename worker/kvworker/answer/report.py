"""Say what was done for each passage of a question, and why."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

from kvclient.records import Passage as PassageRecord
from kvclient.records import PassageReport, Report
from kvstore.core.reasons import meaning_of
from kvstore.core.stages import PipelineSpec
from kvstore.planners.plan import Compute, Load
from kvworker.answer.course import Course
from kvworker.answer.execute import SOONER
from kvworker.answer.load import StoredSource
from kvworker.answer.prompt import DEVICE
from kvworker.codec.registry import declared_quality
from kvworker.ingest.passages import Passage


def make_report(request_id: str, course: Course, codecs: Mapping[bytes, PipelineSpec]) -> Report:
    """Return the report of an answered question; `codecs` are those that chunks may be stored in, by variant."""
    passages = tuple(_passage_report(course, index, codecs) for index in range(len(course.prompt.passages)))
    loaded = sum(p.passage.n_tokens - p.rows_recomputed for p in passages if p.action == "load")
    return Report(
        request_id=request_id,
        passages=passages,
        planner=course.planner,
        policy=course.choice.policy.spec,
        ttft_split_s=course.timing.split(),
        ttft_s=course.timing.ttft_s,
        predicted_ttft_s=course.predicted_s or 0.0,
        tokens_loaded=loaded,
        tokens_recomputed=len(course.rows),
        tokens_generated=course.n_generated,
        quality=_quality(course, codecs),
        target=course.target,
    )


def _quality(course: Course, codecs: Mapping[bytes, PipelineSpec]) -> str:
    """Return the declared loss: none where everything was computed, or loaded without loss exactly where it was read."""
    loaded = {codecs[read.hit.key.variant] for index, read in enumerate(course.read) if read and index in course.sources}
    is_lossless = all(declared_quality(codec) == "lossless" for codec in loaded)
    is_prefix = all(index < course.prompt.n_exact for index in course.sources)
    policy = course.choice.policy
    is_exact = policy.is_in_turn and (not course.sources or policy.name == "all" or (is_prefix and is_lossless))
    return "; ".join(filter(None, ("exact" if is_exact else course.choice.quality, course.choice.note)))


def passage_record(passage: Passage) -> PassageRecord:
    """Return a passage as clients see it."""
    return PassageRecord(passage.content.hex(), passage.source, passage.index, len(passage.token_ids), passage.preview)


def _passage_report(course: Course, index: int, codecs: Mapping[bytes, PipelineSpec]) -> PassageReport:
    """Return what was done for one passage."""
    item, read = course.plan.items[index], course.read[index]
    source, passage = course.sources.get(index), passage_record(course.asked[index].passage)
    if read is None or source is None or (isinstance(source, StoredSource) and not source.has_arrived):
        reason, why = _why_computed(course, item, read.hit.reason if read else "never_stored")
        return PassageReport(passage, "compute", "", "", 0, 0.0, why, passage.n_tokens, reason=reason)
    if isinstance(source, StoredSource):
        tier, nbytes, seconds = source.tier, source.nbytes, source.seconds
    else:
        tier, nbytes, seconds = DEVICE, sum(chunk.nbytes for chunk in source.kv), 0.0
    why = item.why if isinstance(item, Load) else f"it arrived before it was computed; the plan was: {item.why}"
    codec = codecs[read.hit.key.variant].label
    return PassageReport(passage, "load", tier, codec, nbytes, seconds, why, _rows_computed(course, index), read.reading.read_as)


def _rows_computed(course: Course, index: int) -> int:
    """Return how many rows of a passage were computed, those of its links left out."""
    start = course.request.passages[index].start
    return bisect_left(course.rows, start + len(course.prompt.passages[index].token_ids)) - bisect_left(course.rows, start)


def _why_computed(course: Course, item: Load | Compute, missed: str) -> tuple[str, str]:
    """Return why a passage was computed, in a word and in a sentence: its load failed, the store lacks it, or the plan says so."""
    failure = course.failures.get(item.index)
    if failure == SOONER:
        return "sooner", f"{SOONER} than loading; the plan was: {item.why}"
    if failure:
        return "failed", f"loading failed ({failure}), so it was computed"
    if isinstance(item, Load) and item.patch_rows == course.request.passages[item.index].n_tokens:
        return "policy", "the policy computes all its rows again, so its chunk was not loaded"
    if isinstance(item, Load):
        return "sooner", f"it was computed before its turn to be loaded came; the plan was: {item.why}"
    if missed:
        return missed, f"the store lacks it ({missed}: {meaning_of(missed)}); {item.why}"
    return "chosen", item.why
