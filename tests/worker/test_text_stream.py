"""Text comes as whole characters, with the tokens that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvclient.records import Token
from kvworker.answer.text_stream import TextStream
from tests.engine.tiny_models import tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def decode(token_ids: Sequence[int]) -> str:
    """Decode as the engine does: one token per byte."""
    return str(TOKENIZER.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _byte_ids() -> dict[int, int]:
    """Return the token of every byte, found by encoding characters that hold it."""
    found: dict[int, int] = {}
    for text in (
        "".join(map(chr, range(0x80, 0x800))),
        "\u0800\u1000\u2000\u3000\u4000\u5000\u6000\u7000\u8000\u9000\ua000\ub000\uc000\ud000\ue000\uf000",
        "\U00010000\U00040000\U00080000\U000c0000\U00100000",
    ):
        found.update(zip(text.encode(), TOKENIZER.encode(text, add_special_tokens=False), strict=True))
    return found


BYTE_IDS = _byte_ids()


def stream(token_ids: Sequence[int], decode: Callable[[Sequence[int]], str] = decode) -> list[list[Token]]:
    """Return what each push gave, and the flush last."""
    text = TextStream(decode)
    return [*(text.push(token_id) for token_id in token_ids), text.flush()]


def joined(steps: list[list[Token]]) -> str:
    """Return all text."""
    return "".join(token.text for step in steps for token in step)


@settings(max_examples=100)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
@example("aé€😀z")
def test_a_text_comes_out_as_it_is_without_half_characters(text: str) -> None:
    """Characters of 1 to 4 bytes, one token per byte."""
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    steps = stream(ids)
    assert joined(steps) == text
    assert "\ufffd" in text or all("\ufffd" not in token.text for step in steps for token in step)


@settings(max_examples=200)
@given(st.lists(st.integers(0, 255), max_size=16))
def test_any_tokens_come_out_once_in_order_with_the_text_that_they_decode_to(token_ids: list[int]) -> None:
    """Models also generate bytes that are no text."""
    steps = stream(token_ids)
    assert [token.id for step in steps for token in step] == token_ids
    assert joined(steps) == decode(token_ids)


def test_a_character_behind_invalid_bytes_is_not_lost() -> None:
    """Three bytes that are no text, then a character of four."""
    data = b"\xff\xff\xff" + "😀".encode()
    assert joined(stream([BYTE_IDS.get(byte, BYTE_IDS[0xBF]) for byte in data])).endswith("😀")


def test_a_character_comes_with_the_token_that_completes_it() -> None:
    """Its earlier tokens have no text, and none of them comes before."""
    ids = TOKENIZER.encode("a€b", add_special_tokens=False)
    texts = [[token.text for token in step] for step in stream(ids)]
    assert texts == [["a"], [], [], ["", "", "€"], ["b"], []]


def test_invalid_bytes_are_not_held_back_for_long() -> None:
    """No character has more than four bytes, so at most three tokens wait."""
    steps = stream([BYTE_IDS[0xBF]] * 10)
    held = [n - sum(map(len, steps[:n])) for n in range(1, 11)]
    assert max(held) == 3
    assert joined(steps) == "\ufffd" * 10


def test_an_unfinished_character_at_the_end_comes_with_its_own_token() -> None:
    """No token is invented for it."""
    ids = TOKENIZER.encode("a😀", add_special_tokens=False)[:-1]
    steps = stream(ids)
    assert [token.id for step in steps for token in step] == ids
    assert joined(steps) == "a\ufffd"


def test_a_decoder_that_takes_back_what_it_said_loses_no_finished_text() -> None:
    """Byte fallback decodes a run of bytes as a whole: an unfinished character spoils the finished one before it until it is complete."""

    def fallback(token_ids: Sequence[int]) -> str:
        try:
            return bytes(token_ids).decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(token_ids)

    assert joined(stream(list("é€😀é".encode()), fallback)) == "é€😀é"


def test_nothing_generated_is_nothing_streamed() -> None:
    """An answer may end at once."""
    assert stream([]) == [[]]


@pytest.mark.parametrize("special", [256, 257])
def test_a_special_token_has_no_text(special: int) -> None:
    """It still is a token."""
    ids = [*TOKENIZER.encode("ab", add_special_tokens=False), special]
    steps = stream(ids)
    assert ([token.id for step in steps for token in step], joined(steps)) == (ids, "ab")
