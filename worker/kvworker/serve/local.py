"""Store and worker in one process, without a port: what the demo, the benchmarks and tests use, and what `larder up` serves."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from kvstore.core.errors import MissingExtraError
from kvstore.core.tokens import DEFAULT_TENANT
from kvstore.server.opening import open_store
from kvworker.engine.engine import Engine
from kvworker.serve.config import ModelConfig, UpConfig
from kvworker.serve.runtime import Caller, Worker

_PROBE_TENANT = "calibration"


class Local:
    """An open store, the worker beside it, and the default tenant as a caller; a context manager that closes both.

    Raises what opening a store and loading a model raise.
    """

    def __init__(self, config: UpConfig, is_shared: bool = False) -> None:
        engine = open_engine(config.model, config.local.data_path)
        self.service = open_store(config.local, is_shared)
        try:
            self.worker = Worker(engine, config.worker, self.service.bind(_PROBE_TENANT), config.local.data_path, config.model.path)
        except BaseException:
            self.service.close()
            raise
        self.caller = Caller(DEFAULT_TENANT, self.service.bind(DEFAULT_TENANT))

    def close(self) -> None:
        """Finish what is queued and flush the store."""
        self.worker.close()
        self.service.close()

    def __enter__(self) -> Local:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_engine(model: ModelConfig, data_path: Path) -> Engine:
    """Load the model that a configuration names; digests of large weights are remembered in the data directory."""
    try:
        from kvworker.engine.engine_hf import load_engine
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"a model needs {error.name}: pip install 'kv-larder[worker]'") from error
    cache = data_path / "worker"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    return load_engine(model.path, model.device or None, model.dtype or None, model.threads or None, cache)
