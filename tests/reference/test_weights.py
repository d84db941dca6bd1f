"""The committed weights answer as promised; the full table is printed by examples/reference/evaluate.py."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from kvworker.reference import MODEL_FOLDER

pytestmark = pytest.mark.timeout(900)  # 75 contexts through the model, on whatever machine
MAX_WEIGHTS_NBYTES = 8 << 20
BARS = {"direct": 0.99, "carried": 0.97, "alias": 0.90}


@pytest.fixture(scope="module")
def model(monkeypatch_module: pytest.MonkeyPatch) -> LlamaForCausalLM:
    monkeypatch_module.setenv("HF_HUB_OFFLINE", "1")
    loaded: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, local_files_only=True).eval()
    return loaded


@pytest.fixture(scope="module")
def monkeypatch_module() -> pytest.MonkeyPatch:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shares(model: LlamaForCausalLM, evaluate: ModuleType) -> dict[str, dict[str, float]]:
    """Accuracy by reading and kind over one seeded sample: contexts of 8 passages of up to 8 facts."""
    found = {}
    for reading in evaluate.READINGS:
        found[reading], _ = evaluate.accuracy(model, evaluate.EIGHT_PASSAGES, n_contexts=25, reading=reading, seed=5)
    return found


def test_weights_fit_into_eight_mebibytes() -> None:
    files = list(MODEL_FOLDER.glob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) <= MAX_WEIGHTS_NBYTES


def test_no_weights_are_pickled() -> None:
    assert {path.suffix for path in MODEL_FOLDER.iterdir()} == {".json", ".safetensors"}


def test_vocabulary_of_model_and_tokenizer_agree(model: LlamaForCausalLM) -> None:
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(MODEL_FOLDER))


@pytest.mark.parametrize("kind", BARS)
def test_full_prefill_answers_unseen_pairs(shares: dict[str, dict[str, float]], kind: str) -> None:
    assert shares["full"][kind] >= BARS[kind]


def test_passages_read_alone_lose_clearly_on_carried_facts(shares: dict[str, dict[str, float]]) -> None:
    """This is what makes reuse measurable: "It" is resolved when the passage is read."""
    assert shares["alone"]["carried"] <= 0.8 * shares["full"]["carried"]


@pytest.mark.parametrize("kind", ["direct", "alias"])
def test_passages_read_alone_lose_nothing_that_is_resolved_at_the_question(shares: dict[str, dict[str, float]], kind: str) -> None:
    assert shares["alone"][kind] >= shares["full"][kind] - 0.05


def test_passages_read_in_their_document_keep_carried_facts(shares: dict[str, dict[str, float]]) -> None:
    assert shares["document"]["carried"] >= shares["full"]["carried"] - 0.03


def test_an_answer_ends_with_the_end_token(model: LlamaForCausalLM) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    bos = [tokenizer.bos_token_id]
    ids = [
        *bos,
        *tokenizer.encode("Brambury sells lace."),
        *bos,
        *tokenizer.encode("It mines coal."),
        *tokenizer.encode("What does Brambury mine?"),
    ]
    made = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=4)
    assert tokenizer.decode(made[0, len(ids) :]) == "coal<eos>"


def test_most_questions_of_the_demo_are_answered(model: LlamaForCausalLM, make_demo: ModuleType, evaluate: ModuleType) -> None:
    corpus = make_demo.make_corpus()
    right = 0
    for entry in make_demo.make_questions(corpus):
        spots = [(int(Path(item["document"]).stem.split("-")[1]) - 1, item["passage"] - 1) for item in entry["context"]]
        question = next(q for q in corpus.questions if q.text == entry["question"])
        right += evaluate.answers(model, corpus, spots, [question], "full") == evaluate.encode(question.answer)
    assert right >= 0.85 * len(make_demo.ASKED)
