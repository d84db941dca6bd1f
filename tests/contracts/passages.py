"""Passages that the codec contracts draw: few tokens or a group boundary, odd dims, any dtype."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

from kvstore.core.identity import ModelIdentity
from kvworker.chunk import DTYPES, PassageKV
from tests.contracts.codecs import identity_for, make_passage

BOUNDARIES = (1, 31, 32, 33, 64)


@st.composite
def passages(draw: st.DrawFn) -> tuple[ModelIdentity, PassageKV]:
    """Draw a passage: few tokens or a group boundary, odd dims, any dtype."""
    small = st.integers(1, 3)
    dims = st.sampled_from([1, 2, 3, 7, 8, 9, 31, 32, 33])
    shape = (draw(small), draw(small), draw(dims), draw(dims))
    identity = identity_for(shape, dtype=draw(st.sampled_from(sorted(DTYPES))))
    n_tokens = draw(st.one_of(st.integers(1, 10), st.sampled_from(BOUNDARIES)))
    return identity, make_passage(identity, n_tokens, seed=draw(st.integers(0, 1000)))


each_example = settings(max_examples=25, derandomize=True, database=None)
