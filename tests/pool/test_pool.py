"""Workers on Ray die, their nodes go, they are drained, all under load: every answer is the computed one and no request fails."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.worker.waiting import until

if TYPE_CHECKING:
    from tests.pool.scene import Outcome, Scene

BACK_S = 90.0  # a model starts again, on a machine that answers questions meanwhile

pytestmark = pytest.mark.timeout(300)


def both_serve(scene: Scene) -> None:
    """Wait until there are two workers."""
    scene.pool.resize(2)
    until(lambda: len(scene.serving()) == 2, BACK_S)


def settled(scene: Scene, outcome: Outcome, n_workers: int = 2) -> None:
    """Wait until so many workers serve, and answers came from then on."""
    until(lambda: len(scene.serving()) == n_workers, BACK_S)
    n_before = outcome.right.total()
    until(lambda: outcome.right.total() >= n_before + 6 or bool(outcome.wrong), BACK_S)


def test_workers_have_a_node_each_and_answer_what_was_ingested_through_either(scene: Scene) -> None:
    """Whoever read a document, all of them answer for it."""
    both_serve(scene)
    assert len({scene.call(name, "node") for name in scene.pool.actors}) == 2
    with scene.load() as outcome:
        until(lambda: len(outcome.right) == len(scene.questions) or bool(outcome.wrong), BACK_S)
    assert not outcome.wrong


def test_a_worker_killed_under_load_fails_no_request_and_is_back(scene: Scene) -> None:
    """Its process gets SIGKILL in the middle of answers; Ray starts it again, at another address."""
    both_serve(scene)
    name = min(scene.serving())
    before = dict(scene.board.places())[name]
    with scene.load() as outcome:
        until(lambda: outcome.right.total() >= 6)
        os.kill(scene.call(name, "process"), signal.SIGKILL)
        outcome.calm()
        until(lambda: dict(scene.board.places())[name] != before, BACK_S)
        settled(scene, outcome)
    assert not outcome.wrong


def test_a_node_removed_under_load_fails_no_request_and_its_worker_moves(scene: Scene) -> None:
    """There is room for it on another one."""
    both_serve(scene)
    nodes = {node.node_id: node for node in scene.cluster.worker_nodes}  # the head stays
    name, node_id = next((name, at) for name in sorted(scene.serving()) if (at := scene.call(name, "node")) in nodes)
    with scene.load() as outcome:
        until(lambda: outcome.right.total() >= 6)
        before = dict(scene.board.places())[name]
        scene.cluster.remove_node(nodes[node_id], allow_graceful=False)
        outcome.calm()
        until(lambda: dict(scene.board.places())[name] != before, BACK_S)
        settled(scene, outcome)
    assert not outcome.wrong
    assert scene.call(name, "node") != node_id


def test_a_worker_drained_under_load_fails_no_request(scene: Scene) -> None:
    """It finishes what it has, gets nothing more and ends."""
    both_serve(scene)
    name = min(scene.serving())
    with scene.load() as outcome:
        until(lambda: outcome.right.total() >= 6)
        assert scene.pool.drain(name)
        settled(scene, outcome, 1)
    assert not outcome.wrong
    assert name not in scene.pool.actors
