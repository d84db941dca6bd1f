"""Passages of text files. Borders are the writer's own: blank lines, lines, or the file itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from kvstore.core.errors import InvalidInputError

MODES = ("paragraphs", "lines", "whole")
SUFFIXES = (".txt", ".md")
MAX_FILE_NBYTES = 64 << 20


def passages_of(text: str, mode: str) -> list[str]:
    """Return the passages of a text, stripped; what holds no text is left out."""
    if mode not in MODES:
        raise InvalidInputError(f"{mode!r} is no way to cut passages; choose {', '.join(MODES)}")
    pieces = [text] if mode == "whole" else re.split(r"\n" if mode == "lines" else r"\n[^\S\n]*\n", text)
    return [piece.strip() for piece in pieces if piece.strip()]


def find_files(paths: Iterable[str]) -> Iterator[Path]:
    """Iterate over the files named, and over the .txt and .md files within the folders named, sorted; raises InvalidInputError."""
    for path in map(Path, paths):
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not files:
                raise InvalidInputError(f"{path} holds no {' or '.join(SUFFIXES)} file; name files to read them whatever they are called")
            yield from files
        elif path.exists():
            yield path
        else:
            raise InvalidInputError(f"{path} does not exist")


def read_text(path: Path) -> str:
    """Read a UTF-8 file of at most 64 MiB; anything else raises InvalidInputError."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE_NBYTES + 1)
    if len(data) > MAX_FILE_NBYTES:
        raise InvalidInputError(f"{path} is larger than {MAX_FILE_NBYTES >> 20} MiB; cut it into files")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not UTF-8 text: byte {error.start} is {data[error.start]:#04x}") from error
