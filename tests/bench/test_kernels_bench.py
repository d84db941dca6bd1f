"""The benchmark of kernels: plain forms that say the same, every row by its name, and a word on what stays open."""

from __future__ import annotations

import pytest
import torch

from kvkernels import compiled, int8, kivi
from kvworker.bench import kernel_gpu
from kvworker.bench.benchmark import Asked
from kvworker.bench.kernel_plain import decode_int8, decode_kivi4, encode_int8, encode_kivi4
from kvworker.bench.kernels import KernelsBench

OPERATIONS = ("int8_encode", "int8_decode", "kivi4_encode", "kivi4_decode")


@pytest.fixture
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the test the ten seconds of compiling; `tests/kernels/test_compiled.py` covers what that makes."""
    monkeypatch.setattr(compiled, "has_compiler", lambda: False)


@pytest.mark.usefixtures("_uncompiled")
def test_every_operation_has_its_rows_and_what_is_open_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Programs read them by these names."""
    n_threads = torch.get_num_threads()
    rows = list(KernelsBench(sizes=(32,), turns=1).run(Asked()))
    on_cpu = {(row.variant, row.metric) for row in rows if row.metric.startswith(("eager", "blocked", "compiled"))}
    assert on_cpu == {(operation, f"{way}_gb_per_s") for operation in OPERATIONS for way in ("eager", "blocked")}
    assert {row.device.rpartition(", ")[2] for row in rows if row.metric == "eager_gb_per_s"} == {"1 threads", f"{n_threads} threads"}
    said = capsys.readouterr().err
    assert "compiled rows are open" in said
    assert ("GPU are open" in said) != torch.cuda.is_available()


def test_calls_timed_on_a_gpu_run_and_count_what_they_move() -> None:
    """On the CPU they run through the references: at least the codes and the values move."""
    x = torch.randn(kernel_gpu.HEADS, 64, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = list(kernel_gpu.cases(x))
    for case in found:
        case.call()
    names = {case.variant for case in found}
    assert {"int8_encode", "fp8_decode", "kivi4_token_encode", "turboquant3_decode", "skvq2_encode", "cq2_decode", "pca2_decode"} <= names
    assert {"kivi4_place", "fp8_place", "int8_place", "pca2_place", "values_place"} <= names
    assert all(case.nbytes > x.nbytes for case in found)


def test_plain_int8_is_the_reference() -> None:
    """A faster formula of something else would be no comparison."""
    x = torch.randn(2, 3, 40, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    plain, expected = encode_int8(x), int8.reference_encode(x)
    assert all(torch.equal(a, b) for a, b in zip(plain, expected, strict=True))
    assert torch.equal(decode_int8(*plain, x.dtype), int8.reference_decode(*expected, x.dtype))


@pytest.mark.parametrize("axis", ["token", "channel"])
def test_plain_kivi_loses_what_the_reference_loses(axis: kivi.Axis) -> None:
    """It rounds its scale to the nearest, so codes may differ by one."""
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    where = {"token": -2, "channel": -1}[axis]
    plain = decode_kivi4(*encode_kivi4(x, where), where).float()
    expected = kivi.reference_decode(*kivi.reference_encode(x, 4, 32, axis), x.shape, 4, 32, axis, x.dtype).float()
    assert (plain - x.float()).norm() == pytest.approx(float((expected - x.float()).norm()), rel=0.02)
