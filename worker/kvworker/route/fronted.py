"""A front on the wire: what looks after the workers of a board, and the server that their callers reach."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from kvclient.channel import ClientTLS
from kvstore.server.access.audit import open_audit
from kvstore.server.access.auth import open_authenticator
from kvstore.server.config import AuthConfig, ServerConfig
from kvstore.server.grpc_server import RpcServer
from kvstore.server.observe.opening import observing
from kvstore.server.observe.server_source import ServerSource
from kvworker.route.board import Board
from kvworker.route.front import Front
from kvworker.route.links import Links, Watch
from kvworker.serve.registration import registration


class Fronted:
    """Serves from when it is made until it is closed, which finishes what runs. An address that is taken raises ConfigError.

    `where` says in words where its metrics and console are, "" for nowhere.

    Parameters
    ----------
    auth, tokens : AuthConfig, Path
        Who may call, and the tokens file, as the workers know them.
    board : Board
        The workers; they may join and leave at any time.
    tls : ClientTLS or None
        How to encrypt what goes to them; None sends plain text.
    """

    def __init__(self, config: ServerConfig, auth: AuthConfig, tokens: Path, board: Board, tls: ClientTLS | None = None) -> None:
        authenticate, audit = open_authenticator(tokens, auth), open_audit(auth)
        links = Links(tls)
        self._watch, self._server, self._pages = Watch(board, links), RpcServer(config, audit), ExitStack()
        self._front = Front(board, links, authenticate)
        self._server.start([registration(self._front)])
        self.where = self._pages.enter_context(observing("front", self._server, [ServerSource(self._server)], authenticate))
        self._watch.start()

    @property
    def address(self) -> str:
        """Where it listens, with the port that was bound."""
        return self._server.address

    def close(self) -> bool:
        """Take no new calls, let running ones finish for a while; return whether all did."""
        is_clean = self._server.drain()
        self._pages.close()
        self._front.close()
        self._watch.stop()
        return is_clean
