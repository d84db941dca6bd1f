"""What can be configured about a worker, alone or together with a store in one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kvclient.channel import ClientTLS, is_loopback
from kvclient.cluster.members import Members
from kvclient.cluster.store import MAX_REPLICAS
from kvstore.core.errors import ConfigError
from kvstore.server.config import AuthConfig, EncryptionConfig, QuotaConfig, ServerConfig, StoreConfig, TiersConfig
from kvstore.store.redis.plaintext import check_plaintext
from kvworker.ray.settings import RaySettings
from kvworker.reference import MODEL_FOLDER
from kvworker.settings import WorkerSettings

ENV_PREFIX = "LARDER_WORKER__"
WORKER_ADDRESS = "127.0.0.1:7421"


@dataclass(frozen=True)
class ModelConfig:
    """The model: a local directory ("" for the small reference model that comes with Larder), device, dtype and CPU threads.

    Empty or 0 leaves the choice to the engine: CUDA where there is one, the checkpoint's dtype, torch's own threads.
    """

    directory: str = ""
    device: str = ""
    dtype: str = ""
    threads: int = 0

    @property
    def path(self) -> Path:
        """The model's directory."""
        return Path(self.directory).expanduser() if self.directory else MODEL_FOLDER

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ConfigError(f"model.threads must be 0 or more, got {self.threads}")


@dataclass(frozen=True)
class StoreAddress:
    """The store that a worker of its own process uses; its callers' tokens are passed on to it.

    `address` is host:port, several of them with commas between them, or dns:name:port for all that a name stands for; `replicas` is how
    many of several stores get each chunk, 1 or 2. Without `ca` it is spoken to in plain text, which needs `server.allow_plaintext` off
    loopback.
    """

    address: str = "127.0.0.1:7420"
    timeout_s: float = 2.0
    replicas: int = 1
    ca: str = ""
    cert: str = ""
    key: str = ""
    server_name: str = ""

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise ConfigError(f"store.timeout_s must be above 0, got {self.timeout_s}")
        most = 1 if Members.parse(self.address).is_one else MAX_REPLICAS
        if not 1 <= self.replicas <= most:
            raise ConfigError(f"store.replicas must be within 1 and {most} for store.address {self.address!r}, got {self.replicas}")
        if (self.cert or self.key) and not (self.ca and self.cert and self.key):
            raise ConfigError("store.cert and store.key are set together, and store.ca with them: plain text has no certificates")

    @property
    def tls(self) -> ClientTLS | None:
        """How to connect; None for plain text."""
        return ClientTLS(self.ca, self.cert, self.key, self.server_name) if self.ca else None

    @property
    def is_plain_to_others(self) -> bool:
        """Whether tokens and chunks cross a network in plain text."""
        stores = Members.parse(self.address).listed
        return not self.ca and not (stores and all(is_loopback(store) for store in stores))


@dataclass(frozen=True)
class WorkerConfig:
    """`larder worker`: a worker that uses a store elsewhere. `data_dir` and `auth` mean what they mean for a store.

    `ray` counts for a pool of them on a Ray cluster only (`--ray`); `server` is then the one that callers reach.
    """

    data_dir: str = ""
    server: ServerConfig = field(default_factory=lambda: ServerConfig(address=WORKER_ADDRESS))
    auth: AuthConfig = field(default_factory=AuthConfig)
    store: StoreAddress = field(default_factory=StoreAddress)
    model: ModelConfig = field(default_factory=ModelConfig)
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    ray: RaySettings = field(default_factory=RaySettings)

    def __post_init__(self) -> None:
        if not self.server.allow_plaintext:
            check_plaintext("worker.catalog_url", self.worker.catalog_url)
        if self.store.is_plain_to_others and not self.server.allow_plaintext:
            raise ConfigError(
                f"store.address {self.store.address} leads to other machines in plain text, and callers' tokens with it: set store.ca, "
                "or server.allow_plaintext = true where the network itself is private"
            )

    @property
    def local(self) -> StoreConfig:
        """What a store's configuration has in common: the data directory, the listener and the tokens."""
        return StoreConfig(self.data_dir, self.server, TiersConfig(), self.auth)


@dataclass(frozen=True)
class UpConfig:
    """`larder up`: store and worker in one process, on one address."""

    data_dir: str = ""
    server: ServerConfig = field(default_factory=ServerConfig)
    tiers: TiersConfig = field(default_factory=TiersConfig)
    auth: AuthConfig = field(default_factory=AuthConfig)
    quotas: QuotaConfig = field(default_factory=QuotaConfig)
    encryption: EncryptionConfig = field(default_factory=EncryptionConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    worker: WorkerSettings = field(default_factory=WorkerSettings)

    def __post_init__(self) -> None:
        if not self.server.allow_plaintext:
            check_plaintext("tiers.redis.url", self.tiers.redis.url)
            check_plaintext("worker.catalog_url", self.worker.catalog_url)

    @property
    def local(self) -> StoreConfig:
        """The store's part."""
        return StoreConfig(self.data_dir, self.server, self.tiers, self.auth, self.quotas, self.encryption)


Flags = Mapping[str, object]
