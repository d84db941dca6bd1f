"""Channels to servers of ours: options, TLS, and the bearer token of every call."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from kvstore.core.errors import AuthError, ConfigError
from kvstore.core.tokens import DEFAULT_TENANT, default_data_dir, default_tokens_file, read_tokens

TOKEN_VARIABLE = "LARDER_TOKEN"
_TOKEN = re.compile(r"[ -~]*")
Metadata = tuple[tuple[str, str], ...]

Options = tuple[tuple[str, str | int], ...]

_OPTIONS: Options = (
    ("grpc.max_send_message_length", 8 << 20),
    ("grpc.max_receive_message_length", 8 << 20),
    ("grpc.http2.max_frame_size", 1 << 20),
    ("grpc.http2.lookahead_bytes", 16 << 20),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.write_buffer_size", 4 << 20),
    ("grpc.experimental.tcp_read_chunk_size", 4 << 20),
    ("grpc.experimental.tcp_min_read_chunk_size", 1 << 20),
    ("grpc.experimental.tcp_max_read_chunk_size", 4 << 20),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # or a connection that is cut off without a word stands for a minute more
    # A server that comes back is found within two seconds, not two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
)
# A flipped bit of a header would stay in the table that both ends keep of headers, and fail every later call. TLS notices it.
_PLAIN_OPTIONS: Options = (("grpc.http2.hpack_table_size.encoder", 0), ("grpc.http2.hpack_table_size.decoder", 0))


@dataclass(frozen=True)
class ClientTLS:
    """PEM files: the authority of the server's certificate ("" for the system's), the client's own certificate and key ("" for none)."""

    ca: str = ""
    cert: str = ""
    key: str = ""
    server_name: str = ""  # the name in the server's certificate where it differs from the address

    def __post_init__(self) -> None:
        if bool(self.cert) != bool(self.key):
            raise ConfigError("a client's certificate and key are set together")

    def context(self) -> ssl.SSLContext:
        """Return the same for a plain socket; a file that is missing, or is not PEM, raises ConfigError."""
        try:
            context = ssl.create_default_context(cafile=str(Path(self.ca).expanduser()) if self.ca else None)
            if self.cert:
                context.load_cert_chain(Path(self.cert).expanduser(), Path(self.key).expanduser())
        except OSError as error:
            raise ConfigError(f"the files for TLS can't be used: {error}") from error
        return context


def open_channel(address: str, tls: ClientTLS | None = None) -> grpc.Channel:
    """Return a channel to host:port; it connects with the first call. A missing file of TLS raises ConfigError."""
    return opener(tls)(address)


def opener(tls: ClientTLS | None) -> Callable[[str], grpc.Channel]:
    """Return what opens channels with the PEM files as they are now; a missing one raises ConfigError."""
    if tls is None:
        return lambda address: grpc.insecure_channel(address, channel_options())
    credentials, options = channel_credentials(tls), channel_options(tls)
    return lambda address: grpc.secure_channel(address, credentials, options)


def channel_options(tls: ClientTLS | None = None) -> Options:
    """Return the options of every channel of ours; `tls` None is one in plain text."""
    if tls is None:
        return (*_OPTIONS, *_PLAIN_OPTIONS)
    name: Options = (("grpc.ssl_target_name_override", tls.server_name),) if tls.server_name else ()
    return (*_OPTIONS, *name)


def channel_credentials(tls: ClientTLS) -> grpc.ChannelCredentials:
    """Read the PEM files; one that is missing, or is not PEM, raises ConfigError."""
    ca, key, cert = map(_read_pem, (tls.ca, tls.key, tls.cert))
    tls.context()  # gRPC would say nothing but that it can't connect
    return grpc.ssl_channel_credentials(ca, key, cert)


def bearer(token: str) -> Metadata:
    """Return the metadata that says who calls; a token that no header can hold raises AuthError."""
    if not _TOKEN.fullmatch(token):
        raise AuthError("the token has a line break, or another character that no header can hold: pass the token alone")
    return (("authorization", f"Bearer {token}"),)


def discover_token(address: str, token: str = "", data_dir: Path | None = None, environ: Mapping[str, str] | None = None) -> str:
    """Return the token for a server: the given one, else $LARDER_TOKEN, else, on this machine, that of the store's tokens file.

    From the file it takes the tenant "default", or the only tenant there is. Raises AuthError that says how to give a token.
    """
    environ = os.environ if environ is None else environ
    if given := token or environ.get(TOKEN_VARIABLE, ""):
        return given
    file = default_tokens_file(data_dir or default_data_dir(environ))
    if not is_loopback(address):
        raise AuthError(f"no token for {address}: pass one of its tokens file, or set {TOKEN_VARIABLE}")
    if not file.exists():
        raise AuthError(f"no token for {address}: no server was started here, {file} is missing: run `larder up`, or set {TOKEN_VARIABLE}")
    credentials = read_tokens(file)
    own = [c for c in credentials if c.tenant == DEFAULT_TENANT] or (credentials if len({c.tenant for c in credentials}) == 1 else [])
    if not own:
        raise AuthError(f"{file} has several tenants and none is called {DEFAULT_TENANT}: choose one with {TOKEN_VARIABLE}")
    return own[0].token


def is_loopback(address: str) -> bool:
    """Tell whether `address` is on this machine."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost" or address.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_pem(path: str) -> bytes | None:
    """Read a PEM file; None for no path."""
    try:
        return Path(path).expanduser().read_bytes() if path else None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
