"""The command `larder`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from kvclient.cli import exits
from kvclient.cli.output import printable
from kvclient.cli.plugins import register_plugins
from kvstore.core.errors import KVError

VERBS = ("ask", "doctor", "explain", "forget", "get", "ingest", "invalidate", "load", "ls", "ping", "rm", "stats")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are one line on stderr."""
    try:
        status = run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        return exits.BROKEN_PIPE
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except KVError as error:
        return _fail(str(error), exits.exit_code(error))
    except ModuleNotFoundError as error:
        return _fail(f"{error.name} is not installed; `larder doctor` says which extra brings it", exits.FAILED)
    except OSError as error:
        return _fail(f"{error.filename or 'system'}: {error.strerror or error}", exits.FAILED)


def run(argv: Sequence[str]) -> int:
    """Parse and run one command; usage errors end the process with 2."""
    args = build_parser(argv).parse_args(argv)
    return int(args.run(args))


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser for a command line; a known verb's own module is all that is imported for it."""
    parser: argparse.ArgumentParser = OneLineParser(
        prog="larder",
        description="Store the KV cache of passages that language models read again, and ask questions over them.",
        epilog=exits.EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"larder {version('kv-larder')}")
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    wanted = argv[0] if argv else ""
    for verb in (wanted,) if wanted in VERBS else VERBS:
        importlib.import_module(f"kvclient.cli.{verb}").register(subparsers)
    if wanted not in VERBS:
        register_plugins(subparsers)
    return parser


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line, and where to read on, instead of all that could be written."""

    def error(self, message: str) -> NoReturn:
        """End the process with 2."""
        self.exit(exits.USAGE, f"{self.prog}: {message}; see `{self.prog} --help`\n")


def _fail(message: str, code: int) -> int:
    """Print an error as one line."""
    more = " (`larder doctor` looks for the cause)" if code == exits.UNREACHABLE else ""
    print(f"larder: {printable(' '.join(message.split()))}{more}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
