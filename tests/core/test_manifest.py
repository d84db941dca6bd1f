"""Manifests are read from untrusted bytes: whatever is not one is refused by an error of ours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.core.blob import build_blob, verify_blob
from kvstore.core.errors import FormatError
from kvstore.core.key import Kind
from kvstore.core.manifest import FieldSpec, Manifest, PartSpec
from kvstore.core.stages import PipelineSpec, StageSpec

Tree = dict[str, Any]


def good(kind: Kind = Kind.DOCUMENT) -> Manifest:
    """Return a manifest of two parts with two fields each, its places filled in."""
    fields = (FieldSpec("k.codes", "int8", (2, 3)), FieldSpec("k.scale", "float32", (2, 1)))
    parts = tuple(PartSpec(group, (2 * group, 2 * group + 1), 1, 3, 3, fields) for group in range(2))
    codec = PipelineSpec((StageSpec("int8", (("eps", 1e-8),)), StageSpec("zstd", (("level", 3),))), "ab" * 32)
    parent = b"" if kind is Kind.ALONE else bytes(32)
    manifest = Manifest(bytes(32), bytes(range(32)), kind, parent, 5, "bfloat16", codec, parts)
    return verify_blob(build_blob(manifest, [[bytes(6), bytes(8)]] * 2)).manifest


@pytest.mark.parametrize("kind", Kind)
def test_a_manifest_reads_back_the_same(kind: Kind) -> None:
    """All three kinds."""
    manifest = good(kind)
    assert Manifest.from_json(manifest.to_json()) == manifest


def places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the path of everything inside a tree."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [p for key, inner in items for p in ((*path, key), *places(inner, (*path, key)))]


def changed(path: tuple[str | int, ...], change: Callable[[Any, str | int], None]) -> Tree:
    """Return a good manifest with something done at a place: `change` gets its container and key."""
    tree: Any = copy.deepcopy(good().to_json())
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    change(inner, path[-1])
    return tree  # type: ignore[no-any-return]


PLACES = places(good().to_json())
WRONG: list[object] = [None, True, -1, 2**48, 1.5, float("nan"), "", "x" * 300, "é", [], {}, [[]], [None], {"name": 1}]


@settings(max_examples=400)
@given(path=st.sampled_from(PLACES), wrong=st.sampled_from(WRONG))
def test_a_wrong_value_anywhere_is_read_faithfully_or_refused(path: tuple[str | int, ...], wrong: object) -> None:
    """Nothing is guessed, nothing is dropped, and no other error comes out."""

    def put(container: Any, key: str | int) -> None:
        container[key] = wrong

    tree = changed(path, put)
    with suppress(FormatError):
        assert Manifest.from_json(tree).to_json() == tree


@pytest.mark.parametrize("path", [p for p in PLACES if isinstance(p[-1], str) and "params" not in p[:-1]], ids=str)
def test_a_missing_field_is_refused(path: tuple[str | int, ...]) -> None:
    """Parameters of stages apart, all of them are needed."""

    def remove(container: Any, key: str | int) -> None:
        del container[key]

    with pytest.raises(FormatError):
        Manifest.from_json(changed(path, remove))


@pytest.mark.parametrize("path", [("new",), ("parts", 0, "new"), ("parts", 1, "fields", 0, "new"), ("codec", 0, "new")], ids=str)
def test_a_field_that_is_not_known_is_refused(path: tuple[str | int, ...]) -> None:
    """A newer writer may have meant something by it."""

    def add(container: Any, key: str | int) -> None:
        container[key] = 1

    with pytest.raises(FormatError):
        Manifest.from_json(changed(path, add))


CHANGES: dict[str, tuple[tuple[str | int, ...], object]] = {
    "no tokens": (("n_tokens",), 0),
    "boolean tokens": (("n_tokens",), True),
    "another dtype": (("dtype",), "float64"),
    "keys behind RoPE": (("rope",), "post"),
    "an upper-case kind": (("kind",), "ALONE"),
    "an unknown kind": (("kind",), "latent"),
    "a short digest": (("content",), "00" * 31),
    "an upper-case digest": (("namespace",), "AB" * 32),
    "a digest with spaces": (("namespace",), "0 " * 32 + "00" * 16),
    "no parts": (("parts",), []),
    "a part twice": (("parts", 1, "group"), 0),
    "no layers": (("parts", 0, "layers"), []),
    "no heads": (("parts", 0, "kv_heads"), 0),
    "a field at an odd place": (("parts", 0, "fields", 1, "offset"), 6),
    "two fields of one name": (("parts", 0, "fields", 1, "name"), "k.codes"),
    "an unknown element type": (("parts", 0, "fields", 0, "dtype"), "float8"),
    "a packing that no stage could have": (("parts", 0, "fields", 0, "packing"), "../gzip"),
    "a shape that its bytes do not hold": (("parts", 0, "fields", 0, "shape"), [2, 4]),
    "a shape of a tebibyte": (("parts", 0, "fields", 0, "shape"), [2**20, 2**20]),
    "a part longer than its fields": (("parts", 0, "nbytes"), 1000),
    "too many stages": (("codec",), [{"name": "raw", "params": {}}] * 17),
    "a nested parameter": (("codec", 0, "params"), {"eps": [1]}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_can_not_be_is_refused(name: str) -> None:
    """Whatever digest stands over it."""
    path, value = CHANGES[name]

    def put(container: Any, key: str | int) -> None:
        container[key] = value

    with pytest.raises(FormatError):
        Manifest.from_json(changed(path, put))


@pytest.mark.parametrize("value", [None, [], 3, "text", {}])
def test_what_is_no_object_is_refused(value: Any) -> None:
    """Not even a mapping."""
    with pytest.raises(FormatError):
        Manifest.from_json(value)
