"""Compiled forms for the CPU equal the references bit for bit, and stand back where they do not fit."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator

import pytest
import torch

from kvkernels import clipped, compiled, int8, int8_compiled, kivi, kivi_compiled

DIM, V_DIM, DTYPE = 32, 48, torch.bfloat16

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for the CPU with g++, which is not installed")


@pytest.fixture(scope="module")
def _prepared() -> Iterator[None]:
    """Compile for small heads, once: about ten seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's compiler uses what torch deprecates
        int8_compiled.prepare(DIM, V_DIM, DTYPE)
        kivi_compiled.prepare(DIM, DTYPE)
    yield
    compiled.forget()


def values(n_tokens: int, dtype: torch.dtype = DTYPE, dim: int = DIM) -> torch.Tensor:
    """Draw normal values with a large channel, a constant one and a group of zeros, some of them negative."""
    x = torch.randn(2, 4, n_tokens, dim, generator=torch.Generator().manual_seed(0))
    x[..., 3] = x[..., 3] * 30 + 100
    x[..., 7] = 0.25
    x[0, 0, :32] = 0.0
    x[0, 0, :32:3] = -0.0
    return x.to(dtype)


@needs_compiler
@pytest.mark.usefixtures("_prepared")
@pytest.mark.parametrize("n_tokens", [512, 544])
def test_int8_is_compiled_to_equal_bits(n_tokens: int) -> None:
    """Any number of tokens runs through one compiled form."""
    k, v = values(n_tokens), values(n_tokens, dim=V_DIM)
    expected = [int8.reference_encode(x) for x in (k, v)]
    for x, parts in zip((k, v), expected, strict=True):
        assert int8_compiled.encodes(x)
        assert all(torch.equal(a, b) for a, b in zip(int8.encode(x), parts, strict=True))
    assert int8_compiled.decodes(*expected, DTYPE)
    back = int8.decode_both(*expected, DTYPE)
    assert all(torch.equal(a, int8.reference_decode(*parts, DTYPE)) for a, parts in zip(back, expected, strict=True))


@needs_compiler
@pytest.mark.usefixtures("_prepared")
def test_k_and_v_that_were_not_compiled_together_are_decoded_apart() -> None:
    """V of the width of K has no form here, nor has float32."""
    parts = int8.encode(values(512))
    for dtype in (DTYPE, torch.float32):
        assert not int8_compiled.decodes(parts, parts, dtype)
        assert all(torch.equal(x, int8.reference_decode(*parts, dtype)) for x in int8.decode_both(parts, parts, dtype))


@needs_compiler
@pytest.mark.usefixtures("_prepared")
def test_compiled_decoding_refuses_scales_of_other_tokens() -> None:
    """Bytes from outside reach it first."""
    k, v = (int8.encode(values(512, dim=dim)) for dim in (DIM, V_DIM))
    with pytest.raises(ValueError, match="scale: expected"):
        int8.decode_both(k, (v[0], v[1][:, :, 1:].contiguous()), DTYPE)


@needs_compiler
@pytest.mark.usefixtures("_prepared")
@pytest.mark.parametrize(("axis", "n_tokens"), [("token", 512), ("token", 544), ("channel", 512), ("channel", 539)])
def test_kivi_of_4_bits_is_compiled_to_equal_bits(axis: kivi.Axis, n_tokens: int) -> None:
    """Scales cut toward zero and plus zeros included; 4,312 groups of channels do not fill their last tile of 32."""
    x = values(n_tokens)
    expected = kivi.reference_encode(x, 4, 32, axis)
    assert kivi_compiled.encodes(x, 4, 32, axis)
    found = kivi.encode(x, 4, 32, axis)
    assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(found, expected, strict=True))
    assert kivi_compiled.decodes(expected, tuple(x.shape), 4, 32, axis)
    back = kivi.decode(*expected, x.shape, 4, 32, axis, DTYPE)
    assert torch.equal(back, kivi.reference_decode(*expected, x.shape, 4, 32, axis, DTYPE))


@needs_compiler
@pytest.mark.usefixtures("_prepared")
@pytest.mark.parametrize("offset", [1, 4])
def test_codes_anywhere_in_a_buffer_are_decoded(offset: int) -> None:
    """Four at a time where that is possible."""
    x = values(512)
    codes, scale, zero = kivi.reference_encode(x, 4, 32, "channel")
    inside = torch.cat((torch.zeros(offset, dtype=torch.uint8), codes.flatten()))[offset:].view(codes.shape)
    assert kivi_compiled.decodes((inside, scale, zero), tuple(x.shape), 4, 32, "channel") == (offset == 4)
    back = kivi.decode(inside, scale, zero, x.shape, 4, 32, "channel", DTYPE)
    assert torch.equal(back, kivi.reference_decode(codes, scale, zero, x.shape, 4, 32, "channel", DTYPE))


@needs_compiler
@pytest.mark.usefixtures("_prepared")
@pytest.mark.parametrize("axis", kivi.AXES)
def test_clipped_of_4_bits_is_decoded_by_the_forms_of_kivi(axis: kivi.Axis) -> None:
    """Its parameters have the dtype of the model once they are widened."""
    x = values(512)
    parts = clipped.encode(x, 4, 32, axis, clipped.least_squares)
    wide = (parts.codes, *clipped.parameters(*parts[1:]))
    assert kivi_compiled.decodes(wide, tuple(x.shape), 4, 32, axis)
    assert torch.equal(clipped.decode(parts, x.shape, 4, 32, axis, DTYPE), kivi.reference_decode(*wide, x.shape, 4, 32, axis, DTYPE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scales_are_cut_by_their_bits_as_by_a_cast_toward_zero(dtype: torch.dtype) -> None:
    """Steps from the floor over subnormals of float16 up to its largest."""
    step = torch.logspace(-19, 15.9, 20_001, base=2.0)
    assert torch.equal(kivi_compiled.cut(step, dtype), kivi.rounded_toward_zero(step, dtype).float())


@needs_compiler
@pytest.mark.usefixtures("_prepared")
def test_compiled_forms_serve_inference_mode_without_compiling_again() -> None:
    """A worker encodes in whatever mode its thread is in; seconds of compiling there would be a fault."""
    with torch.inference_mode():
        x = values(256)
        assert torch.equal(int8.encode(x)[0], int8.reference_encode(x)[0])


@needs_compiler
@pytest.mark.usefixtures("_prepared")
@pytest.mark.parametrize("x", [values(8), values(256, torch.float32), values(256)[:, :, :, :16], values(512)[:, :, ::2]])
def test_other_tensors_go_through_the_reference(x: torch.Tensor) -> None:
    """Too few values, another dtype, other heads, strides."""
    assert not int8_compiled.encodes(x)
    assert not kivi_compiled.encodes(x, 4, 32, "token")
    assert torch.equal(int8.encode(x)[0], int8.reference_encode(x)[0])


@needs_compiler
@pytest.mark.usefixtures("_prepared")
@pytest.mark.parametrize(("bits", "group", "n_tokens"), [(2, 32, 256), (4, 64, 256), (4, 32, 257)])
def test_other_grids_and_short_groups_go_through_the_reference(bits: int, group: int, n_tokens: int) -> None:
    """Only what is compiled is taken."""
    assert not kivi_compiled.encodes(values(n_tokens), bits, group, "token")


def test_a_compiler_that_is_not_there_is_not_counted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The references go on."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not compiled.has_compiler()
