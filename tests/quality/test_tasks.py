"""The task families of the shared-context benchmark: seeded, answerable from their contexts, and scored as they say."""

from __future__ import annotations

import random

import pytest

from kvworker.bench.rows import Bench
from kvworker.bench.scbench import rows_of
from kvworker.quality.probe import Probe
from kvworker.quality.shared import Point, Way, measure_task, ways
from kvworker.quality.task import DEPTHS, N_PASSAGES, Task, spread, tasks
from kvworker.quality.tasks.facts import Facts
from kvworker.quality.tasks.many_shot import ManyShot
from kvworker.quality.tasks.math_find import MathFind
from kvworker.quality.tasks.mix import Mix
from kvworker.quality.tasks.needles import Needles
from kvworker.quality.tasks.variable_tracking import VariableTracking
from kvworker.reference.words import GOODS

FAMILIES = tasks()
IDS = [task.name for task in FAMILIES]
each = pytest.mark.parametrize("task", FAMILIES, ids=IDS)


def test_there_are_eight_families() -> None:
    """Recall, matching, tracking, learning, arithmetic, a mixture, and facts across passages."""
    assert {"kv", "prefix_suffix", "variable_tracking", "many_shot", "needles", "math_find", "mix", "facts"} <= set(IDS)


@each
def test_the_same_seed_makes_the_same_context(task: Task) -> None:
    """On every machine: nothing is drawn but from the seed."""
    assert task.make(random.Random(3)) == task.make(random.Random(3))


@each
def test_another_seed_makes_another_context(task: Task) -> None:
    """So that means are over contexts."""
    assert task.make(random.Random(3)) != task.make(random.Random(4))


@each
def test_a_context_has_a_question_for_each_depth_over_eight_passages(task: Task) -> None:
    """In two documents, so that reading passages in their document is not the whole prompt."""
    context = task.make(random.Random(5))
    assert (len(context.asks), len(context.prompt), len(context.documents)) == (len(DEPTHS), N_PASSAGES, 2)


@each
def test_the_right_answer_scores_one_and_another_scores_less(task: Task) -> None:
    """The metric tells them apart."""
    ask = task.make(random.Random(6)).asks[0]
    assert (task.score(f" {ask.answer}.", ask.answer), task.score("nothing", ask.answer)) == (1.0, 0.0)


@each
def test_a_longer_context_is_longer(task: Task) -> None:
    """Sizes are multiples."""
    short, long = (len(" ".join(task.scaled(size).make(random.Random(7)).texts)) for size in (1, 2))
    assert long > 1.4 * short


@pytest.mark.parametrize("task", [t for t in FAMILIES if t.name in ("kv", "prefix_suffix", "many_shot", "needles")], ids=lambda t: t.name)
def test_an_answer_lies_at_its_depth(task: Task) -> None:
    """Question i is about what stands at depth i of the text, within a tenth or two."""
    context = task.scaled(4).make(random.Random(8))
    text = " ".join(context.texts)
    subjects = [ask.text.split()[-2] if task.name in ("many_shot", "needles") else ask.answer for ask in context.asks]
    assert [text.index(subject) / len(text) for subject in subjects] == pytest.approx(DEPTHS, abs=0.2)


def test_a_chain_of_variables_is_complete() -> None:
    """Every name of an answer is assigned, and only from its value or the name before it."""
    context = VariableTracking().make(random.Random(9))
    text = " ".join(context.texts)
    for ask in context.asks:
        value, names = ask.text.split()[-2], ask.answer.split()
        assert all(f"{name} = {source}." in text for name, source in zip(names, [value, *names], strict=False))


def test_a_chain_is_scored_by_the_share_of_its_names() -> None:
    """Half of the names are half an answer."""
    assert VariableTracking().score("AA, BB", "AA BB CC DD") == 0.5


def test_an_extreme_number_is_the_lists_own() -> None:
    """Recomputed from the text."""
    context = MathFind().make(random.Random(10))
    text = " ".join(context.texts)
    for ask in context.asks:
        at = ask.text.split()[-2]
        numbers = sorted(map(int, text.split(f"List {at}: ")[1].split(".")[0].split(", ")))
        assert int(ask.answer) == {"largest": numbers[-1], "smallest": numbers[0], "median": numbers[3]}[ask.text.split()[1]]


def test_the_first_number_counts() -> None:
    """Whoever says all numbers has not found one."""
    assert [MathFind().score(said, "12") for said in ("12 or 13", "13 or 12", "112")] == [1.0, 0.0, 0.0]


def test_the_first_label_counts() -> None:
    """Whoever says all labels has learnt nothing."""
    answer = ManyShot().make(random.Random(1)).asks[0].answer
    others = " ".join(label for label in GOODS[:4] if label != answer)
    assert [ManyShot().score(said, answer) for said in (f"{answer} {others}", f"{others} {answer}")] == [1.0, 0.0]


def test_a_mixture_asks_about_both_of_its_parts() -> None:
    """In turn."""
    asks = Mix().make(random.Random(2)).asks
    assert [ask.text.startswith("Key") for ask in asks] == [True, False, True, False, True]


def test_few_lines_make_few_passages() -> None:
    """None is empty."""
    assert [len(spread(["a."] * n, ()).prompt) for n in (1, 3, 20)] == [1, 3, N_PASSAGES]


def points(probe: Probe, task: Task) -> list[Point]:
    """Measure full prefill and the prefix cache on one context."""
    chosen: list[Way] = [way for way in ways() if way.name in ("full", "prefix")]
    return list(measure_task(probe, task, 1, chosen))


def test_the_reference_model_answers_facts_and_needles_in_both_modes(probe: Probe) -> None:
    """Full prefill is the bar; in a conversation the questions before stand in the prompt."""
    scores = [p.score for task in (Facts(), Needles()) for p in points(probe, task) if (p.way, p.mode) == ("full", "multi_request")]
    assert sum(scores) / len(scores) >= 0.8


def test_a_restored_prefix_answers_as_full_prefill_does_in_every_turn(probe: Probe) -> None:
    """In both modes: stored KV is the same before every question, whatever was asked before."""
    assert all(p.is_same and p.kl < 1e-6 for p in points(probe, Facts()) if p.way == "prefix")


def test_every_known_policy_and_lossy_codec_is_a_way() -> None:
    """A new method takes part without anybody listing it."""
    assert {"full", "prefix", "prefix+near-lossless", "prefix+tiny", "none", "first_k", "deviation", "late_chunking"} <= {
        way.name for way in ways()
    }


def test_rows_tell_modes_ways_families_depths_and_turns_apart() -> None:
    """Two points of one family at two depths, in two turns."""
    found = [
        Point("none", "multi_turn", "kv", 0.1, 1, 1.0, True, 0.5, 0.75, 0.0),
        Point("none", "multi_turn", "kv", 0.9, 0, 0.0, False, 1.5, 0.25, 0.0),
    ]
    rows = {(r.variant, r.metric, r.x): r.p50 for r in rows_of(Bench("scbench", "depth", "a processor", "float32"), found, "@2")}
    assert {key: value for key, value in rows.items() if key[1].startswith("score")} == {
        ("multi_turn/none@2", "score_kv", 0.1): 1.0,
        ("multi_turn/none@2", "score_kv", 0.9): 0.0,
        ("multi_turn/none@2", "score", 1.0): 0.0,
        ("multi_turn/none@2", "score", 2.0): 1.0,
    }
    assert rows["multi_turn/none@2", "kl", 0.9] == 1.5
