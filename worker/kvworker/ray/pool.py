"""Keep a number of worker actors on a Ray cluster, and say on a board where they are."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError

from kvstore.core.errors import TierUnavailableError
from kvworker.ray.actor import WorkerActor
from kvworker.ray.scale import wanted_workers
from kvworker.route.board import Board
from kvworker.serve.config import WorkerConfig

_log = logging.getLogger(__name__)

_EVERY_S = 0.5
_CALLS_AT_ONCE = 4  # of an actor's methods: one that waits must not hide where it is
_STEADY_S = 10.0  # between two changes of the number of workers


class Pool:
    """Actors that Ray starts again wherever there is room, from `start` until `close`; the driver has to be connected to Ray.

    Ray and this pool share the work: Ray restarts an actor whose process or node died; the pool asks every actor where it is, and puts
    that on the board. Whether it answers requests is the front's to find out.
    """

    def __init__(self, config: WorkerConfig, board: Board) -> None:
        self.board = board
        self._config = config
        self._actors: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}  # by name: what the actor was asked for its address
        self._n_started, self._changed_at_s = 0, 0.0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ray-pool", daemon=True)

    def start(self) -> None:
        """Start the actors and wait until one serves.

        Raises ConfigError for one that cannot start as it is configured, and TierUnavailableError if none does in `ray.start_s`.
        """
        for _ in range(self._config.ray.workers):
            self._add()
        ends_s = time.monotonic() + self._config.ray.start_s
        while not self.board.places():
            if time.monotonic() > ends_s:
                raise TierUnavailableError(
                    f"no worker serves after {self._config.ray.start_s:.0f} s; does the cluster have {self._needs()}?"
                )
            self._look(_EVERY_S)
        self._thread.start()

    @property
    def actors(self) -> dict[str, Any]:
        """The handles of the actors by name."""
        with self._lock:
            return dict(self._actors)

    def drain(self, name: str) -> bool:
        """Take a worker away: it finishes what it has for a while, and then ends; return whether it finished."""
        self.board.drain(name)
        is_idle = self.board.wait_idle(name, self._config.server.drain_s)
        with self._lock:
            actor = self._actors.pop(name, None)
            self._asked.pop(name, None)
        self.board.leave(name)
        if actor is not None:
            self._end(actor)
        return is_idle

    def resize(self, n_workers: int) -> None:
        """Have so many workers: start new ones, or drain the youngest."""
        while len(self.actors) < n_workers:
            self._add()
        while len(self.actors) > n_workers:
            self.drain(list(self.actors)[-1])

    def close(self) -> None:
        """Drain every worker at once."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        threads = [threading.Thread(target=self.drain, args=(name,)) for name in self.actors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(_EVERY_S):
            try:
                for name in self._look(0.0):
                    self._replace(name)
                self._scale()
            except RayError:
                _log.exception("the pool could not be looked after; it is tried again")

    def _add(self) -> None:
        """Start one more actor."""
        needs = self._config.ray
        with self._lock:
            name = f"worker-{self._n_started}"
            self._n_started += 1
            self._actors[name] = (
                ray.remote(WorkerActor)
                .options(
                    num_cpus=needs.cpus,
                    num_gpus=needs.gpus,
                    resources=dict(needs.custom) or None,
                    scheduling_strategy="SPREAD",
                    max_restarts=-1,
                    max_concurrency=_CALLS_AT_ONCE,
                )
                .remote(self._config)
            )

    def _look(self, wait_s: float) -> dict[str, RayError]:
        """Ask where actors are, put what they say on the board, and return those that are no more, and why."""
        for name, actor in self.actors.items():
            if name not in self._asked:
                self._asked[name] = actor.address.remote()
        answers = list(self._asked.values())
        ready, _ = ray.wait(answers, num_returns=len(answers), timeout=wait_s) if answers else ([], [])
        dead: dict[str, RayError] = {}
        for name in [name for name, answer in self._asked.items() if answer in ready]:
            try:
                self._put(name, ray.get(self._asked.pop(name)))
            except ActorDiedError as error:
                dead[name] = error
            except RayActorError as error:
                _log.warning("%s is away, and started again: %s", name, error)
        return dead

    def _put(self, name: str, address: str) -> None:
        """Say on the board where a worker is, unless it was drained meanwhile."""
        with self._lock:
            if name in self._actors:
                self.board.join(name, address)

    def _replace(self, name: str) -> None:
        """Start another actor for one that Ray does not start again."""
        _log.error("%s could not be started again; another one takes its place", name)
        with self._lock:
            is_missed = self._actors.pop(name, None) is not None
        self.board.leave(name)
        if is_missed:
            self._add()

    def _scale(self) -> None:
        """Start or stop a worker where the queue says so, and the last change was a while ago."""
        states, now_s = self.board.states({}), time.monotonic()
        n_wanted = wanted_workers(self._config.ray, len(self.actors), sum(state.n_waiting for state in states))
        if n_wanted != len(self.actors) and now_s - self._changed_at_s > _STEADY_S:
            _log.info("%d workers from now on", n_wanted)
            self._changed_at_s = now_s
            self.resize(n_wanted)

    def _end(self, actor: Any) -> None:
        """Close the worker in an actor, then the actor."""
        try:
            ray.get(actor.stop.remote(), timeout=self._config.server.drain_s)
        except RayError as error:
            _log.warning("an actor did not stop by itself: %s", error)
        ray.kill(actor)

    def _needs(self) -> str:
        needs = self._config.ray
        return f"{needs.cpus:g} CPUs, {needs.gpus:g} GPUs{' and ' + needs.resources if needs.resources else ''} free on a node"
