"""`larder ask "question" --context ID,...`: answer a question over stored passages."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from kvclient import Answer
from kvclient.cli import exits
from kvclient.cli.options import Session, common_options, count
from kvclient.cli.output import Output, output_of
from kvclient.cli.progress import waiting
from kvclient.cli.reports import show_report
from kvclient.requests import ASK_AS

if TYPE_CHECKING:
    from kvclient.cli.plugins import Subparsers


def register(subparsers: Subparsers) -> None:
    """Add the verb."""
    parser = subparsers.add_parser("ask", parents=[common_options(120.0)], help="answer a question over stored passages")
    parser.add_argument("question")
    parser.add_argument(
        "--context",
        metavar="ID[,ID...]",
        action="append",
        required=True,
        help="passages in the order to read them: ids, starts of ids of 8 digits or more, or source#index; may be given again",
    )
    parser.add_argument(
        "--read-as",
        choices=ASK_AS,
        default=ASK_AS[0],
        help="readings that may be loaded: the best that is stored, those in their document, or those alone (default: %(default)s)",
    )
    parser.add_argument("--max-tokens", type=count, default=64, metavar="N", help="longest answer (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampling (default: %(default)s)")
    parser.add_argument("--policy", default="", help='what is computed again, such as "first_k:k=8" (default: the worker\'s)')
    parser.add_argument("--planner", default="", help='what decides, such as "always_compute" (default: the worker\'s)')
    parser.add_argument(
        "--ttft-target",
        type=float,
        default=0.0,
        metavar="S",
        help='seconds to the first token that policy "auto" spends on care while it is predicted to keep to them (default: the worker\'s)',
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print tokens as they come, then what was done per passage."""
    output = output_of(args)
    names = [name.strip() for group in args.context for name in group.split(",") if name.strip()]
    with Session(args) as session:
        answer = session.larder.ask(
            names,
            args.question,
            max_tokens=args.max_tokens,
            temperature=args.temperature,
            seed=args.seed,
            policy=args.policy,
            planner=args.planner,
            read_as=args.read_as,
            ttft_target_s=args.ttft_target,
        )
        print_tokens(answer, output)
    output.record({"kind": "report", "text": answer.text, **asdict(answer.report)})
    output.text("\n")
    show_report(answer.report, output)
    return exits.OK


def print_tokens(answer: Answer, output: Output) -> None:
    """Print an answer's tokens as they come."""
    with answer, waiting("reading") as stop_waiting:
        for token in answer:
            stop_waiting()
            output.text(token.text, end="")
            output.record({"kind": "token", **asdict(token)})
