"""FP8 on the synthetic layer: the error of three bits of fraction, whatever the range."""

from __future__ import annotations

import pytest

from kvkernels import fp8
from tests.codecs.synth import layer, relative_error
from tests.codecs.synth_model import attention_error


@pytest.mark.parametrize("side", ["k", "v"])
def test_the_error_is_that_of_three_bits_of_fraction(side: str) -> None:
    """Keys with large channels lose no more than values without (0.027 for both)."""
    x = getattr(layer(0, 512), side)
    assert relative_error(fp8.decode(*fp8.encode(x), x.dtype), x) == pytest.approx(0.027, rel=0.1)


def test_attention_is_off_by_what_the_method_file_says() -> None:
    """0.079 for K and V together."""
    text = layer(0)
    k, v = (fp8.decode(*fp8.encode(x), x.dtype) for x in (text.k, text.v))
    assert attention_error(text, k, v) == pytest.approx(0.079, rel=0.1)
