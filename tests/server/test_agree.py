"""How stores agree on what is invalid: epochs with proofs, carried by clients from one store to the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from kvclient.cluster.member import Server
from kvstore.core.api import Scope
from kvstore.core.epochs import Epoch, behind, larger
from kvstore.core.errors import ConfigError, ForbiddenError, InvalidInputError
from kvstore.server.service import StoreService
from kvstore.store.epochs import Epochs
from kvstore.store.store_name import load_store_name
from tests.server.chunks import make_service
from tests.server.serving import dialing, serving

TENANT = Scope("tenant")


@pytest.fixture
def services() -> Iterator[tuple[StoreService, StoreService]]:
    """Two stores with one master secret."""
    made = make_service(), make_service()
    yield made
    for service in made:
        service.close()


@pytest.fixture(params=["embedded", "grpc"])
def servers(request: pytest.FixtureRequest, services: tuple[StoreService, StoreService]) -> Iterator[list[Server]]:
    """One tenant's view of both, in this process and over the wire."""
    if request.param == "embedded":
        yield [service.bind("alpha") for service in services]
        return
    with ExitStack() as stack:
        yield [stack.enter_context(dialing(stack.enter_context(serving(service)))) for service in services]


def test_a_store_takes_epochs_from_another_and_lists_its_own(servers: list[Server]) -> None:
    """Only those that are larger change anything."""
    first, second = servers
    for scope in (TENANT, TENANT, Scope("source", "a.txt")):
        first.invalidate(scope)
    second.invalidate(Scope("source", "b.txt"))
    said = first.agree({}).epochs
    assert said is not None
    now = second.agree(said).epochs
    assert now is not None
    assert {scope: epoch.number for scope, epoch in now.items()} == {TENANT: 2, Scope("source", "a.txt"): 1, Scope("source", "b.txt"): 1}


def test_epochs_that_are_known_are_not_listed_again(servers: list[Server]) -> None:
    """Until one of them rises."""
    server = servers[0]
    server.invalidate(TENANT)
    digest = server.agree({}).digest
    assert server.agree({}, digest).epochs is None
    server.invalidate(TENANT)
    assert server.agree({}, digest).epochs is not None


def test_stores_with_equal_epochs_have_equal_digests(servers: list[Server]) -> None:
    """Whoever raised them, and in whatever order."""
    first, second = servers
    for server, order in ((first, ("x", "y")), (second, ("y", "x"))):
        for name in order:
            server.invalidate(Scope("source", name))
    assert first.agree({}).digest == second.agree({}).digest


def test_thousands_of_epochs_fit(servers: list[Server]) -> None:
    """More than one message takes, both ways."""
    first, second = servers
    for i in range(2100):
        first.invalidate(Scope("source", f"{i}.txt"))
    said = first.agree({}).epochs
    assert said is not None
    assert len(said) == 2100
    assert second.agree(said).digest == first.agree({}).digest


@pytest.mark.parametrize("forged", ["number", "proof", "scope", "tenant"])
def test_an_epoch_that_no_store_made_is_refused(servers: list[Server], services: tuple[StoreService, StoreService], forged: str) -> None:
    """A client that may not invalidate a tenant could do it by inventing an epoch."""
    services[0].bind("beta" if forged == "tenant" else "alpha").invalidate(TENANT)
    said = services[0].bind("beta" if forged == "tenant" else "alpha").agree({}).epochs
    assert said is not None
    epoch, scope = said[TENANT], TENANT
    if forged == "number":
        epoch = replace(epoch, number=7)
    elif forged == "proof":
        epoch = replace(epoch, proof=b"")
    elif forged == "scope":
        scope = Scope("source", "a.txt")
    with pytest.raises(ForbiddenError, match="secret_file"):
        servers[1].agree({scope: epoch})


def test_an_epoch_taken_from_another_store_survives_a_restart(tmp_path: Path) -> None:
    """It is as durable as one of its own."""
    Epochs(tmp_path / "epochs").raise_to("alpha", {TENANT: 5, Scope("source", "x"): 2})
    again = Epochs(tmp_path / "epochs")
    assert (again.current("tenant", "alpha"), again.current("source", "alpha", "x")) == (5, 2)


def test_epochs_are_raised_all_or_none() -> None:
    """One that is refused leaves the others as they were."""
    epochs = Epochs()
    with pytest.raises(InvalidInputError, match="5000 characters"):
        epochs.raise_to("alpha", {TENANT: 5, Scope("source", "x" * 5000): 2})
    assert epochs.current("tenant", "alpha") == 0


def test_of_two_epochs_the_larger_one_counts() -> None:
    """Taking the larger of each gives the same in any order."""
    a, b = {TENANT: Epoch(2, b"a")}, {TENANT: Epoch(1, b"b"), Scope("source", "x"): Epoch(3, b"b")}
    assert larger([a, b]) == larger([b, a]) == {TENANT: Epoch(2, b"a"), Scope("source", "x"): Epoch(3, b"b")}
    assert behind(a, b) == {Scope("source", "x"): Epoch(3, b"b")}
    assert behind(larger([a, b]), b) == {}


def test_the_name_of_a_store_stays_with_its_data(tmp_path: Path) -> None:
    """Made once; two stores never have the same."""
    name = load_store_name(tmp_path / "a" / "name")
    assert load_store_name(tmp_path / "a" / "name") == name
    assert load_store_name(tmp_path / "b" / "name") != name


def test_a_damaged_name_stops_the_start(tmp_path: Path) -> None:
    """Clients would look for its chunks in other places."""
    (tmp_path / "name").write_text("no name\n")
    with pytest.raises(ConfigError, match="32 hex digits"):
        load_store_name(tmp_path / "name")
