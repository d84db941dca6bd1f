"""`larder demo`: run the demo embedded and show it."""

from __future__ import annotations

from pathlib import Path

from kvclient.cli.output import JsonLines, Number, Output, Tables
from kvclient.cli.progress import progress
from kvstore.core.units import format_nbytes
from kvstore.server.config import ENV_PREFIX as STORE_PREFIX
from kvstore.server.config import load
from kvworker.demo.corpus import Examples, read_examples, shipped_examples
from kvworker.demo.demo import Comparison, compare, ingest, totals
from kvworker.serve.config import ENV_PREFIX, Flags, UpConfig
from kvworker.serve.local import Local

_DATA_DIR = ".larder/demo"


def run(examples_dir: Path | None, flags: Flags, as_json: bool) -> int:
    """Ingest the examples, ask their questions, and print a line per question and the totals; return the exit status."""
    examples = read_examples(examples_dir or shipped_examples())
    output: Output = JsonLines() if as_json else Tables()
    config = load(UpConfig, (STORE_PREFIX, ENV_PREFIX), None, None, {"data_dir": _DATA_DIR, **flags})
    with Local(config) as local:
        n_computed, nbytes = _ingest(local, examples)
        output.text(
            f"{len(examples.documents)} documents, {examples.n_passages} passages: {n_computed} computed now, "
            f"{examples.n_passages - n_computed} found in the store; {format_nbytes(nbytes)} stored\n"
        )
        rows = []
        with progress("asking", len(examples.questions)) as advance:
            for row in compare(local.worker, local.caller, examples):
                rows.append(row)
                output.record(_record(row))
                advance(1)
    output.table([_record(row) for row in rows], _COLUMNS)
    output.text("\n" + totals(rows))
    return 0


def _ingest(local: Local, examples: Examples) -> tuple[int, int]:
    """Return how many passages were computed and how many bytes all of them take."""
    n_computed = nbytes = 0
    with progress("reading", examples.n_passages) as advance:
        for done in ingest(local.worker, local.caller, examples):
            n_computed += done.computed
            nbytes += done.nbytes
            advance(1)
    return n_computed, nbytes


def _record(row: Comparison) -> dict[str, object]:
    """Return one question's result for programs."""
    return {
        "question": row.example.question,
        "kind": row.example.kind,
        "passages": len(row.example.context),
        "answer": row.stored,
        "expected": row.example.answer,
        "full_prefill_answer": row.computed,
        "agrees": row.agrees,
        "ttft_computed_s": row.computed_ttft_s,
        "ttft_s": row.report.ttft_s,
        "tokens_loaded": row.report.tokens_loaded,
        "tokens_recomputed": row.report.tokens_recomputed,
        "nbytes": row.nbytes,
        "tiers": row.tiers,
    }


_COLUMNS = {
    "question": lambda r: r["question"],
    "passages": lambda r: r["passages"],
    "answer": lambda r: r["answer"],
    "expected": lambda r: r["expected"],
    "agrees": lambda r: "yes" if r["agrees"] else f"no ({r['full_prefill_answer']})",
    "computed": lambda r: Number(f"{r['ttft_computed_s'] * 1e3:.1f} ms"),
    "from store": lambda r: Number(f"{r['ttft_s'] * 1e3:.1f} ms"),
    "loaded": lambda r: r["tokens_loaded"],
    "recomputed": lambda r: r["tokens_recomputed"],
    "bytes": lambda r: Number(format_nbytes(r["nbytes"])),
    "tier": lambda r: r["tiers"],
}
