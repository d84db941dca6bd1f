"""Bytes from outside: a typed error or an answer, soon, whatever they are.

The short form runs always. `make soak` tries a million inputs, shared out among all parsers.
"""

from __future__ import annotations

import os

import pytest

from tests.fuzz.campaign import Campaign, Target
from tests.fuzz.targets import NAMES, all_targets

IS_LONG = bool(os.environ.get("LARDER_SOAK"))
N_INPUTS = -(-1_000_000 // len(NAMES)) if IS_LONG else 400


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    """Every parser."""
    return all_targets(tmp_path_factory.mktemp("inputs"))


def test_every_parser_is_in_the_list(targets: dict[str, Target]) -> None:
    """One that is missing would not be tried."""
    assert set(targets) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timeout(3600 if IS_LONG else 120)
def test_no_input_crashes_or_hangs_a_parser(targets: dict[str, Target], name: str) -> None:
    """Whatever is refused is refused by an error of ours."""
    campaign = Campaign(targets[name], seed=7)
    campaign.run(N_INPUTS)
    print(f"{name}: {N_INPUTS} inputs, {campaign.n_refused} refused, {len(campaign.lines)} lines reached, {len(campaign.corpus)} kept")
    assert campaign.n_refused > 0 or name in ("lane error", "shared directory", "message stats")


def test_the_fuzzer_keeps_what_reaches_new_lines(targets: dict[str, Target]) -> None:
    """Else it would only ever change the seeds."""
    campaign = Campaign(targets["lane frame"], seed=7)
    campaign.run(300)
    assert len(campaign.corpus) > len(targets["lane frame"].seeds)


def test_the_fuzzer_finds_a_crash() -> None:
    """A detector that never rings proves nothing."""

    def brittle(data: bytes) -> int:
        return data[int(data[:1] > b"a") * 3]

    with pytest.raises(AssertionError, match="IndexError"):
        Campaign(Target(brittle, (b"abc",)), seed=7).run(400)
