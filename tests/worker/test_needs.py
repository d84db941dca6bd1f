"""Passages read alone know how much each of their tokens needs the document, and keep it through every store and reader."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvclient.reader.chunk import decode_part as numpy_decode_part
from kvstore.core.blob import BufferedBlob
from kvstore.core.errors import FormatError, InvalidInputError
from kvstore.core.key import Kind, content_key
from kvworker.chunk import KVChunk, PassageKV
from kvworker.codec.decode import decode_part
from kvworker.codec.specs import find_codec
from kvworker.ingest.ingest import Ingested
from tests.engine.prompts import Tiny, random_passages
from tests.worker.conftest import MakeLab
from tests.worker.lab import TEXTS, Lab


def stored_need(lab: Lab, done: Ingested, kind: Kind) -> torch.Tensor | None:
    """Return the need that the stored chunk of one reading of a passage holds."""
    passage = done.passage
    namespace = lab.tiny.engine.identity.namespace
    alone = passage.alone(namespace) if kind is Kind.ALONE else passage
    reader = lab.caller.store.get(alone.key(namespace, lab.worker.pipeline.spec.variant()))
    assert reader is not None
    need = decode_part(reader.manifest, 0, bytes(reader.part(0))).need
    reader.close()
    return need


@pytest.fixture
def noting(make_lab: MakeLab) -> Lab:
    """Return a worker whose policy repairs by what passages need."""
    return make_lab(policy="chunk_score")


@pytest.mark.parametrize("read_as", ["alone", "both"])
def test_ingest_notes_what_passages_read_alone_need(noting: Lab, read_as: str) -> None:
    """Measured in their document; its first passage needs nothing."""
    done = noting.ingest("a.txt", TEXTS, read_as)
    tokens = [row.passage.token_ids for row in done]
    measured = noting.tiny.engine.dependence(tokens)
    for row, expected in zip(done, measured, strict=True):
        need = stored_need(noting, row, Kind.ALONE)
        assert need is not None
        assert torch.equal(need, expected)
    assert measured[0].count_nonzero() == 0 < measured[1].count_nonzero()


def test_a_worker_whose_policy_reads_no_needs_notes_none(lab: Lab) -> None:
    """Each passage goes through the model once, and the document not once more."""
    done = lab.ingest("a.txt", TEXTS, "alone")
    assert [stored_need(lab, row, Kind.ALONE) for row in done] == [None, None, None]
    assert [row.tokens_read for row in done] == [len(row.passage.token_ids) for row in done]


def test_passages_read_in_their_document_need_nothing_noted(noting: Lab) -> None:
    """What they need is in them."""
    done = noting.ingest("a.txt", TEXTS, "both")
    assert stored_need(noting, done[1], Kind.DOCUMENT) is None


def restored_need(lab: Lab, done: Ingested) -> torch.Tensor | None:
    """Have the store lose a passage that was read alone, restore it, and return its need."""
    passage = done.passage.alone(lab.tiny.engine.identity.namespace)
    lab.caller.store.delete([passage.key(lab.tiny.engine.identity.namespace, lab.worker.pipeline.spec.variant())])
    lab.worker._ingestor.restore("alice", lab.caller.store, passage)
    return stored_need(lab, done, Kind.ALONE)


@pytest.mark.parametrize("read_as", ["alone", "both"])
def test_a_passage_that_was_restored_needs_what_it_needed(noting: Lab, read_as: str) -> None:
    """Its document is known by its source, and read up to it once more."""
    done = noting.ingest("a.txt", TEXTS, read_as)
    before, after = stored_need(noting, done[2], Kind.ALONE), restored_need(noting, done[2])
    assert before is not None
    assert after is not None
    assert torch.allclose(before.float(), after.float(), atol=2e-3)  # shorter prompts round otherwise; a float16 step at 1 is 1e-3


def test_a_restored_passage_that_stands_nowhere_any_more_says_nothing(noting: Lab) -> None:
    """Nobody knows its document; policies compute it whole."""
    done = noting.ingest("a.txt", TEXTS, "alone")
    noting.ingest("a.txt", ["Something else.", "And more."], "alone")
    assert restored_need(noting, done[1]) is None


def exported(tiny: Tiny, n_tokens: int = 9) -> PassageKV:
    """Return a passage."""
    return tiny.engine.export(random_passages([n_tokens]))[0]


def blob_of(tiny: Tiny, kv: PassageKV, codec: str = "raw") -> BufferedBlob:
    """Return a passage encoded."""
    key = content_key(tiny.engine.identity.namespace, Kind.ALONE, (1,))
    return BufferedBlob(find_codec(codec).encode(kv, tiny.engine.identity, Kind.ALONE, key), "")


@pytest.mark.parametrize("codec", ["raw", "lossless", "int8", "kivi4"])
def test_every_codec_and_reader_takes_the_need_along(tiny: Tiny, codec: str) -> None:
    """It is not the codec's; K and V are what they are without it."""
    kv = exported(tiny)
    need = torch.arange(9).to(torch.float16) / 16
    plain, known = blob_of(tiny, kv, codec), blob_of(tiny, (replace(kv[0], need=need), *kv[1:]), codec)
    before, behind = (decode_part(blob.manifest, 0, blob.part(0)) for blob in (plain, known))
    assert before.need is None
    assert behind.need is not None
    assert torch.equal(behind.need, need)
    assert torch.equal(before.k, behind.k)
    for one, other in zip(*(numpy_decode_part(blob.manifest, 0, blob.part(0)) for blob in (plain, known)), strict=True):
        assert (one == other).all()


def test_a_need_in_another_part_than_the_first_is_refused(tiny: Tiny) -> None:
    """There is one for all layers."""
    kv = exported(tiny)
    blob = blob_of(tiny, (kv[0], replace(kv[1], need=torch.zeros(9, dtype=torch.float16)), *kv[2:]))
    for decode in (decode_part, numpy_decode_part):
        with pytest.raises(FormatError, match="part 1"):
            decode(blob.manifest, 1, blob.part(1))


@pytest.mark.parametrize("need", [torch.zeros(8, dtype=torch.float16), torch.zeros(9), torch.zeros(9, 1, dtype=torch.float16)])
def test_a_need_of_another_shape_is_refused(tiny: Tiny, need: torch.Tensor) -> None:
    """One float16 per token."""
    chunk = exported(tiny)[0]
    with pytest.raises(InvalidInputError, match=r"need must be \(9,\) float16"):
        KVChunk(chunk.k, chunk.v, need)


def test_a_copy_keeps_the_need(tiny: Tiny) -> None:
    """In memory of its own, as the device tier wants it."""
    chunk = replace(exported(tiny)[0], need=torch.ones(9, dtype=torch.float16))
    copied = chunk.copy()
    assert copied.need is not None
    assert chunk.need is not None
    assert torch.equal(copied.need, chunk.need)
    assert copied.need.data_ptr() != chunk.need.data_ptr()
