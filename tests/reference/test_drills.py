"""Drills leave no shortcut, and guidance points where the answer comes from."""

from __future__ import annotations

import random
from collections import Counter
from types import ModuleType

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvworker.reference.notes import Corpus, split_of
from kvworker.reference.words import ALIASES

N_DRILLS = 60


@pytest.fixture(scope="module")
def drills(scripts: None) -> ModuleType:
    import drills

    return drills


@pytest.fixture(scope="module")
def guidance(scripts: None) -> ModuleType:
    import guidance

    return guidance


@pytest.fixture(scope="module")
def corpora(drills: ModuleType) -> list[Corpus]:
    return [drills.drill(random.Random(seed)) for seed in range(N_DRILLS)]


def test_equal_seeds_give_equal_drills(drills: ModuleType) -> None:
    assert drills.drill(random.Random(3)) == drills.drill(random.Random(3))


def test_every_second_name_has_each_shared_verb_so_the_verb_alone_tells_nothing(corpora: list[Corpus]) -> None:
    for corpus in corpora:
        names = {value for _, verb, value in corpus.facts if verb == "equals"}
        verbs = [frozenset(verb for subject, verb, _ in corpus.facts if subject == name) for name in names]
        assert len(names) >= 2
        assert set(verbs) == {verbs[0]} != {frozenset()}


def test_answers_are_what_the_facts_say(corpora: list[Corpus], drills: ModuleType) -> None:
    for corpus in corpora:
        stated = {(subject, drills.VERBS[verb]): value for subject, verb, value in corpus.facts}
        second = {subject: value for subject, verb, value in corpus.facts if verb == "equals"}
        for question in corpus.questions:
            subject, verb = question.text.removeprefix("What does ").removesuffix("?").split(" ")
            assert question.answer == stated[second[subject] if question.kind == "alias" else subject, verb]


def test_a_drill_states_no_pair_of_the_test_split(corpora: list[Corpus]) -> None:
    assert {split_of(subject, value) for corpus in corpora for subject, _, value in corpus.facts} == {"train"}


def test_most_questions_ask_for_a_second_name(corpora: list[Corpus]) -> None:
    kinds = Counter(question.kind for corpus in corpora for question in corpus.questions)
    assert kinds["alias"] > kinds["direct"] > 0


def test_a_guide_points_at_the_value_stated_under_the_second_name(guidance: ModuleType, prompts: ModuleType) -> None:
    text = f"Brambury equals {ALIASES[0]}. Brambury sells lace. {ALIASES[0]} mines coal. What does Brambury mine? coal"
    ids = prompts.encode(text)
    (guide,) = guidance.find_guides(ids)
    words = [text.replace(".", " .").replace("?", " ?").split()[index] for index in (guide.subject, guide.mark, guide.value)]
    assert (words, ids[guide.value + 1]) == (["Brambury", "?", "coal"], prompts.encode(".")[0])
    assert guide.name == prompts.encode(ALIASES[0])[0]


def test_a_value_stated_under_the_first_name_is_not_guided_to(guidance: ModuleType, prompts: ModuleType) -> None:
    (guide,) = guidance.find_guides(prompts.encode(f"Brambury equals {ALIASES[0]}. Brambury sells lace. What does Brambury sell? lace"))
    assert guide.value is None


def test_a_subject_without_a_second_name_has_no_guide(guidance: ModuleType, prompts: ModuleType) -> None:
    assert guidance.find_guides(prompts.encode("Brambury sells lace. What does Brambury sell? lace")) == []


def test_guidance_teaches_the_layers_below_the_question_and_stops_at_what_is_not_asked(guidance: ModuleType, prompts: ModuleType) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=prompts.VOCABULARY_SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    asked = prompts.encode(f"Brambury equals {ALIASES[0]}. {ALIASES[0]} mines coal. What does Brambury mine? coal")
    plain = prompts.encode("Brambury sells lace. What does Brambury sell? lace")
    losses = []
    for ids in (asked, plain):
        batch, positions = torch.tensor([ids]), torch.arange(len(ids))[None]
        states = model.model(input_ids=batch, position_ids=positions, output_hidden_states=True, use_cache=False).hidden_states
        losses.append(guidance.guidance_loss(model, states, batch, positions))
    losses[0].backward()
    assert losses[0] > 0
    assert losses[1] == 0
    assert [bool(layer.mlp.down_proj.weight.grad is not None) for layer in model.model.layers] == [True] * 4 + [False] * 2
