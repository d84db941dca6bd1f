"""Parts of the command line by themselves: passages, checks, tables, and verbs of other packages."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvclient.cli import plugins
from kvclient.cli.checks import check_clock, check_disk, check_extras, check_python
from kvclient.cli.doctor import check_store
from kvclient.cli.main import main
from kvclient.cli.output import Tables, printable
from kvclient.cli.split import MODES, find_files, passages_of
from kvstore.core.errors import ForbiddenError, InvalidInputError, MissingExtraError


@pytest.mark.parametrize(
    ("mode", "passages"),
    [("paragraphs", ["a\nb", "c"]), ("lines", ["a", "b", "c"]), ("whole", ["a\nb\n \t\n\nc"])],
)
def test_passages_are_cut_where_the_writer_left_a_border(mode: str, passages: list[str]) -> None:
    """A line of blanks is a blank line."""
    assert passages_of("\n a\nb\n \t\n\nc\n", mode) == passages


@given(st.text(), st.sampled_from(MODES))
def test_cutting_loses_nothing_but_space(text: str, mode: str) -> None:
    """And never yields an empty passage."""
    passages = passages_of(text, mode)
    assert "".join("".join(passages).split()) == "".join(text.split())
    assert all(passages)


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    """An empty run would look like success."""
    with pytest.raises(InvalidInputError, match=r"holds no \.txt or \.md file"):
        list(find_files([str(tmp_path)]))


def test_an_old_interpreter_fails_the_check() -> None:
    """With the version that is needed."""
    finding = check_python((3, 10, 4))
    assert (finding.state, finding.found) == ("fail", "3.10.4")
    assert "3.11" in finding.advice


def test_a_clock_before_the_release_fails_the_check() -> None:
    """A machine without a battery starts in 1970."""
    assert [check_clock(0.0).state, check_clock(2e9).state] == ["fail", "ok"]


def test_a_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Looked for where the store would be, even before it is there."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    assert check_disk(tmp_path / "not" / "yet").state == "warn"


def test_a_missing_extra_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client needs none of them, so it is a warning."""
    monkeypatch.setattr("kvclient.cli.checks.find_spec", lambda module: None if module == "redis" else object())
    [finding] = [f for f in check_extras() if f.state != "ok"]
    assert (finding.check, finding.state, finding.found) == ("extra store", "warn", "without redis")
    assert "kv-larder[store]" in finding.advice


def test_tables_without_rich_name_the_extra_and_the_way_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """--json needs no extra."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(MissingExtraError, match=r"kv-larder\[cli\].*--json"):
        Tables()


def test_text_from_elsewhere_cannot_steer_the_terminal() -> None:
    """Passages and sources are anybody's."""
    assert printable("a\tb\nc\x1b[2J\r\x07") == "a\tb\nc\N{REPLACEMENT CHARACTER}[2J" + 2 * "\N{REPLACEMENT CHARACTER}"


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Offer two verbs of a module that works, one of a module that lacks its extra, and one of a stranger's."""
    (tmp_path / "larder_plugin_ok.py").write_text(
        "def register(subparsers):\n    for verb in ('sing', 'dance'):\n"
        "        subparsers.add_parser(verb, help='a verb').set_defaults(run=lambda args: 7)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = [
        EntryPoint("sing", "larder_plugin_ok:register", plugins.GROUP),
        EntryPoint("dance", "larder_plugin_ok:register", plugins.GROUP),
        EntryPoint("paint", "kvworker.no_such_module:register", plugins.GROUP),
        EntryPoint("draw", "larder_plugin_gone:register", plugins.GROUP),
    ]
    monkeypatch.setattr(plugins, "entry_points", lambda group: found)


@pytest.mark.usefixtures("entries")
def test_verbs_of_other_packages_run() -> None:
    """One module may offer several verbs; it is asked once."""
    assert [main(["sing"]), main(["dance"])] == [7, 7]


@pytest.mark.usefixtures("entries")
def test_a_verb_whose_extra_is_missing_is_listed_and_says_so_when_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Rather than vanish from the help."""
    assert main(["paint", "--red"]) == 1
    assert "pip install 'kv-larder[worker]'" in capsys.readouterr().err
    assert main(["draw"]) == 1
    assert "larder_plugin_gone" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "not installed here" in capsys.readouterr().out


def test_a_verb_of_the_client_does_not_load_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing chunks must not import torch."""

    def refuse(subparsers: argparse.Action) -> None:
        raise AssertionError("other packages were loaded")

    monkeypatch.setattr("kvclient.cli.main.register_plugins", refuse)
    assert main(["ping", "--address", "127.0.0.1:1", "--timeout", "0.5"]) == 4


def test_doctor_finds_a_store_well_that_shows_its_tiers_to_admins_only() -> None:
    """Who may not see them has no fault to repair."""

    def stats() -> None:
        raise ForbiddenError("Stats needs the role admin")

    session: Any = SimpleNamespace(store=SimpleNamespace(stats=stats))
    assert [(finding.check, finding.state) for finding in check_store(session)] == [("store", "ok")]
