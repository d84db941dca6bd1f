"""`larder up`, `worker`, `route`, `demo`, `calibrate`, `size` and `bench`; what needs torch is imported when a command runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_MODEL_KEYS = {
    "model": "model.directory",
    "device": "model.device",
    "threads": "model.threads",
    "codec": "worker.codec",
    "policy": "worker.policy",
    "planner": "worker.planner",
    "data_dir": "data_dir",
}
_SERVER_KEYS = {
    "address": "server.address",
    "allow_plaintext": "server.allow_plaintext",
    "metrics": "server.metrics_address",
    "log_format": "server.log_format",
}
BENCHMARKS = (  # known without importing them, and torch with them
    *("cluster", "codecs", "context", "edits", "eviction", "faults", "kernels", "planner", "quotas", "race"),
    *("reuse", "routing", "scbench", "stripes", "transport"),
)
_UNTIL = "Ends with SIGTERM or Ctrl-C. What has no flag is a setting of --config; --print-config shows all of them."
_STORE_KEYS = {"memory": "tiers.memory.capacity", "disk": "tiers.disk.capacity", "redis": "tiers.redis.url"}


def register(subparsers: Subparsers) -> None:
    """Add the worker's commands."""
    up = subparsers.add_parser(
        "up", help="run store and worker in one process", description=f"Run store and worker in one process. {_UNTIL}"
    )
    _add_model_flags(up)
    _add_server_flags(up)
    _add_store_flags(up)
    up.set_defaults(run=_up)
    worker = subparsers.add_parser(
        "worker", help="run a worker that uses a store elsewhere", description=f"Run a worker that uses a store elsewhere. {_UNTIL}"
    )
    _add_model_flags(worker)
    _add_server_flags(worker)
    worker.add_argument("--store", metavar="ADDRESS", help="the stores: host:port, several with commas, or dns:name:port")
    worker.add_argument("--ray", nargs="?", const="local", metavar="ADDRESS", help="run a pool on a Ray cluster: auto, or one of its own")
    worker.add_argument("--workers", type=int, metavar="N", help="with --ray, how many (default: 2)")
    worker.set_defaults(run=_worker)
    _register_route(subparsers)
    demo = subparsers.add_parser("demo", help="ingest the example documents and ask questions about them")
    _add_model_flags(demo)
    _add_store_flags(demo)
    demo.add_argument("--examples", type=Path, metavar="DIR", help="folder with documents/*.txt and questions.json")
    demo.add_argument("--json", action="store_true", help="print one JSON object per line")
    demo.set_defaults(run=_demo)
    _register_calibrate(subparsers)
    _register_size(subparsers)
    bench = subparsers.add_parser("bench", help="measure, and print one row per point")
    bench.add_argument("name", help=f"a benchmark: {', '.join(BENCHMARKS[:-1])} or {BENCHMARKS[-1]}")
    bench.add_argument("--quick", action="store_true", help="end within a minute on two cores")
    bench.add_argument("--json", action="store_true", help="print one JSON object per line")
    bench.add_argument("--sizes", metavar="LIST", help="sizes to measure, such as 512,1024 tokens or 1MiB,8MiB")
    bench.add_argument("--csv", type=Path, metavar="FILE", help="append the rows to this file")
    bench.add_argument("--model", metavar="DIR", help='model directory; "random-100m" for random weights of that size')
    bench.add_argument("--examples", type=Path, metavar="DIR", help="folder with documents/*.txt and questions.json")
    bench.set_defaults(run=_bench)


def _register_route(subparsers: Subparsers) -> None:
    """Add `larder route`."""
    text = f"Serve several workers at one address: a question goes where most of its passages are at hand. {_UNTIL}"
    parser = subparsers.add_parser("route", help="serve several workers at one address", description=text)
    _add_server_flags(parser)
    parser.add_argument("--worker", action="append", metavar="HOST:PORT", help="a worker; repeat it for each")
    parser.add_argument("--data-dir", metavar="DIR", help="where the tokens are")
    parser.set_defaults(run=_route)


def _register_calibrate(subparsers: Subparsers) -> None:
    """Add `larder calibrate`."""
    text = "Ask the model questions over stored passages in every way, and keep what each way loses for the policy auto."
    parser = subparsers.add_parser("calibrate", help="measure what reuse costs a model in quality", description=text)
    parser.add_argument("--model", metavar="DIR", help="a local Hugging Face model directory (default: the reference model)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch")
    parser.add_argument("--codec", help="the codec that the worker stores with")
    parser.add_argument(
        "--beside", action="append", metavar="CODEC", help="one to measure beside it; repeat it for more (default: every preset)"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="the worker's data directory, where the result is kept")
    parser.add_argument("--text", type=Path, nargs="+", metavar="PATH", help="text files or folders to look at the model's KV over")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep it here; larder-quality.json beside the weights goes with them")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file; LARDER_... variables and flags win over it")
    parser.add_argument("--seconds", type=float, metavar="S", help="end after about so many seconds (default: 300)")
    parser.add_argument("--quick", action="store_true", help="ask fewer questions, of the worker's own codec")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.set_defaults(run=_calibrate)


def _register_size(subparsers: Subparsers) -> None:
    """Add `larder size`."""
    text = "Say how many bytes the KV of passages takes with each codec, from the model's config.json alone."
    parser = subparsers.add_parser("size", help="how much memory or disk passages take", description=text)
    parser.add_argument("--model", metavar="DIR", help="a local Hugging Face model directory (default: the reference model)")
    parser.add_argument("--passages", type=int, default=1, metavar="N", help="how many passages (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=256, metavar="N", help="tokens of each (default: %(default)s)")
    parser.add_argument("--codec", help="one codec (default: every preset)")
    parser.add_argument("--dtype", help="of the KV (default: the model's): float32, bfloat16 or float16")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.set_defaults(run=_size)


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="DIR", help="a local Hugging Face model directory (default: the reference model)")
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch")
    parser.add_argument("--codec", help="how chunks are stored: raw, lossless, near-lossless, balanced, small, tiny, or stages as int8")
    parser.add_argument("--policy", help="recompute policy where a question names none, such as first_k:k=8")
    parser.add_argument("--planner", help="planner where a question names none: min_cost, always_load, always_compute")
    parser.add_argument("--data-dir", metavar="DIR", help="where chunks, tokens, the secret and the catalog are kept")


def _add_server_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file; LARDER_... variables and flags win over it")
    parser.add_argument("--address", metavar="HOST:PORT", help="where to listen; port 0 takes a free one")
    parser.add_argument("--allow-plaintext", action="store_true", default=None, help="serve other machines without TLS")
    parser.add_argument("--metrics", metavar="HOST:PORT", help="metrics and console (default: a free port of loopback; empty for none)")
    parser.add_argument("--log-format", choices=("text", "json"), help="lines on standard error for people, or JSON objects")
    parser.add_argument("--print-config", action="store_true", help="print the effective configuration as TOML and stop")


def _add_store_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--memory", metavar="SIZE", help="capacity of the memory tier, such as 2GiB")
    parser.add_argument("--disk", metavar="SIZE", help="capacity of the disk tier; 0 turns it off")
    parser.add_argument("--redis", metavar="URL", help="use a Redis tier")


def flags_of(args: argparse.Namespace, keys: Mapping[str, str]) -> dict[str, object]:
    """Return the configuration keys that flags set."""
    return {key: getattr(args, flag) for flag, key in keys.items() if getattr(args, flag, None) is not None}


def _up(args: argparse.Namespace) -> int:
    from kvworker.serve.processes import up

    return up(args.config, flags_of(args, {**_MODEL_KEYS, **_SERVER_KEYS, **_STORE_KEYS}), args.print_config)


def _worker(args: argparse.Namespace) -> int:
    flags = flags_of(args, {**_MODEL_KEYS, **_SERVER_KEYS, "store": "store.address", "workers": "ray.workers"})
    if args.ray:
        from kvworker.ray.command import pool

        return pool(args.config, flags, args.print_config, args.ray)
    from kvworker.serve.processes import worker

    return worker(args.config, flags, args.print_config)


def _route(args: argparse.Namespace) -> int:
    from kvworker.route.command import route

    flags = flags_of(args, {**_SERVER_KEYS, "data_dir": "data_dir"})
    return route(args.config, {**flags, **({"workers": ",".join(args.worker)} if args.worker else {})}, args.print_config)


def _demo(args: argparse.Namespace) -> int:
    from kvworker.demo.command import run

    return run(args.examples, flags_of(args, {**_MODEL_KEYS, **_STORE_KEYS}), args.json)


def _calibrate(args: argparse.Namespace) -> int:
    from kvworker.quality.command import run

    return run(args, flags_of(args, _MODEL_KEYS))


def _size(args: argparse.Namespace) -> int:
    from kvworker.size import run

    return run(args)


def _bench(args: argparse.Namespace) -> int:
    from kvworker.bench.command import run

    return run(args)
