"""How a worker behaves; checked when built."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from kvstore.core.errors import ConfigError
from kvstore.server.settings import SIZE


@dataclass(frozen=True)
class WorkerSettings:
    """Defaults of requests, and bounds.

    Parameters
    ----------
    codec : str
        Preset or spec of the codec that new chunks are stored with.
    policy, planner : str
        Used where a request names none. The policy "auto" is the cheapest that was measured to keep to the quality budget; of a model that
        nobody measured it takes nothing but exact prefixes from the store.
    quality_budget : float
        Highest share of answers that may be lost against full prefill where the policy is "auto".
    ttft_target_s : float
        Where the policy is "auto", the most careful policy inside the budget whose predicted time to the first token, with its error, keeps
        to this is taken, the cheapest if none does; 0 always takes the cheapest.
    question_template : str
        What stands behind the passages; "{question}" is replaced.
    window_tokens : int
        Most tokens of a document that are read at once; 0 means the model's context.
    max_new_tokens : int
        Longest answer.
    device_bytes, push_bytes : int
        Budgets of decoded chunks in device memory, and of KV that waits to be stored.
    catalog_url : str
        The Redis in which several workers keep one catalog of passages (redis://, rediss:// or unix://); "" keeps a file of one's own in
        the data directory. Plain text to another machine needs `server.allow_plaintext`.
    catalog_bytes : int
        Most bytes that one tenant's tokens take in the catalog of passages, 4 B each.
    load_timeout_s, load_slack_s : float
        Longest fetch of a stored chunk; and how much later than by computing alone the first token may come because a chunk does not: most
        of it is waited before computing begins.
    load_threads, restore_passages : int
        Chunks fetched at once; passages that wait at most to be computed and stored again after the store lost them.
    trace_file, trace_bytes : str, int
        Where lengths, times and opaque keys of answered requests are recorded for `larder simulate`, and how long that file may grow; ""
        records nothing. No text and no token is recorded.
    """

    codec: str = "raw"
    policy: str = "auto"
    planner: str = "min_cost"
    quality_budget: float = 0.01
    ttft_target_s: float = 0.0
    question_template: str = "{question}"
    window_tokens: int = 0
    max_new_tokens: int = 1024
    device_bytes: int = field(default=256 << 20, metadata=SIZE)
    push_bytes: int = field(default=256 << 20, metadata=SIZE)
    catalog_url: str = field(default="", repr=False)  # it may hold a password
    catalog_bytes: int = field(default=1 << 30, metadata=SIZE)
    load_timeout_s: float = 5.0
    load_slack_s: float = 0.25
    load_threads: int = 4
    restore_passages: int = 256
    trace_file: str = ""
    trace_bytes: int = field(default=256 << 20, metadata=SIZE)

    def __post_init__(self) -> None:
        for name in ("window_tokens", "device_bytes", "push_bytes", "catalog_bytes", "restore_passages", "trace_bytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"worker.{name} must be 0 or more, got {getattr(self, name)}")
        if min(self.max_new_tokens, self.load_threads) < 1 or not (self.load_timeout_s > 0 and self.load_slack_s > 0):
            raise ConfigError("worker.max_new_tokens, load_threads, load_timeout_s and load_slack_s must be above 0")
        if not 0 <= self.quality_budget <= 1:
            raise ConfigError(f"worker.quality_budget is a share of answers from 0 to 1, got {self.quality_budget}")
        if not 0 <= self.ttft_target_s < math.inf:
            raise ConfigError(f"worker.ttft_target_s must be 0 or more seconds, got {self.ttft_target_s}")
        if self.question_template.count("{question}") != 1:
            raise ConfigError(f"worker.question_template must contain {{question}} once, got {self.question_template!r}")
