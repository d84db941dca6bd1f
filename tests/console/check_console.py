"""The console in a real browser: `make console-check`, which needs Chromium. Its absence is a failure, never a skip.

It is no part of `make test`, since no package registry that the project installs from carries a browser.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.console.scene import HOSTILE, REQUEST, console

SCHEMES = {"light": "--blink-settings=preferredColorScheme=1", "dark": "--blink-settings=preferredColorScheme=0"}
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=6000", "--enable-logging=stderr")
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_PANELS = ("Hit rate over time", "Tiers", "Misses by reason", "Planner decisions", "Tenants", "Slowest requests", "Latest misses", "Calls")


def browser() -> str:
    """Return the path of a Chromium; raises FileNotFoundError where there is none."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        raise FileNotFoundError("the console is checked with Chromium: apt-get install chromium")
    return found


def look(url: str, *flags: str) -> tuple[str, list[str]]:
    """Open a page for some seconds of its own time; return its document as it is then, and what it complained about."""
    done = subprocess.run([browser(), *_FLAGS, *flags, url], capture_output=True, text=True, timeout=100, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Serve a console that has something to show."""
    with console() as address:
        yield f"{address}/console"


@pytest.fixture(scope="module")
def seen(url: str) -> tuple[str, list[str]]:
    """Look at it once."""
    return look(url, "--dump-dom")


def test_the_page_complains_about_nothing(seen: tuple[str, list[str]]) -> None:
    """No error of a script, nothing that its own policy refuses, nothing that was not found."""
    assert seen[1] == []


def test_every_panel_is_there_and_filled(seen: tuple[str, list[str]]) -> None:
    """From numbers that came while the page was open."""
    titles = re.findall(r"<h2>(.*?)</h2>", seen[0])
    assert set(titles) == set(_PANELS)
    assert ">serving</p>" in seen[0]
    assert "<polyline" in seen[0]


def test_a_request_that_missed_stands_beside_its_reason(seen: tuple[str, list[str]]) -> None:
    """What a stranger looks for."""
    rows = [row for row in re.findall(r"<tr>(.*?)</tr>", seen[0]) if REQUEST in row]
    assert len(rows) == 3
    assert any("<b>epoch</b>" in row and "was invalidated since" in row for row in rows)


def test_a_tenants_name_is_text_and_no_markup(seen: tuple[str, list[str]]) -> None:
    """Names are whatever somebody wrote into a tokens file, or a claim of a token."""
    assert html.escape(HOSTILE, quote=False) in seen[0]
    assert HOSTILE not in seen[0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_page_can_be_looked_at(url: str, scheme: str, tmp_path: Path) -> None:
    """In both colour schemes; CONSOLE_SCREENSHOTS keeps the pictures in a folder."""
    folder = Path(os.environ.get("CONSOLE_SCREENSHOTS", tmp_path))
    picture = folder / f"console-{scheme}.png"
    look(url, SCHEMES[scheme], "--window-size=1280,2050", f"--screenshot={picture}")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert picture.stat().st_size > 50_000
