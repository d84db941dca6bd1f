"""`larder route`: several workers, which run wherever they run, behind one address."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kvclient.address import check_address
from kvclient.channel import ClientTLS, is_loopback
from kvstore.core.errors import ConfigError
from kvstore.core.units import format_count
from kvstore.server.cli import stop_signals
from kvstore.server.config import AuthConfig, ServerConfig, StoreConfig, TiersConfig, load
from kvstore.server.logs import log_to_stderr
from kvstore.server.settings import SIZE, to_toml
from kvworker.route.board import Board
from kvworker.route.fronted import Fronted

_log = logging.getLogger(__name__)

ENV_PREFIX = "LARDER_ROUTE__"
ADDRESS = "127.0.0.1:7422"


@dataclass(frozen=True)
class RouteConfig:
    """`larder route`. `data_dir`, `server` and `auth` mean what they mean for a worker, whose tokens file this one has to share.

    Parameters
    ----------
    workers : str
        Their addresses, "host:port,host:port".
    device_bytes : int
        What each of them keeps decoded, `worker.device_bytes` there.
    ca, cert, key, server_name : str
        Where workers serve TLS: the authority of their certificates, the certificate and key that this front shows where they ask for one,
        and the name in theirs where it differs from the address. Without `ca` it is plain text, which needs `server.allow_plaintext` off
        loopback.
    """

    data_dir: str = ""
    server: ServerConfig = field(default_factory=lambda: ServerConfig(address=ADDRESS))
    auth: AuthConfig = field(default_factory=AuthConfig)
    workers: str = ""
    device_bytes: int = field(default=256 << 20, metadata=SIZE)
    ca: str = ""
    cert: str = ""
    key: str = ""
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.cert or self.key) and not (self.ca and self.cert and self.key):
            raise ConfigError("cert and key are set together, and ca with them: plain text has no certificates")
        for address in self._named:
            check_address(address, otherwise=", or several with commas between them")
        if (far := self.plain_to_others) and not self.server.allow_plaintext:
            raise ConfigError(
                f"worker {far} is on another machine, and callers' tokens would go there in plain text: set ca, "
                "or server.allow_plaintext = true where the network itself is private"
            )

    @property
    def _named(self) -> list[str]:
        return [address.strip() for address in self.workers.split(",") if address.strip()]

    @property
    def plain_to_others(self) -> str:
        """The first worker that tokens and texts would reach over a network in plain text; "" for none."""
        return "" if self.ca else next((address for address in self._named if not is_loopback(address)), "")

    @property
    def tls(self) -> ClientTLS | None:
        """How to speak to workers; None for plain text."""
        return ClientTLS(self.ca, self.cert, self.key, self.server_name) if self.ca else None

    @property
    def addresses(self) -> list[str]:
        """The workers' addresses; raises ConfigError where there is none."""
        if not self._named:
            raise ConfigError('there is nobody to route to: name workers with --worker HOST:PORT or workers = "host:port,host:port"')
        return self._named


def route(file: Path | None, flags: Mapping[str, object], only_print: bool) -> int:
    """Serve until SIGTERM or SIGINT; return the exit status."""
    config = load(RouteConfig, (ENV_PREFIX,), file, None, flags)
    if only_print:
        print(to_toml(config))
        return 0
    log_to_stderr(config.server.log_format)
    if config.plain_to_others:
        _log.warning("worker %s is spoken to in plain text: allow_plaintext is set", config.plain_to_others)
    stop, board = stop_signals(), Board(config.device_bytes)
    for address in config.addresses:
        board.join(address, address)
    tokens = StoreConfig(config.data_dir, config.server, TiersConfig(), config.auth).tokens_path
    front = Fronted(config.server, config.auth, tokens, board, config.tls)
    print(f"larder route listens on {front.address} ({format_count(len(board.places()), 'worker')}){front.where}", flush=True)
    stop.wait()
    front.close()
    return 0
