"""What verbs print: tables for people, one JSON object per line for programs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from kvstore.core.errors import MissingExtraError

Record = Mapping[str, Any]
Columns = Mapping[str, Callable[[Record], object]]
_PIPE_WIDTH = 200  # characters of a table that nobody's terminal bounds


class Output(Protocol):
    """Where a verb's results go."""

    def rows(self, records: Sequence[Record], columns: Columns) -> None:
        """Show records to people as a table, and give each to programs."""
        ...

    def table(self, records: Sequence[Record], columns: Columns) -> None:
        """Show records to people: one row each, one column per heading."""
        ...

    def text(self, text: str, end: str = "\n") -> None:
        """Say something to people."""
        ...

    def record(self, record: Record) -> None:
        """Give a record to programs."""
        ...


class JsonLines:
    """Prints each record as one line of JSON, at once, and nothing else."""

    def rows(self, records: Sequence[Record], columns: Columns) -> None:
        """Print every record."""
        for record in records:
            self.record(record)

    def table(self, records: Sequence[Record], columns: Columns) -> None:
        """Print nothing."""

    def text(self, text: str, end: str = "\n") -> None:
        """Print nothing."""

    def record(self, record: Record) -> None:
        """Print one record."""
        print(json.dumps(record, ensure_ascii=False), flush=True)


class Tables:
    """Prints tables and text for people; raises MissingExtraError where rich is not installed."""

    def __init__(self) -> None:
        try:
            from rich.console import Console
        except ModuleNotFoundError as error:
            raise MissingExtraError("tables need the extra 'cli': pip install 'kv-larder[cli]'; or add --json") from error
        width = None if sys.stdout.isatty() else _PIPE_WIDTH
        self._console = Console(file=sys.stdout, width=width, markup=False, highlight=False, emoji=False)

    def rows(self, records: Sequence[Record], columns: Columns) -> None:
        """Print one table."""
        self.table(records, columns)

    def table(self, records: Sequence[Record], columns: Columns) -> None:
        """Print one table; numbers stand to the right."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        cells = [[read(record) for read in columns.values()] for record in records]
        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for i, heading in enumerate(columns):
            is_number = bool(cells) and all(isinstance(row[i], int | float | Number) for row in cells)
            table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
        for row in cells:
            table.add_row(*(printable(str(cell)) for cell in row))
        self._console.print(table)

    def text(self, text: str, end: str = "\n") -> None:
        """Print text at once."""
        print(printable(text), end=end, flush=True)

    def record(self, record: Record) -> None:
        """Print nothing."""


class Number(str):
    """A number as people write it, such as "3.2 MiB"; it stands to the right in a table."""

    __slots__ = ()


def output_of(args: argparse.Namespace) -> Output:
    """Return where the results of a verb go; `args.json` chooses."""
    return JsonLines() if args.json else Tables()


def printable(text: str) -> str:
    """Return a text from elsewhere without characters that steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
