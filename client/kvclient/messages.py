"""Between the messages of the context service and the client's records."""

from __future__ import annotations

from kvclient.records import AnswerExplanation, Info, IngestedPassage, Passage, PassageReport, Report, ResolvedPassage
from kvclient.wire import key_from_wire
from kvproto.v1 import context_pb2

_READ_AS = {context_pb2.READ_AS_DOCUMENT: "document", context_pb2.READ_AS_ALONE: "alone"}
_STEPS = ("lookup", "plan", "queue", "load", "prefill")


def passage_from(message: context_pb2.PassageRef) -> Passage:
    """Return the record of a passage."""
    return Passage(message.id, message.source, message.index, message.n_tokens, message.preview)


def ingested_from(message: context_pb2.IngestResponse) -> IngestedPassage:
    """Return what became of one passage."""
    return IngestedPassage(passage_from(message.passage), message.computed, message.nbytes, message.n_passages, message.tokens_read)


def report_from(message: context_pb2.Report) -> Report:
    """Return the report of an answer."""
    return Report(
        request_id=message.request_id,
        passages=tuple(_passage_report(row) for row in message.passages),
        planner=message.planner,
        policy=message.policy,
        ttft_split_s={step: message.ttft_split_s[step] for step in sorted(message.ttft_split_s, key=_place_of_step)},
        ttft_s=message.ttft_s,
        predicted_ttft_s=message.predicted_ttft_s,
        tokens_loaded=message.tokens_loaded,
        tokens_recomputed=message.tokens_recomputed,
        tokens_generated=message.tokens_generated,
        quality=message.quality,
        target=message.target,
    )


def _place_of_step(step: str) -> tuple[int, str]:
    """Return where a step stands in the time to the first token; the wire does not keep the order."""
    return (_STEPS.index(step) if step in _STEPS else len(_STEPS)), step


def _passage_report(row: context_pb2.PassageReport) -> PassageReport:
    """Return one passage's part of a report."""
    return PassageReport(
        passage=passage_from(row.passage),
        action=row.action,
        tier=row.tier,
        variant=row.variant,
        nbytes=row.nbytes,
        seconds=row.seconds,
        why=row.why,
        rows_recomputed=row.rows_recomputed,
        read_as=_READ_AS.get(row.read_as, ""),
        reason=row.reason,
    )


def resolved_from(message: context_pb2.ResolvedPassage) -> ResolvedPassage:
    """Return where a passage's chunk is found; a malformed key raises FormatError."""
    return ResolvedPassage(passage_from(message.passage), key_from_wire(message.key), tuple(message.token_ids))


def explanation_from(message: context_pb2.ExplainAnswerResponse) -> AnswerExplanation:
    """Return what was decided for an earlier question."""
    return AnswerExplanation(report_from(message.report), tuple(message.lines))


def info_from(message: context_pb2.InfoResponse) -> Info:
    """Return what a worker says about itself."""
    return Info(
        model=message.model,
        namespace=message.namespace,
        device=message.device,
        codec=message.codec,
        policy=message.policy,
        planner=message.planner,
        max_context_tokens=message.max_context_tokens,
        store_address=message.store_address,
    )
