"""Digests of a model directory follow what decides its KV, and nothing else; damaged files are refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from kvstore.core.errors import FormatError, InvalidInputError, UnsupportedError
from kvworker.engine import weights
from kvworker.engine.engine_hf import load_engine
from kvworker.engine.weights import read_settings, tokenizer_digest, weights_digest
from tests.engine.tiny_models import save_tiny_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a saved tiny model."""
    return save_tiny_model("llama", tmp_path / "model")


def namespace(directory: Path) -> bytes:
    """Return what the model's KV is stored under."""
    return load_engine(directory, device="cpu").identity.namespace


def digest(directory: Path) -> str:
    """Return the digest of the weights, hashed anew."""
    return weights_digest(directory, read_settings(directory))


def edit_config(directory: Path, edit: Callable[[dict[str, object]], object]) -> None:
    """Change config.json."""
    path = directory / "config.json"
    settings = json.loads(path.read_text())
    edit(settings)
    path.write_text(json.dumps(settings))


def flip_one_weight_bit(directory: Path) -> None:
    """Flip the lowest bit of the last byte of the file, which belongs to the last tensor."""
    path = directory / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)


def split(directory: Path) -> None:
    """Spread the tensors over two files and an index."""
    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in shards.items():
        save_file({name: tensors[name] for name in reversed(members)}, directory / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, members in shards.items() for name in members}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model.safetensors").unlink()


def test_one_bit_of_one_weight_changes_the_namespace(model: Path) -> None:
    """Another fine-tuning step of the same model must never read these chunks."""
    before = namespace(model)
    flip_one_weight_bit(model)
    assert namespace(model) != before


def test_the_base_of_the_rotary_embedding_changes_the_namespace(model: Path) -> None:
    """Keys before RoPE are the same in the first layer only."""
    before = namespace(model)
    edit_config(model, lambda c: c.update(rope_parameters={"rope_type": "default", "rope_theta": 10001.0}))
    assert namespace(model) != before


def test_a_setting_of_the_forward_pass_changes_the_namespace(model: Path) -> None:
    """It stands in no tensor and not in the layout, and changes every key behind the first layer."""
    before = namespace(model)
    edit_config(model, lambda c: c.update(rms_norm_eps=1e-3))
    assert namespace(model) != before


def test_the_tokenizer_changes_the_namespace(model: Path) -> None:
    """The same ids would mean another text."""
    before = namespace(model)
    path = model / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b"\n")
    assert namespace(model) != before


def test_the_dtype_changes_the_namespace(model: Path) -> None:
    """bfloat16 keys are other keys."""
    assert load_engine(model, device="cpu", dtype="bfloat16").identity.namespace != namespace(model)


def test_spreading_the_tensors_over_files_changes_nothing(model: Path) -> None:
    """Order in a file, metadata and sharding are not part of a model."""
    before = namespace(model)
    split(model)
    assert namespace(model) == before


def test_copying_and_renaming_the_directory_changes_nothing(model: Path, tmp_path: Path) -> None:
    """The name is a label for people."""
    before = namespace(model)
    assert namespace(model.rename(tmp_path / "other")) == before


def test_settings_that_leave_kv_alone_change_nothing(model: Path) -> None:
    """Saving a model again with another version of the library must not empty the store."""
    before = digest(model)
    edit_config(model, lambda c: c.update(transformers_version="9", eos_token_id=3, use_cache=False))
    assert digest(model) == before


def test_a_known_file_is_not_hashed_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing 16 GB takes longer than loading them."""
    settings = read_settings(model)
    first = weights_digest(model, settings, tmp_path / "cache")
    monkeypatch.setattr(weights, "_tensors_digest", lambda _files: b"hashed again")
    assert weights_digest(model, settings, tmp_path / "cache") == first == digest_without(monkeypatch, model)


def digest_without(monkeypatch: pytest.MonkeyPatch, directory: Path) -> str:
    """Return the digest by hashing, with the real function back in place."""
    monkeypatch.undo()
    return digest(directory)


def test_a_changed_file_is_hashed_again(model: Path, tmp_path: Path) -> None:
    """Its times differ even when its size does not."""
    settings = read_settings(model)
    first = weights_digest(model, settings, tmp_path / "cache")
    flip_one_weight_bit(model)
    assert weights_digest(model, settings, tmp_path / "cache") != first


@pytest.mark.parametrize("damage", [b"", b"{}", b"not json", b'{"digest":"zz","stamp":[]}'])
def test_a_damaged_note_of_a_digest_is_written_anew(model: Path, tmp_path: Path, damage: bytes) -> None:
    """The cache is a convenience; its loss costs time only."""
    settings, cache = read_settings(model), tmp_path / "cache"
    first = weights_digest(model, settings, cache)
    (note,) = cache.iterdir()
    whole = note.read_bytes()
    note.write_bytes(damage)
    assert weights_digest(model, settings, cache) == first
    assert note.read_bytes() == whole


def header_of(path: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    """Return header and data of a safetensors file."""
    data = path.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def write_with_header(path: Path, header: object, data: bytes) -> None:
    """Write a safetensors file with any header."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 10**15]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]},
        {"dtype": 32, "shape": [2], "data_offsets": [0, 8]},
        {"shape": [2], "data_offsets": [0, 8]},
        [],
        None,
    ],
)
def test_a_tensor_that_lies_outside_its_file_is_refused(model: Path, entry: object) -> None:
    """A header comes from outside: no size in it is believed."""
    path = model / "model.safetensors"
    header, data = header_of(path)
    write_with_header(path, {**header, "hostile": entry}, data)
    with pytest.raises(FormatError, match="hostile"):
        digest(model)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 3) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"\xff" * 4,
    ],
)
def test_a_file_that_is_not_safetensors_is_refused(model: Path, data: bytes) -> None:
    """Before anything as large as the header claims is read."""
    (model / "model.safetensors").write_bytes(data)
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        digest(model)


def test_a_tensor_in_two_files_is_refused(model: Path) -> None:
    """Which one the library would load depends on its order."""
    split(model)
    (model / "b.safetensors").write_bytes((model / "a.safetensors").read_bytes())
    with pytest.raises(FormatError, match=r"is in a\.safetensors and in b\.safetensors"):
        digest(model)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/a.safetensors", 7])
def test_an_index_that_points_out_of_the_directory_is_refused(model: Path, name: object) -> None:
    """The index is as foreign as the weights."""
    split(model)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(FormatError, match="inside the directory"):
        digest(model)


def test_pickled_weights_are_refused_with_what_to_do(model: Path) -> None:
    """Unpickling runs whatever the file says."""
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(UnsupportedError, match=r"pickled \.bin weights are never loaded; save the model again as safetensors"):
        load_engine(model)


def test_a_directory_without_weights_is_refused(model: Path) -> None:
    """The message names the file that is missing."""
    (model / "model.safetensors").unlink()
    with pytest.raises(UnsupportedError, match=r"add model\.safetensors"):
        load_engine(model)


def test_an_adapter_beside_the_weights_is_refused(model: Path) -> None:
    """The library would load it where its extra is installed, and the keys would change under one namespace."""
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match="merge it into the weights"):
        load_engine(model)


def test_a_missing_tensor_is_refused(model: Path) -> None:
    """The library would fill it with random numbers and warn."""
    path = model / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InvalidInputError, match=r"1 weights are missing in model .* model\.layers\.1\.self_attn\.k_proj\.weight"):
        load_engine(model)


def test_what_is_not_a_model_directory_is_refused(tmp_path: Path) -> None:
    """A typo in a path is the most common mistake."""
    with pytest.raises(InvalidInputError, match="is not a directory"):
        load_engine(tmp_path / "absent")
    with pytest.raises(InvalidInputError, match=r"a model directory needs config\.json"):
        load_engine(tmp_path)


def test_an_unknown_family_is_refused_before_anything_is_loaded(model: Path) -> None:
    """The list of what is supported comes with the refusal."""
    edit_config(model, lambda c: c.update(model_type="mamba"))
    with pytest.raises(UnsupportedError, match="'mamba' is not supported; supported: llama"):
        load_engine(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": "four"}, "num_attention_heads"),
        ({"num_attention_heads": 3}, "not a multiple"),
        ({"num_hidden_layers": 5}, "weights are missing"),
        ({"hidden_size": 64}, "could not be loaded"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "factor"),
        ({"dtype": "float7"}, "float7"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(model: Path, change: dict[str, object], message: str) -> None:
    """Whatever the library raises, callers see one tree of errors."""
    edit_config(model, lambda c: c.update(change))
    with pytest.raises(InvalidInputError, match=message):
        load_engine(model)


def test_a_model_without_layers_is_refused(model: Path) -> None:
    """The library would load it."""
    edit_config(model, lambda c: c.update(num_hidden_layers=0))
    with pytest.raises(UnsupportedError, match="without layers"):
        load_engine(model)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_refused(model: Path, name: str) -> None:
    """As text that is no JSON."""
    (model / name).write_text("damaged")
    with pytest.raises(InvalidInputError, match="model could not be loaded"):
        load_engine(model)


def test_an_unknown_dtype_is_refused(model: Path) -> None:
    """float64 chunks have no codec."""
    with pytest.raises(UnsupportedError, match="'float64' is not supported; supported: float32, bfloat16, float16"):
        load_engine(model, dtype="float64")


def test_a_directory_without_tokenizer_is_refused(model: Path) -> None:
    """Nothing would tell two vocabularies apart."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (model / name).unlink(missing_ok=True)
    with pytest.raises(InvalidInputError, match=r"holds no tokenizer; add tokenizer\.json"):
        tokenizer_digest(model)
