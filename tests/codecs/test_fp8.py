"""FP8 on the synthetic layer: the error of three bits of fraction, whatever the range."""

from __future__ import annotations

import pytest

from kvkernels import fp8
from tests.codecs.synth import layer, relative_error


@pytest.mark.parametrize("side", ["k", "v"])
def test_the_error_is_that_of_three_bits_of_fraction(side: str) -> None:
    """Keys with large channels lose no more than values without (0.027 for both)."""
    x = getattr(layer(0, 512), side)
    assert relative_error(fp8.decode(*fp8.encode(x), x.dtype), x) == pytest.approx(0.027, rel=0.1)
