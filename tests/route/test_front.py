"""A front hands every call on, and what one worker does not finish another one does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from kvclient import Larder
from kvclient.usual import Usual
from kvstore.core.errors import AuthError, CapacityError, InvalidInputError, KVError, NotFoundError, TierUnavailableError
from kvworker.route.choose import choose
from tests.route.fakes import ANSWER, TOKEN, Script, fronted


def test_an_answer_comes_through_with_its_report() -> None:
    """Tokens in order, and the report behind them."""
    with fronted(Script("a")) as scene:
        answer = scene.larder.ask(["1" * 8], "?").finish()
    assert [token.id for token in answer.tokens] == list(ANSWER)
    assert answer.report.request_id == "a-1"


def test_the_same_passages_go_to_the_same_worker_and_others_spread() -> None:
    """What was answered once is at hand there."""
    scripts = [Script("a"), Script("b")]
    with fronted(*scripts, decide=choose) as scene:
        for _ in range(3):
            for n in range(20):
                scene.ask(f"{n:08x}")
    seen = [{tuple(request.passage_ids) for request in script.asked} for script in scripts]
    assert not seen[0] & seen[1]
    assert min(map(len, seen)) >= 3


def test_the_caller_s_token_reaches_the_worker_and_nothing_else_of_the_call() -> None:
    """The worker knows tenants by tokens; what clients invent stays outside."""
    script = Script("a")
    with fronted(script) as scene:
        scene.ask("1" * 8)
    assert script.metadata[0]["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("failing", ["die", TierUnavailableError("no store"), CapacityError("full")], ids=["dead", "no store", "full"])
@pytest.mark.parametrize("at", range(len(ANSWER)))
def test_what_a_worker_does_not_finish_another_one_does(failing: KVError | str, at: int) -> None:
    """From the first token to the last, nothing is said twice and nothing is left out."""
    scripts = Script("a", failing=failing, fails_at=at), Script("b")
    with fronted(*scripts) as scene:
        assert scene.ask("1" * 8) == list(ANSWER)
    assert [len(script.asked) for script in scripts] == [1, 1]


def test_a_worker_that_answers_differently_does_not_finish_another_s_answer() -> None:
    """Half of one answer and half of another is no answer."""
    with fronted(Script("a", failing="die", fails_at=2), Script("b", tokens=(5, 8, 11))) as scene:
        answer = scene.larder.ask(["1" * 8], "?")
        assert [next(answer).id, next(answer).id] == [5, 7]
        with pytest.raises(KVError, match="another one answers differently"):
            answer.finish()


@pytest.mark.parametrize(
    "error", [InvalidInputError("too long"), NotFoundError("no passage"), KVError("a bug")], ids=lambda e: type(e).__name__
)
def test_an_error_that_no_other_worker_would_mend_is_the_answer(error: KVError) -> None:
    """It is not tried again, and keeps its class and words."""
    scripts = [Script("a", failing=error), Script("b", failing=error)]
    with fronted(*scripts) as scene, pytest.raises(type(error), match=str(error)):
        scene.ask("1" * 8)
    assert sum(len(script.asked) for script in scripts) == 1


def test_a_worker_that_goes_silent_is_given_up_and_its_calls_are_done_by_another() -> None:
    """Its connection stands, but nothing comes."""
    hung = Script("a", failing="hang", fails_at=1)
    with fronted(hung, Script("b")) as scene:
        answer = scene.larder.ask(["1" * 8], "?")
        assert next(answer).id == ANSWER[0]
        assert hung.entered.wait(10)
        scene.board.give_up(("a", scene.servers["a"].address))
        assert [token.id for token in answer.finish().tokens] == list(ANSWER)


def test_a_worker_that_is_late_with_its_first_token_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one is asked too; the late one is told to stop, and given nothing more until it is seen alive."""
    monkeypatch.setattr(Usual, "late_s", 0.05)
    hung = Script("a", failing="hang")
    with fronted(hung, Script("b")) as scene:
        assert scene.ask("1" * 8) == list(ANSWER)
        assert hung.ended.wait(10)


def test_a_late_worker_is_waited_for_where_it_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nobody to ask instead, and it keeps its other questions."""
    monkeypatch.setattr(Usual, "late_s", 0.05)
    hung = Script("a", failing="hang")
    with fronted(hung) as scene, ThreadPoolExecutor(1) as threads:
        asked = threads.submit(scene.ask, "1" * 8)
        assert hung.entered.wait(10)
        with pytest.raises(TimeoutError):
            asked.result(0.2)
        hung.gate.set()
        assert asked.result(10) == list(ANSWER)


def test_a_caller_who_leaves_ends_the_call_at_the_worker() -> None:
    """The worker computes for nobody."""
    script = Script("a", failing="hang", fails_at=1)
    with fronted(script) as scene:
        answer = scene.larder.ask(["1" * 8], "?")
        next(answer)
        assert script.entered.wait(10)
        answer.close()
        assert script.ended.wait(10)


def test_a_call_that_answers_once_is_done_by_another_worker_too() -> None:
    """Whichever is asked first."""
    with fronted(Script("a", failing="die"), Script("b")) as scene:
        assert scene.larder.info().model == "b"


def test_an_ingest_goes_on_where_its_worker_died() -> None:
    """Every passage is answered once, in order."""
    with fronted(Script("a", failing="die", fails_at=2), Script("b")) as scene:
        done = scene.larder.ingest("a.txt", ["x", "y", "z"])
    assert [passage.index for passage in done.passages] == [0, 1, 2]


def test_an_answer_is_explained_by_whoever_gave_it() -> None:
    """Only that worker knows what it decided; without a name it is the caller's latest."""
    with fronted(Script("a"), Script("b"), decide=choose) as scene:
        for n in range(8):
            answer = scene.larder.ask([f"{n:08x}"], "?").finish()
            by = answer.report.request_id.split("-")[0]
            assert scene.larder.explain(answer.report.request_id).lines == (f"by {by}",)
            assert scene.larder.explain().lines == (f"by {by}",)


def test_a_caller_without_identity_is_refused_at_the_front() -> None:
    """No worker hears of it."""
    script = Script("a")
    with fronted(script) as scene, Larder(scene.larder.address, "a-wrong-token-0123456789") as stranger, pytest.raises(AuthError):
        stranger.ask(["1" * 8], "?").finish()
    assert not script.asked


def test_without_any_worker_a_call_fails_within_its_deadline() -> None:
    """It waits for one as long as it may."""
    with fronted() as scene, pytest.raises(KVError):
        scene.larder.ask(["1" * 8], "?", timeout_s=0.3).finish()
