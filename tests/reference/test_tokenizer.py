from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from kvworker.reference import MODEL_FOLDER
from kvworker.reference.notes import generate
from kvworker.reference.tokenizer import BOS, EOS, PAD, save_tokenizer
from kvworker.reference.words import MARKS, split_words, vocabulary

LOADED = AutoTokenizer.from_pretrained(MODEL_FOLDER)


@settings(max_examples=300)
@given(st.text())
def test_any_text_comes_back(text: str) -> None:
    assert LOADED.decode(LOADED.encode(text)) == text


@settings(max_examples=200)
@given(st.lists(st.sampled_from([*vocabulary(), " ", "  ", "\n", "▁", "<bos>", "<0x41>", "é", "😀", "\r\n", "\x00", "Alder"])).map("".join))
def test_any_mixture_of_known_and_unknown_words_comes_back(text: str) -> None:
    assert LOADED.decode(LOADED.encode(text)) == text


def test_every_word_is_one_token_at_the_start_of_a_text() -> None:
    lengths = {word: len(LOADED.encode(word)) for word in vocabulary() if word not in MARKS}
    assert set(lengths.values()) == {1}


def test_every_word_is_one_token_inside_a_text() -> None:
    words = [word for word in vocabulary() if word not in MARKS]
    assert len(LOADED.encode(" ".join(words))) == len(words)


def test_a_rendered_passage_is_one_token_per_word_and_mark() -> None:
    for document in generate(1, 4, 2, 8, "test", 2).documents:
        for passage in document.passages:
            assert len(LOADED.encode(passage)) == len(split_words(passage))


def test_training_and_serving_see_the_same_ids(prompts: ModuleType) -> None:
    """Training looks words up; serving runs the tokenizer over the rendered text."""
    corpus = generate(2, 4, 2, 8, "test", 2)
    texts = [p for d in corpus.documents for p in d.passages] + [q.text for q in corpus.questions] + [q.answer for q in corpus.questions]
    assert [LOADED.encode(text) for text in texts] == [prompts.encode(text) for text in texts]


@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_encoding_adds_no_token(add_special_tokens: bool) -> None:
    """Serving puts its own <bos> in front of each passage, so one added here would be a second."""
    assert LOADED.encode("It exports salt.", add_special_tokens=add_special_tokens) == LOADED.convert_tokens_to_ids(
        [" It", " exports", " salt", "."]
    )


@pytest.mark.parametrize("text", [PAD, BOS, EOS, "<0x00>"])
def test_text_that_spells_a_special_token_is_read_letter_by_letter(text: str) -> None:
    assert not set(LOADED.encode(text)) & {
        LOADED.pad_token_id,
        LOADED.bos_token_id,
        LOADED.eos_token_id,
        LOADED.convert_tokens_to_ids("<0x00>"),
    }


def test_special_tokens_are_the_first_three_ids() -> None:
    assert [LOADED.pad_token_id, LOADED.bos_token_id, LOADED.eos_token_id] == [0, 1, 2]


def test_the_committed_tokenizer_is_what_the_builder_writes(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert json.loads((tmp_path / name).read_text("utf-8")) == json.loads((MODEL_FOLDER / name).read_text("utf-8"))
