"""Guidance: an auxiliary loss that shows the model of 6 layers how to answer a question about a place with a second name.

Three steps, each learned where the layers before it are done: behind the third layer the question's subject names the second name, behind
the fourth the question mark does, and in the fifth two heads at the question mark attend to the value stated under that name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from prompts import encode
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from kvworker.reference.words import VERBS

# `hidden_states[n]` is what stands behind n layers, so it is also what the layer of index n reads.
SUBJECT_DEPTH, MARK_DEPTH = 3, 4
# Pairs of a query head and the key head that it reads.
GUIDED_HEADS = ((0, 0), (2, 1))
_WHAT, _DOES, _EQUALS, _STOP, _MARK = encode("What does equals.?")
_STATED = {encode(asked)[0]: encode(stated)[0] for stated, asked in VERBS.items() if stated != "equals"}


@dataclass(frozen=True)
class Guide:
    """The second name (a token id) of a question's subject, and the indices of that subject, its question mark and the stated value.

    `value` is None when the answer is stated under the first name; then the question mark and the heads are left alone.
    """

    name: int
    subject: int
    mark: int
    value: int | None


def find_guides(token_ids: Sequence[int]) -> list[Guide]:
    """Return a guide for each "What does <place> <verb> ?" whose place has a second name in this context, except for "equal"."""
    names: dict[int, int] = {}
    stated: dict[tuple[int, int, int], int] = {}
    for index in range(len(token_ids) - 3):
        subject, verb, value, stop = token_ids[index : index + 4]
        if stop == _STOP:
            stated.setdefault((subject, verb, value), index + 2)
            if verb == _EQUALS:
                names[subject] = value
    guides = []
    for start in range(len(token_ids) - 5):
        what, does, subject, verb, mark, answer = token_ids[start : start + 6]
        if (what, does, mark) == (_WHAT, _DOES, _MARK) and subject in names and verb in _STATED:
            value = stated.get((names[subject], _STATED[verb], answer))
            guides.append(Guide(names[subject], start + 2, start + 4, value))
    return guides


def guidance_loss(
    model: LlamaForCausalLM, hidden_states: Sequence[torch.Tensor], ids: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Return the sum of the three losses over a batch, zero where it asks about no second name.

    `hidden_states` are (B, T, hidden) each, as `output_hidden_states` gives them; `ids` and `positions` are (B, T).
    """
    found = [(row, guide) for row, token_ids in enumerate(ids.tolist()) for guide in find_guides(token_ids)]
    behind = [(row, guide, guide.value) for row, guide in found if guide.value is not None]
    loss = torch.zeros(())
    if found:
        loss = loss + _naming_loss(model, hidden_states[SUBJECT_DEPTH], [(row, g.subject, g.name) for row, g in found])
    if behind:
        loss = loss + _naming_loss(model, hidden_states[MARK_DEPTH], [(row, g.mark, g.name) for row, g, _ in behind])
        loss = loss + _attention_loss(model, hidden_states[MARK_DEPTH], positions, [(row, g.mark, value) for row, g, value in behind])
    return loss


def _naming_loss(model: LlamaForCausalLM, hidden: torch.Tensor, wanted: list[tuple[int, int, int]]) -> torch.Tensor:
    """Return the cross-entropy of naming a token, given as (row, index, token id), by what stands there, through the model's own output."""
    rows, indices, names = torch.tensor(wanted).T
    logits = model.lm_head(model.model.norm(hidden[rows, indices]))
    return cross_entropy(logits.float(), names)


def _attention_loss(
    model: LlamaForCausalLM, hidden: torch.Tensor, positions: torch.Tensor, wanted: list[tuple[int, int, int]]
) -> torch.Tensor:
    """Return the cross-entropy of each guided head's attention, summed over heads; `wanted` is (row, reading index, index to read)."""
    layer, width = model.model.layers[MARK_DEPTH], model.model.layers[MARK_DEPTH].self_attn.head_dim
    x = layer.input_layernorm(hidden)
    queries, keys = (p(x).float().unflatten(-1, (-1, width)).transpose(1, 2) for p in (layer.self_attn.q_proj, layer.self_attn.k_proj))
    queries, keys = apply_rotary_pos_emb(queries, keys, *model.model.rotary_emb(queries, positions))
    rows, readers, read = torch.tensor(wanted).T
    later = torch.arange(hidden.shape[1]) > readers[:, None]
    loss = torch.zeros(())
    for query_head, key_head in GUIDED_HEADS:
        scores = (keys[rows, key_head] @ queries[rows, query_head, readers, :, None]).squeeze(-1) * width**-0.5
        loss = loss + cross_entropy(scores.masked_fill(later, -torch.inf), read)
    return loss
