"""Builds the reference tokenizer: one token per word of the notes, bytes for everything else.

A word's token includes the space before it. The normalizer puts one space in front of any text and the decoder takes one away, so a word is
the same token at the start of a text as inside it, and every text comes back as it was, also one that starts with spaces. No token is
added by `encode`: serving puts its own `<bos>` in front of each passage. A text that spells "<bos>" or "<0x41>" is read letter by letter.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from kvworker.reference.words import MARKS, vocabulary

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"


def build_vocabulary() -> dict[str, int]:
    """Return the id of every token: three special ones, the marks and words of the notes, then the 256 bytes."""
    words = [word if word in MARKS else f" {word}" for word in vocabulary()]
    tokens = [PAD, BOS, EOS, *words, *(f"<0x{byte:02X}>" for byte in range(256))]
    return {token: index for index, token in enumerate(tokens)}


def build_tokenizer() -> Tokenizer:
    """Return the tokenizer; the same on every machine, it learns nothing from text."""
    tokenizer = Tokenizer(BPE(vocab=build_vocabulary(), merges=[], byte_fallback=True, ignore_merges=True))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+|[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([PAD, BOS, EOS])
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    """Write the tokenizer into a model folder, as `AutoTokenizer.from_pretrained` reads it."""
    build_tokenizer().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": EOS,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "model_max_length": 4096,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
