"""`larder store`: a store server as a process of its own."""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from pathlib import Path

from kvstore.core.allocator import keep_large_blocks
from kvstore.server.access.auth import open_authenticator
from kvstore.server.config import StoreConfig, load_config
from kvstore.server.logs import log_to_stderr
from kvstore.server.observe.opening import observing
from kvstore.server.observe.server_source import ServerSource
from kvstore.server.observe.source import Source
from kvstore.server.observe.store_source import StoreSource
from kvstore.server.opening import describe, open_store, serve_store
from kvstore.server.settings import to_toml

logger = logging.getLogger(__name__)

_TEXT = "Run a store server. Ends with SIGTERM or Ctrl-C. What has no flag is a setting of --config; --print-config shows all of them."
# Flag -> the configuration key that it sets.
_KEYS = {
    "address": "server.address",
    "data_dir": "data_dir",
    "memory": "tiers.memory.capacity",
    "disk": "tiers.disk.capacity",
    "redis": "tiers.redis.url",
    "allow_plaintext": "server.allow_plaintext",
    "metrics": "server.metrics_address",
    "log_format": "server.log_format",
}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `store` command."""
    parser = subparsers.add_parser("store", help="run a store server", description=_TEXT)
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file; LARDER_STORE__... variables and flags win over it")
    parser.add_argument("--address", metavar="HOST:PORT", help="where to listen; port 0 takes a free one")
    parser.add_argument("--data-dir", metavar="DIR", help="where chunks, tokens and the secret are kept")
    parser.add_argument("--memory", metavar="SIZE", help="capacity of the memory tier, such as 2GiB")
    parser.add_argument("--disk", metavar="SIZE", help="capacity of the disk tier; 0 turns it off")
    parser.add_argument("--redis", metavar="URL", help="use a Redis tier")
    parser.add_argument("--allow-plaintext", action="store_true", default=None, help="serve other machines without TLS")
    parser.add_argument("--metrics", metavar="HOST:PORT", help="metrics and console (default: a free port of loopback; empty for none)")
    parser.add_argument("--log-format", choices=("text", "json"), help="lines on standard error for people, or JSON objects")
    parser.add_argument("--print-config", action="store_true", help="print the effective configuration as TOML and stop")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns 0 after an orderly stop."""
    config = config_of(args)
    if args.print_config:
        print(to_toml(config))
        return 0
    keep_large_blocks()
    log_to_stderr(config.server.log_format)
    return serve(config)


def config_of(args: argparse.Namespace) -> StoreConfig:
    """Return the configuration of file, environment and flags."""
    flags = {key: getattr(args, flag) for flag, key in _KEYS.items() if getattr(args, flag) is not None}
    return load_config(args.config, flags=flags)


def stop_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set from now on. Call it from the main thread."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def serve(config: StoreConfig) -> int:
    """Serve until SIGTERM or SIGINT, then finish what runs, flush, and return 0. Call it from the main thread."""
    stop = stop_signals()
    authenticate = open_authenticator(config.tokens_path, config.auth)
    service = open_store(config, is_shared=config.server.lanes.shm != "off")
    try:
        server = serve_store(config, service, authenticate)
        sources: list[Source] = [StoreSource(service, config.server.metrics_tenants), ServerSource(server, service.lane_calls)]
        with observing("store", server, sources, authenticate) as where:
            print(f"larder store listens on {server.address} ({describe(config)}){where}", flush=True)
            stop.wait()
            logger.info("draining: calls in progress have %.0f s", config.server.drain_s)
            server.drain()
    finally:
        service.close()
    return 0
