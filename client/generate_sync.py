"""Write the blocking client from the asyncio one, name by name. Run: python client/generate_sync.py [OUTPUT_FOLDER]"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).resolve().parent / "kvclient"
HEADER = "# Written by client/generate_sync.py from {source}; change that file and run it again.\n"

# A longer pattern stands before a shorter one that it contains.
REPLACEMENTS = (
    (r"\basync (def|for|with) ", r"\1 "),
    (r"\bawait asyncio\.sleep\b", "time.sleep"),
    (r"\bawait asyncio\.to_thread\(([\w.]+)\)", r"\1()"),
    (r"\bawait ", ""),
    (r"^import asyncio$", "import time"),
    (r"\bAsyncGenerator\b", "Generator"),
    (r"\bGenerator\[([^\[\]]*(?:\[[^\[\]]*\])?[^\[\]]*), None\]", r"Generator[\1, None, None]"),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (r"\b__a(iter|next|enter|exit)__\b", r"__\1__"),
    (r"\baclose\b", "close"),
    (r"\bkvclient\.aio_", "kvclient."),
    (r"\bgrpc\.aio\b", "grpc"),
    (r"\bkvclient\._async\b", "kvclient._sync"),
    (r"\ban `async with`", "a `with`"),
    (r"`async with`", "`with`"),
    (r"\btasks of one event loop\b", "threads"),
    (r"\bOne task\b", "One thread"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\basyncio\b", "threads"),
)


def to_sync(text: str, source: str) -> str:
    """Return the blocking twin of an asyncio module."""
    for pattern, replacement in REPLACEMENTS:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return _formatted(HEADER.format(source=source) + text, source)


def _formatted(text: str, name: str) -> str:
    """Return the module with the imports that it needs, sorted, and its lines broken as the project's rules say."""
    for command in (["check", "--select=I,F401", "--fix", "--quiet"], ["format", "--quiet"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(CLIENT.parent / name), "-"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout
    return text


def generate(output: Path) -> None:
    """Write the twin of every module of kvclient/_async into `output`."""
    output.mkdir(parents=True, exist_ok=True)
    for path in sorted((CLIENT / "_async").glob("*.py")):
        source = f"kvclient/_async/{path.name}"
        (output / path.name).write_text(to_sync(path.read_text(encoding="utf-8"), source), encoding="utf-8")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else CLIENT / "_sync")
