"""Keys: what must change them, what must not, and what is refused."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kvstore.core.errors import FormatError, InvalidInputError, KVError
from kvstore.core.key import ChunkKey, Kind, chain_keys, content_key, storage_key, tenant_secret

DIGESTS = st.binary(min_size=32, max_size=32)
TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=20)
CHUNKS = st.lists(TOKENS, max_size=6)
NAMESPACE, PARENT = bytes(range(32)), bytes(range(32, 64))
BORDERS = [0, 1, 255, 256, 2**31 - 1, 2**31, 2**32 - 1]


def parent_of(kind: Kind) -> bytes | None:
    """Return what a key of this kind is chained to."""
    return None if kind is Kind.ALONE else PARENT


@pytest.mark.parametrize("kind", Kind)
@given(namespace=DIGESTS, token_ids=TOKENS)
def test_a_content_key_is_the_documented_hash(kind: Kind, namespace: bytes, token_ids: list[int]) -> None:
    """Written out again from the format's page, without the code under test."""
    text = b"larder/content/1\0" + namespace + bytes([kind]) + (parent_of(kind) or bytes(32))
    text += struct.pack(f"<Q{len(token_ids)}I", len(token_ids), *token_ids)
    assert content_key(namespace, kind, token_ids, parent_of(kind)) == hashlib.sha256(text).digest()


@given(a=TOKENS, b=TOKENS)
def test_other_tokens_have_other_keys(a: list[int], b: list[int]) -> None:
    """Whatever their number."""
    assume(a != b)
    assert content_key(NAMESPACE, Kind.ALONE, a) != content_key(NAMESPACE, Kind.ALONE, b)


@pytest.mark.parametrize("container", [list, tuple])
def test_the_container_of_tokens_changes_nothing(container: Callable[[list[int]], list[int]]) -> None:
    """Nor does the size of its integers."""
    assert content_key(NAMESPACE, Kind.ALONE, container(BORDERS)) == content_key(NAMESPACE, Kind.ALONE, BORDERS)


def test_kind_parent_and_namespace_are_part_of_the_key() -> None:
    """Six keys of the same tokens."""
    keys = {
        content_key(NAMESPACE, Kind.ALONE, [1, 2]),
        content_key(PARENT, Kind.ALONE, [1, 2]),
        content_key(NAMESPACE, Kind.DOCUMENT, [1, 2], PARENT),
        content_key(NAMESPACE, Kind.DOCUMENT, [1, 2], NAMESPACE),
        content_key(NAMESPACE, Kind.PREFIX, [1, 2], PARENT),
        content_key(NAMESPACE, Kind.PREFIX, [1, 2]),
    }
    assert len(keys) == 6


@pytest.mark.parametrize("token", [-1, 2**32, 2**64])
def test_a_token_that_no_vocabulary_has_is_refused(token: int) -> None:
    """With the range that is possible."""
    with pytest.raises(InvalidInputError, match="within 0 and 4294967295"):
        content_key(NAMESPACE, Kind.ALONE, [1, token])


@pytest.mark.parametrize(("kind", "parent"), [(Kind.ALONE, PARENT), (Kind.DOCUMENT, None)])
def test_a_parent_that_does_not_belong_to_the_kind_is_refused(kind: Kind, parent: bytes | None) -> None:
    """One content must not have two keys."""
    with pytest.raises(InvalidInputError, match="passage"):
        content_key(NAMESPACE, kind, [1], parent)


@pytest.mark.parametrize("n_bytes", [0, 31, 33])
def test_a_digest_of_another_length_is_refused_by_name(n_bytes: int) -> None:
    """Lengths are part of the format."""
    with pytest.raises(FormatError, match=f"namespace must be 32 B, got {n_bytes} B"):
        content_key(bytes(n_bytes), Kind.ALONE, [1])
    with pytest.raises(FormatError, match="parent"):
        content_key(NAMESPACE, Kind.PREFIX, [1], bytes(n_bytes))


@pytest.mark.parametrize("kind", [Kind.DOCUMENT, Kind.PREFIX])
@given(chunks=CHUNKS, more=CHUNKS)
def test_a_chain_depends_on_what_comes_before_and_on_nothing_behind(kind: Kind, chunks: list[list[int]], more: list[list[int]]) -> None:
    """Appending keeps every key."""
    assert chain_keys(NAMESPACE, kind, [*chunks, *more])[: len(chunks)] == chain_keys(NAMESPACE, kind, chunks)


@given(chunks=CHUNKS)
def test_documents_and_prompts_share_no_key(chunks: list[list[int]]) -> None:
    """Also the first chunk of each: only the document's is position-independent."""
    assert not set(chain_keys(NAMESPACE, Kind.DOCUMENT, chunks)) & set(chain_keys(NAMESPACE, Kind.PREFIX, chunks))


@given(namespace=DIGESTS, content=DIGESTS, variant=DIGESTS)
def test_a_chunk_key_survives_its_bytes(namespace: bytes, content: bytes, variant: bytes) -> None:
    """96 of them; views are as good as bytes."""
    key = ChunkKey(namespace, content, variant)
    assert ChunkKey.from_bytes(key.to_bytes()) == key
    assert ChunkKey.from_bytes(bytes(memoryview(key.to_bytes()))) == key
    assert content.hex().startswith(str(key).partition("@")[0])


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_key_or_an_error_of_ours(data: bytes) -> None:
    """Keys come from the wire."""
    try:
        assert ChunkKey.from_bytes(data).to_bytes() == data
    except KVError:
        assert len(data) != 96


def test_a_storage_key_depends_on_tenant_epochs_and_every_third_of_the_chunk_key() -> None:
    """Seven places for what differs in one thing each."""
    key = ChunkKey(NAMESPACE, PARENT, bytes(32))
    alice, bob = tenant_secret(b"master", "alice"), tenant_secret(b"master", "bob")
    places = {
        storage_key(alice, 0, 0, key),
        storage_key(bob, 0, 0, key),
        storage_key(tenant_secret(b"other", "alice"), 0, 0, key),
        storage_key(alice, 1, 0, key),
        storage_key(alice, 0, 1, key),
        storage_key(alice, 0, 0, ChunkKey(NAMESPACE, PARENT, NAMESPACE)),
        storage_key(alice, 0, 0, ChunkKey(NAMESPACE, NAMESPACE, bytes(32))),
        storage_key(alice, 0, 0, ChunkKey(PARENT, PARENT, bytes(32))),
    }
    assert len(places) == 8
    assert {len(place) for place in places} == {32}
