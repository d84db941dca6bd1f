"""How many workers there should be."""

from __future__ import annotations

from kvworker.ray.settings import RaySettings


def wanted_workers(settings: RaySettings, n_workers: int, n_waiting: int) -> int:
    """Return how many workers a pool of `n_workers` with `n_waiting` requests should have: one more, one less, or as many as now.

    Between the two borders nothing changes, so that a steady load does not start and stop models in turn.
    """
    most = max(settings.workers, settings.most_workers)
    if n_waiting > n_workers * settings.waiting_per_worker:
        return min(most, n_workers + 1)
    if n_waiting <= (n_workers - 1) * settings.waiting_per_worker / 2:
        return max(settings.workers, n_workers - 1)
    return n_workers
