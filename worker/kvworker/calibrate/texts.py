"""What a model is calibrated with: local files, or else notes that come with the package, cut to the length of its readings."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from kvstore.core.errors import InvalidInputError
from kvworker.calibrate.collect import N_SKIPPED
from kvworker.engine.engine import Engine
from kvworker.reference.notes import generate

TEXT_TOKENS = 2048
"""Tokens of a text at most: half a thousand see what long readings do to V, and more cost the square of it."""
_MOST_BYTES = 64 << 20
_SEED = 7_000
_DOCUMENTS, _PASSAGES, _FACTS = 6, 16, 8


def readings(engine: Engine, paths: Sequence[Path]) -> Iterator[tuple[int, ...]]:
    """Yield the tokens of texts, each behind a BOS of its own; without files, of notes without end.

    Raises InvalidInputError for a file that is missing, not UTF-8 or longer than 64 MiB, and where all texts are too short.
    """
    length = min(TEXT_TOKENS, engine.max_reading_tokens)
    bos = () if engine.bos_id is None else (engine.bos_id,)
    n_texts = 0
    for text in _texts(paths):
        ids = engine.encode(text)
        for start in range(0, len(ids), length - len(bos)):
            cut = ids[start : start + length - len(bos)]
            if len(cut) > 4 * N_SKIPPED:
                n_texts += 1
                yield (*bos, *cut)
    if not n_texts:
        raise InvalidInputError(f"no text has more than {4 * N_SKIPPED} tokens; give --text files with more in them")


def _texts(paths: Sequence[Path]) -> Iterator[str]:
    """Yield texts of files in a shuffled order that is always the same, or notes."""
    if paths:
        files = [file for path in paths for file in (sorted(path.rglob("*.txt")) if path.is_dir() else [path])]
        random.Random(_SEED).shuffle(files)
        yield from map(_read, files)
        return
    seed = _SEED
    while True:
        for document in generate(seed, _DOCUMENTS, _PASSAGES, _FACTS, "train").documents:
            yield "\n".join(document.passages)
        seed += 1


def _read(path: Path) -> str:
    """Return the text of a file."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidInputError(f"{path} has {path.stat().st_size} B; split files beyond {_MOST_BYTES} B")
        return path.read_text("utf-8")
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not UTF-8 text: {error}") from error
