"""What both clients do against a server that behaves, and against one that does not."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from kvclient import Retry
from kvstore.core.errors import (
    AuthError,
    CapacityError,
    ClosedError,
    DeadlineError,
    FormatError,
    InvalidInputError,
    KVError,
    NotFoundError,
    TierUnavailableError,
    UnsupportedError,
)
from tests.client.fake_server import WORDS, FakeServer
from tests.client.twins import Twin

Connect = Callable[..., Twin]
TEXTS = ["Thornham stores marble", "It sells the marble"]


def test_ingest_returns_the_passages_in_order(server: FakeServer, connect: Connect) -> None:
    """Ids are what questions name later."""
    twin = connect(server)
    done = twin.do(twin.larder, "ingest", "notes.txt", TEXTS)
    assert [(p.source, p.index, p.n_tokens) for p in done.passages] == [("notes.txt", 0, 3), ("notes.txt", 1, 4)]
    assert done.ids == [p.id for p in done.passages]
    assert done.n_computed == 2
    assert done.nbytes == sum(map(len, server.blobs.values()))


def test_a_second_ingest_computes_nothing(server: FakeServer, connect: Connect) -> None:
    """The counts tell what was new."""
    twin = connect(server)
    twin.do(twin.larder, "ingest", "notes.txt", TEXTS)
    assert twin.do(twin.larder, "ingest", "notes.txt", TEXTS, "alone").n_computed == 0


def test_an_ingest_counts_the_tokens_that_were_read_for_it(server: FakeServer, connect: Connect) -> None:
    """What an edit costs."""
    twin = connect(server)
    assert twin.do(twin.larder, "ingest", "notes.txt", TEXTS).tokens_read == 7
    assert twin.do(twin.larder, "ingest", "notes.txt", [TEXTS[0], "It sells nothing"]).tokens_read == 3


@pytest.mark.parametrize("read_as", ["document", "alone"])
def test_a_question_says_which_readings_it_allows_and_the_report_which_were_used(
    server: FakeServer, connect: Connect, read_as: str
) -> None:
    """Per passage."""
    twin = connect(server)
    ids = twin.do(twin.larder, "ingest", "notes.txt", TEXTS, "both").ids
    answer = twin.do(twin.do(twin.larder, "ask", ids, "What?", read_as=read_as), "finish")
    assert [row.read_as for row in answer.report.passages] == [read_as] * 2
    assert "read alone: cheaper" in str(answer.report) or read_as == "document"


def test_a_question_says_when_its_first_token_is_due(server: FakeServer, connect: Connect) -> None:
    """The report says what that changed."""
    twin = connect(server)
    ids = twin.do(twin.larder, "ingest", "notes.txt", TEXTS).ids
    report = twin.do(twin.do(twin.larder, "ask", ids, "What?", ttft_target_s=0.25), "finish").report
    assert server.requests["Ask"].ttft_target_s == 0.25
    assert report.target == "a first token in 0.25 s"
    assert report.target in str(report)


def test_a_forgotten_document_is_unknown(server: FakeServer, connect: Connect) -> None:
    """And only that one."""
    twin = connect(server)
    twin.do(twin.larder, "ingest", "a.txt", TEXTS)
    twin.do(twin.larder, "ingest", "b.txt", ["Something else"])
    assert [twin.do(twin.larder, "forget", source) for source in ("a.txt", "c.txt")] == [2, 0]
    assert [p.source for p in twin.do(twin.larder, "passages")] == ["b.txt"]
    with pytest.raises(InvalidInputError, match="source must be"):
        twin.do(twin.larder, "forget", " ")


def test_ingest_each_yields_passages_as_they_are_stored(server: FakeServer, connect: Connect) -> None:
    """A progress bar needs them one by one, and the total with the first."""
    twin = connect(server)
    rows = list(twin.each(twin.do(twin.larder, "ingest_each", "notes.txt", TEXTS)))
    assert [(row.passage.index, row.n_passages, row.is_computed) for row in rows] == [(0, 2, True), (1, 2, True)]


def test_an_answer_yields_its_tokens_in_order_and_then_has_text_and_report(server: FakeServer, connect: Connect) -> None:
    """Tokens come first, the report last."""
    twin = connect(server)
    ids = twin.do(twin.larder, "ingest", "notes.txt", TEXTS).ids
    answer = twin.do(twin.larder, "ask", ids[::-1], "What?", policy="first_k:k=8")
    assert [str(token) for token in twin.each(answer)] == list(WORDS)
    assert answer.text == "".join(WORDS)
    assert [row.passage.id for row in answer.report.passages] == ids[::-1]
    assert answer.report.policy == "first_k:k=8"
    assert list(answer.report.ttft_split_s.items()) == [("lookup", 0.125), ("plan", 0.0), ("load", 0.25), ("prefill", 0.5)]


def test_finish_waits_for_the_whole_answer(server: FakeServer, connect: Connect) -> None:
    """Who does not stream needs one call."""
    twin = connect(server)
    ids = twin.do(twin.larder, "ingest", "notes.txt", TEXTS).ids
    answer = twin.do(twin.do(twin.larder, "ask", ids, "What?"), "finish")
    assert [token.id for token in answer.tokens] == [0, 1, 2, 3]
    assert answer.report.request_id == "r-1"


def test_the_report_of_an_unfinished_answer_is_refused(server: FakeServer, connect: Connect) -> None:
    """Half a report would be believed."""
    twin = connect(server)
    answer = twin.do(twin.larder, "ask", ["notes.txt#0"], "What?")
    with pytest.raises(InvalidInputError, match="behind the last token"):
        _ = answer.report


def test_a_closed_answer_ends_with_an_error_and_not_as_if_it_were_complete(server: FakeServer, connect: Connect) -> None:
    """What was cut short is not an answer."""
    twin = connect(server)
    ids = twin.do(twin.larder, "ingest", "notes.txt", TEXTS).ids
    answer = twin.do(twin.larder, "ask", ids, "What?")
    tokens = twin.each(answer)
    next(tokens)
    twin.do(answer, "close")
    with pytest.raises(ClosedError, match="ask again"):
        next(tokens)


def test_a_stalled_server_ends_in_a_deadline_error_in_time(server: FakeServer, connect: Connect) -> None:
    """The caller's deadline holds whatever the server does."""
    server.stalls.add("Ask")
    twin = connect(server)
    began = time.monotonic()
    with pytest.raises(DeadlineError):
        twin.do(twin.do(twin.larder, "ask", ["notes.txt#0"], "What?", timeout_s=0.2), "finish")
    assert time.monotonic() - began < 2


def test_a_call_without_its_own_deadline_takes_the_clients(server: FakeServer, connect: Connect) -> None:
    """No call is without a deadline."""
    server.stalls.add("Info")
    twin = connect(server, timeout_s=0.2)
    with pytest.raises(DeadlineError):
        twin.do(twin.larder, "info")


@pytest.mark.parametrize("method", ["info", "passages"])
def test_a_retryable_error_is_tried_again(server: FakeServer, connect: Connect, method: str) -> None:
    """A server that is busy for a moment costs a moment."""
    name = method.capitalize()
    server.faults[name] = [CapacityError("busy"), TierUnavailableError("down")]
    twin = connect(server)
    twin.do(twin.larder, method)
    assert server.calls[name] == 3


def test_an_error_that_cannot_pass_is_not_tried_again(server: FakeServer, connect: Connect) -> None:
    """Trying again would only be slower."""
    server.faults["Info"] = [InvalidInputError("never")]
    twin = connect(server)
    with pytest.raises(InvalidInputError, match="never"):
        twin.do(twin.larder, "info")
    assert server.calls["Info"] == 1


def test_retries_end_with_the_servers_own_error(server: FakeServer, connect: Connect) -> None:
    """The last error says more than a count of attempts."""
    server.faults["Info"] = [CapacityError(f"busy {n}") for n in range(9)]
    twin = connect(server, retry=Retry(attempts=3, first_pause_s=0.001))
    with pytest.raises(CapacityError, match="busy 2"):
        twin.do(twin.larder, "info")
    assert server.calls["Info"] == 3


def test_nothing_is_tried_again_behind_the_first_token(server: FakeServer, connect: Connect) -> None:
    """A second try would say the same words twice."""
    twin = connect(server)
    ids = twin.do(twin.larder, "ingest", "notes.txt", TEXTS).ids
    server.late_faults["Ask"] = TierUnavailableError("gone")
    answer = twin.do(twin.larder, "ask", ids, "What?")
    tokens = twin.each(answer)
    assert str(next(tokens)) == WORDS[0]
    with pytest.raises(TierUnavailableError, match="gone"):
        next(tokens)
    assert server.calls["Ask"] == 1


@pytest.mark.parametrize("error", [NotFoundError("a"), UnsupportedError("b"), FormatError("c"), CapacityError("d"), KVError("e")])
def test_the_servers_error_is_raised_as_its_own_class(server: FakeServer, connect: Connect, error: KVError) -> None:
    """Callers catch what happened, not how it travelled."""
    server.faults["Info"] = [error]
    twin = connect(server, retry=Retry(attempts=1))
    with pytest.raises(KVError, match=str(error)) as raised:
        twin.do(twin.larder, "info")
    assert type(raised.value) is type(error)


def test_a_wrong_token_is_an_auth_error(server: FakeServer, connect: Connect) -> None:
    """The status alone is enough where the server names no class."""
    other = connect(server)
    twin = type(other)(server.address, "another-token-of-the-tests")
    with pytest.raises(AuthError, match="who are you"):
        twin.do(twin.larder, "info")
    twin.close()


def test_an_unreachable_server_is_a_tier_unavailable_error(server: FakeServer, connect: Connect) -> None:
    """Nothing of gRPC reaches the caller."""
    server.stop()
    twin = connect(server, timeout_s=1.0, retry=Retry(attempts=2, first_pause_s=0.001))
    with pytest.raises((TierUnavailableError, DeadlineError)):
        twin.do(twin.larder, "info")


def test_chunks_are_fetched_verified_and_decoded_to_numpy(server: FakeServer, connect: Connect) -> None:
    """An engine of one's own gets k and v per layer group."""
    twin = connect(server)
    ids = twin.do(twin.larder, "ingest", "notes.txt", TEXTS).ids
    [stored] = twin.do(twin.larder, "chunks", [ids[0]])
    [(k, v)] = stored.to_numpy()
    assert stored.token_ids == (8, 6, 6)
    assert (k.dtype, k.shape) == (np.float32, (2, 1, 3, 4))
    np.testing.assert_array_equal(np.stack([k, v]).ravel(), np.arange(48))


def test_a_chunk_that_claims_more_than_the_caller_decodes_is_refused(server: FakeServer, connect: Connect) -> None:
    """48 values of 4 B."""
    twin = connect(server)
    ids = twin.do(twin.larder, "ingest", "notes.txt", TEXTS).ids
    [stored] = twin.do(twin.larder, "chunks", [ids[0]])
    with pytest.raises(CapacityError, match=r"claims 192 B of K and V.*raise max_decoded_nbytes"):
        stored.to_numpy(max_decoded_nbytes=191)


def test_an_absent_chunk_is_a_miss_with_a_reason(server: FakeServer, connect: Connect) -> None:
    """A miss is a result; decoding it is an error."""
    twin = connect(server)
    ids = twin.do(twin.larder, "ingest", "notes.txt", TEXTS).ids
    server.blobs.clear()
    [stored] = twin.do(twin.larder, "chunks", [ids[0]])
    assert (stored.blob, stored.reason) == (None, "never_stored")
    with pytest.raises(NotFoundError, match="never_stored"):
        stored.to_numpy()


def test_a_chunk_with_one_wrong_bit_is_a_miss(server: FakeServer, connect: Connect) -> None:
    """No byte is handed out that fails its digest."""
    twin = connect(server)
    [passage_id] = twin.do(twin.larder, "ingest", "notes.txt", TEXTS[:1]).ids
    key = server.key_of(passage_id)
    blob = bytearray(server.blobs[key])
    blob[-1] ^= 1
    server.blobs[key] = bytes(blob)
    [stored] = twin.do(twin.larder, "chunks", [passage_id])
    assert stored.blob is None
    assert "digest" in stored.reason


def test_a_sound_chunk_of_another_key_is_a_miss(server: FakeServer, connect: Connect) -> None:
    """A store that lies about what it sends is caught by the key."""
    twin = connect(server)
    first, second = twin.do(twin.larder, "ingest", "notes.txt", TEXTS).ids
    server.blobs[server.key_of(first)] = server.blobs[server.key_of(second)]
    [stored] = twin.do(twin.larder, "chunks", [first])
    assert stored.blob is None
    assert "the store sent chunk" in stored.reason


def test_a_chunk_of_other_tokens_than_the_passages_is_a_miss(server: FakeServer, connect: Connect) -> None:
    """The content key is recomputed from the tokens, not believed."""
    twin = connect(server)
    [passage_id] = twin.do(twin.larder, "ingest", "notes.txt", TEXTS[:1]).ids
    server.passages[passage_id] = (server.passages[passage_id][0], (1, 2, 3))
    [stored] = twin.do(twin.larder, "chunks", [passage_id])
    assert stored.blob is None
    assert "other tokens" in stored.reason


def test_passages_are_listed_by_source(server: FakeServer, connect: Connect) -> None:
    """A backend finds what it ingested."""
    twin = connect(server)
    twin.do(twin.larder, "ingest", "a.txt", TEXTS[:1])
    twin.do(twin.larder, "ingest", "b.txt", TEXTS[1:])
    assert [p.source for p in twin.do(twin.larder, "passages")] == ["a.txt", "b.txt"]
    assert [p.source for p in twin.do(twin.larder, "passages", "b.txt")] == ["b.txt"]


def test_invalidation_reaches_the_store_with_its_scope(server: FakeServer, connect: Connect) -> None:
    """By source, by model, or everything of one's own."""
    twin = connect(server)
    epochs = [twin.do(twin.larder, "invalidate", source="a.txt"), twin.do(twin.larder, "invalidate", model="ab")]
    assert [*epochs, twin.do(twin.larder, "invalidate_all")] == [1, 2, 3]
    assert [(scope.kind, scope.value) for scope in server.scopes] == [("source", "a.txt"), ("model", "ab"), ("tenant", "")]


def test_explain_returns_report_and_lines(server: FakeServer, connect: Connect) -> None:
    """Why loading was chosen."""
    twin = connect(server)
    assert twin.do(twin.larder, "explain").lines == ("loading was cheaper",)
    with pytest.raises(NotFoundError):
        twin.do(twin.larder, "explain", "r-2")


def test_ping_takes_time_and_knows_a_server_that_does_not_serve(server: FakeServer, connect: Connect) -> None:
    """A draining server answers its health check with another number."""
    twin = connect(server)
    assert twin.do(twin.larder, "ping") > 0
    server.health = b"\x08\x02"
    with pytest.raises(TierUnavailableError, match="does not serve"):
        twin.do(twin.larder, "ping")


def test_a_closed_client_opens_again_with_its_next_call(server: FakeServer, connect: Connect) -> None:
    """Closing frees connections; it does not break the object."""
    twin = connect(server)
    twin.do(twin.larder, "close")
    assert twin.do(twin.larder, "info").model == "tiny"
