"""What can be configured: a TOML file, over it LARDER_STORE__... environment variables, over them the command line.

`LARDER_STORE__TIERS__MEMORY__CAPACITY=2GiB` sets `capacity` of the table `[tiers.memory]`. A key that is not known is refused.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from kvclient.address import check_address
from kvclient.channel import is_loopback
from kvstore.core.errors import ConfigError
from kvstore.core.tokens import default_data_dir, default_tokens_file
from kvstore.server.settings import SIZE, Tree, build, overlay, place
from kvstore.store.redis.plaintext import check_plaintext

T = TypeVar("T")

ENV_PREFIX = "LARDER_STORE__"


@dataclass(frozen=True)
class TLSConfig:
    """PEM files: the server's certificate chain and key, and the authority that clients' certificates must come from ("" for none)."""

    cert: str = ""
    key: str = ""
    client_ca: str = ""

    def __post_init__(self) -> None:
        if bool(self.cert) != bool(self.key) or (self.client_ca and not self.cert):
            raise ConfigError("tls needs cert and key together, and both of them before client_ca")


@dataclass(frozen=True)
class LanesConfig:
    """The ways of chunks beside gRPC.

    Parameters
    ----------
    shm : str
        Share the memory tier with clients of the same user on the same machine, who can then read every chunk in it, whatever its tenant:
        "auto" where the tokens file names one tenant only, "on" always, "off" never.
    shm_directory : str
        Where the Unix socket is made; "" is a fresh directory among the temporary ones.
    tcp : bool
        Listen beside gRPC, on the same host, under the same TLS.
    tcp_port : int
        0 takes a free one.
    socket_buffer : int
        Send and receive buffer of a TCP connection, at least bandwidth times round trip; 0 leaves it to the system.
    max_connections : int
        Connections per lane; when one more comes, the one that was idle for longest is closed.
    """

    shm: str = "auto"
    shm_directory: str = ""
    tcp: bool = True
    tcp_port: int = 0
    socket_buffer: int = field(default=0, metadata=SIZE)
    max_connections: int = 1024

    def __post_init__(self) -> None:
        if self.shm not in ("auto", "on", "off"):
            raise ConfigError(f"server.lanes.shm is auto, on or off, got {self.shm!r}")
        if not 0 <= self.tcp_port < 65536 or self.socket_buffer < 0 or self.max_connections < 1:
            raise ConfigError(
                f"server.lanes needs tcp_port below 65536, socket_buffer of at least 0 and max_connections above 0, got {self}"
            )


@dataclass(frozen=True)
class ServerConfig:
    """How a gRPC server of ours listens and what it lets clients hold.

    Parameters
    ----------
    address : str
        host:port; port 0 takes a free one. A host that is not loopback needs `tls` or `allow_plaintext`.
    max_workers : int
        Calls served at once; up to four times as many wait.
    max_inflight_bytes : int
        Chunk bytes that all transfers together may hold; a transfer beyond it is refused and may be tried again.
    max_blob_bytes : int
        Largest chunk.
    idle_timeout_s : float
        Longest silence of a client in the middle of a call; a busy server cuts silent calls after 1 s.
    drain_s : float
        How long running calls may take to finish when the server stops.
    metrics_address : str
        host:port of metrics, health and console over HTTP; "" for none, port 0 takes a free one and prints it. Off loopback it is under
        the same TLS, or needs `allow_plaintext`, and its console needs the token of an admin.
    metrics_tenants : int
        Tenants that metrics name; those that call later are counted together as "other".
    log_format : str
        Of the lines on standard error: "text", or "json", one object per line.
    """

    address: str = "127.0.0.1:7420"
    max_workers: int = 64
    max_inflight_bytes: int = field(default=1 << 30, metadata=SIZE)
    max_blob_bytes: int = field(default=512 << 20, metadata=SIZE)
    idle_timeout_s: float = 10.0
    drain_s: float = 30.0
    metrics_address: str = "127.0.0.1:0"
    metrics_tenants: int = 32
    log_format: str = "text"
    allow_plaintext: bool = False
    tls: TLSConfig = field(default_factory=TLSConfig)
    lanes: LanesConfig = field(default_factory=LanesConfig)

    def __post_init__(self) -> None:
        for name in ("max_workers", "max_inflight_bytes", "max_blob_bytes", "idle_timeout_s", "drain_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"server.{name} must be positive, got {getattr(self, name)}")
        if self.max_blob_bytes > self.max_inflight_bytes:
            raise ConfigError(f"server.max_blob_bytes ({self.max_blob_bytes}) exceeds max_inflight_bytes ({self.max_inflight_bytes})")
        self._check_addresses()
        if not (is_loopback(self.address) or self.tls.cert or self.allow_plaintext):
            raise ConfigError(
                f"server.address {self.address} can be reached from other machines: set server.tls.cert and server.tls.key, "
                "or server.allow_plaintext = true where the network itself is private"
            )
        if self.metrics_address and not (is_loopback(self.metrics_address) or self.tls.cert or self.allow_plaintext):
            raise ConfigError(f"server.metrics_address {self.metrics_address} can be reached from other machines: see server.address")
        if self.metrics_tenants < 0 or self.log_format not in ("text", "json"):
            raise ConfigError(f"server needs metrics_tenants of at least 0 and log_format text or json, got {self}")

    def _check_addresses(self) -> None:
        """Raise ConfigError for what is no address."""
        for name in ("address", "metrics_address"):
            try:
                if name == "address" or self.metrics_address:
                    check_address(getattr(self, name), least_port=0)
            except ConfigError as error:
                raise ConfigError(f"server.{name}: {error}") from error


@dataclass(frozen=True)
class MemoryConfig:
    """The memory tier; `eviction` (value, lru, lfu or arc) is the policy of every tier that does not evict by itself."""

    capacity: int = field(default=512 << 20, metadata=SIZE)
    eviction: str = "value"


@dataclass(frozen=True)
class DiskConfig:
    """The disk tier.

    Parameters
    ----------
    capacity : int
        0 turns it off.
    directory : str
        "" is `chunks` in the data directory.
    fsync : str
        "always" or "never".
    direct : str
        Reads and writes past the page cache: "auto", "on" or "off"; see `kvstore.store.disk`.
    """

    capacity: int = field(default=10 << 30, metadata=SIZE)
    directory: str = ""
    fsync: str = "always"
    direct: str = "auto"


@dataclass(frozen=True)
class RedisConfig:
    """The Redis tier.

    Parameters
    ----------
    url : str
        redis://, rediss:// or unix://; "" turns the tier off. Plain text to another machine needs `server.allow_plaintext`.
    timeout_s : float
        Longest wait for an exchange, and for the tier in a get or lookup.
    ttl_s : int
        Seconds after which a record expires; 0 keeps it until Redis evicts it.
    cluster : str
        "on" for Redis Cluster, else "off".
    connections : int
        Most connections to a server.
    ahead : int
        Bytes of a record that are under way ahead of what is awaited; 0 chooses by whether the server is on this machine.
    socket_buffer : int
        Buffers of each TCP connection; 0 chooses too.
    """

    url: str = field(default="", repr=False)  # it may hold a password
    timeout_s: float = 0.5
    ttl_s: int = 0
    cluster: str = "off"
    connections: int = 4
    ahead: int = field(default=0, metadata=SIZE)
    socket_buffer: int = field(default=0, metadata=SIZE)

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or self.ttl_s < 0 or self.cluster not in ("on", "off"):
            raise ConfigError(f"tiers.redis needs timeout_s above 0, ttl_s of at least 0 and cluster on or off, got {self}")


@dataclass(frozen=True)
class TiersConfig:
    """The tiers, fast to slow; `write_queue` bounds the bytes that wait for each slower one, `max_lease_s` what a lookup may protect."""

    memory: MemoryConfig = field(default_factory=MemoryConfig)
    disk: DiskConfig = field(default_factory=DiskConfig)
    redis: RedisConfig = field(default_factory=RedisConfig)
    write_queue: int = field(default=256 << 20, metadata=SIZE)
    max_lease_s: float = 60.0


@dataclass(frozen=True)
class AuthConfig:
    """Who may call, and what storage keys derive from.

    Parameters
    ----------
    tokens_file : str
        Lines "tenant token" or "tenant token admin", readable by the owner only, read again when it changes; "" is `tokens` in the data
        directory, written at the first start.
    secret_file : str
        The master secret, 64 hex digits; "" is `secret` in the data directory, written at the first start. Servers that share a Redis
        tier need the same one.
    jwks_file : str
        Public keys (a JWKS) whose JSON Web Tokens are accepted too, read again when it changes; "" for none.
    issuer, audience : str
        What such a token has to be of and for.
    tenant_claim, role_claim : str
        The claims that name the tenant, and "admin" where it is one.
    leeway_s : float
        How far the issuer's clock and ours may differ, at most 60.
    audit_file : str
        Where admin calls and refused callers leave a JSON line; "" is the log, under "larder.audit".
    """

    tokens_file: str = ""
    secret_file: str = ""
    jwks_file: str = ""
    issuer: str = ""
    audience: str = ""
    tenant_claim: str = "tenant"
    role_claim: str = "role"
    leeway_s: float = 10.0
    audit_file: str = ""

    def __post_init__(self) -> None:
        if self.jwks_file and not (self.issuer and self.audience):
            raise ConfigError("auth.jwks_file needs auth.issuer and auth.audience, or tokens made for others would be accepted here")
        if not 0 <= self.leeway_s <= 60:
            raise ConfigError(f"auth.leeway_s must be 0 to 60, got {self.leeway_s}")
        if not (self.tenant_claim and self.role_claim):
            raise ConfigError("auth.tenant_claim and auth.role_claim each name a claim")


@dataclass(frozen=True)
class QuotaConfig:
    """What each tenant may use at most; 0 is no limit. What goes beyond is refused with a hint when to come again.

    Parameters
    ----------
    stored : int
        Bytes of chunks in memory and on disk; beyond it the tenant's own oldest chunks make room.
    requests_per_s : float
        Calls; each chunk that is read or scrubbed counts as one, and so do 256 that are looked up or deleted.
    burst : int
        Calls at once behind a pause; 0 takes one second's worth.
    calls : int
        Calls over gRPC at once, each of which holds one of `server.max_workers` threads until a moment behind its answer.
    transfers : int
        Chunks that are sent or received at once, on every lane but shared memory.
    inflight : int
        Their bytes; one chunk may have more.
    exempt : str
        Tenants without any of these limits, with commas between them.
    """

    stored: int = field(default=0, metadata=SIZE)
    requests_per_s: float = 0.0
    burst: int = 0
    calls: int = 0
    transfers: int = 0
    inflight: int = field(default=0, metadata=SIZE)
    exempt: str = ""

    def __post_init__(self) -> None:
        if wrong := [f"{name} = {value}" for name, value in vars(self).items() if name != "exempt" and value < 0]:
            raise ConfigError(f"quotas are 0, for none, or more, got {', '.join(wrong)}")

    def of(self, tenant: str) -> QuotaConfig:
        """Return what counts for a tenant."""
        return QuotaConfig() if tenant in self.exempt.replace(" ", "").split(",") else self


@dataclass(frozen=True)
class EncryptionConfig:
    """Encryption of what disk and Redis keep: `keys_file` has lines "id key", the last of which encrypts; "" keeps chunks as they are.

    It is readable by the owner only and read again when it changes. Servers that share a Redis tier need the same keys.
    """

    keys_file: str = ""


@dataclass(frozen=True)
class StoreConfig:
    """Everything about a store; `data_dir` "" is $XDG_STATE_HOME/larder, else ~/.local/state/larder."""

    data_dir: str = ""
    server: ServerConfig = field(default_factory=ServerConfig)
    tiers: TiersConfig = field(default_factory=TiersConfig)
    auth: AuthConfig = field(default_factory=AuthConfig)
    quotas: QuotaConfig = field(default_factory=QuotaConfig)
    encryption: EncryptionConfig = field(default_factory=EncryptionConfig)

    def __post_init__(self) -> None:
        if not self.server.allow_plaintext:
            check_plaintext("tiers.redis.url", self.tiers.redis.url)

    @property
    def data_path(self) -> Path:
        """The data directory."""
        return Path(self.data_dir).expanduser() if self.data_dir else default_data_dir(os.environ)

    @property
    def chunks_path(self) -> Path:
        """Where the disk tier keeps its files."""
        return Path(self.tiers.disk.directory).expanduser() if self.tiers.disk.directory else self.data_path / "chunks"

    @property
    def tokens_path(self) -> Path:
        """The tokens file."""
        return Path(self.auth.tokens_file).expanduser() if self.auth.tokens_file else default_tokens_file(self.data_path)

    @property
    def secret_path(self) -> Path:
        """The file of the master secret."""
        return Path(self.auth.secret_file).expanduser() if self.auth.secret_file else self.data_path / "secret"

    @property
    def epochs_path(self) -> Path:
        """Where invalidations are kept."""
        return self.data_path / "epochs"

    @property
    def name_path(self) -> Path:
        """Where the store's own name is kept."""
        return self.data_path / "name"


def load_config(
    file: Path | None = None, environ: Mapping[str, str] | None = None, flags: Mapping[str, object] | None = None
) -> StoreConfig:
    """Return a store's configuration; see `load`."""
    return load(StoreConfig, (ENV_PREFIX,), file, environ, flags)


def load(
    cls: type[T],
    prefixes: Sequence[str],
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> T:
    """Return a configuration of dataclass `cls` from a file, over it the variables that start with one of `prefixes`, over them flags.

    `flags` maps dotted keys such as "tiers.memory.capacity" to values. Raises ConfigError with the place and the known keys for anything
    unknown or out of range.
    """
    tree: Tree = read_toml(file) if file else {}
    for name, value in (os.environ if environ is None else environ).items():
        for prefix in prefixes:
            if name.startswith(prefix):
                place(tree, name[len(prefix) :].lower().split("__"), value)
    for key, flag in (flags or {}).items():
        overlay(tree, key, flag)
    return build(cls, tree)


def read_toml(file: Path) -> Tree:
    """Read a TOML file; one that is missing, malformed or no text raises ConfigError."""
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"configuration {file}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"configuration {file}: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"configuration {file} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from error
