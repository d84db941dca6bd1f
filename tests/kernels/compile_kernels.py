"""Compile every kernel for the compute capabilities that are served, without a GPU, and print a JSON object per case.

Each kernel is compiled in every dtype it accepts (the slow ones in one), and in the first once more with each integer equal to 1, which
triton turns into a compile-time constant. An object holds capability, kernel, variant, nbytes of machine code, and error (null if none).
"""

from __future__ import annotations

import importlib
import itertools
import json
import pkgutil
from collections.abc import Iterator

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

import kvkernels

CAPABILITIES = (80, 90, 100)
FLOATS = ("fp32", "fp16", "bf16")
Case = tuple[dict[str, str], dict[str, float]]  # types of the pointers, compile-time constants


def int8_cases() -> Iterator[tuple[str, Case]]:
    """Yield kernels with their variants."""
    shape = {"D": 80, "BLOCK_D": 128, "ROWS": 32}
    for dtype in FLOATS:
        yield "encode_kernel", ({"x_ptr": dtype, "codes_ptr": "i8", "scale_ptr": "fp32"}, shape)
        yield "decode_kernel", ({"codes_ptr": "i8", "scale_ptr": "fp32", "out_ptr": dtype}, shape)


def fp8_cases() -> Iterator[tuple[str, Case]]:
    """Yield kernels with their variants."""
    for dtype in FLOATS:
        yield "largest_kernel", ({"x_ptr": dtype, "largest_ptr": "i32"}, {"BLOCK": 4096})
        yield "encode_kernel", ({"x_ptr": dtype, "inverse_ptr": "fp32", "codes_ptr": "u8"}, {"BLOCK": 4096})
        yield "decode_kernel", ({"codes_ptr": "u8", "scale_ptr": "fp32", "out_ptr": dtype}, {"BLOCK": 4096})


def hadamard_cases() -> Iterator[tuple[str, Case]]:
    """Yield kernels with their variants: 3 bits, the one width whose words span bytes. They take a second each, so one dtype has to do."""
    shape = {"ROWS": 16, "N": 128, "LOG_N": 7, "SQRT_N": 128**0.5, "BITS": 3, "K": 8, "BYTES": 3, "LARGEST": 65504.0}
    stored = {"codes_ptr": "u8", "scale_ptr": "bf16", "zero_ptr": "bf16"}
    yield "encode_kernel", ({"x_ptr": "bf16"} | stored, shape)
    yield "decode_kernel", ({"out_ptr": "bf16"} | stored, shape)


def turboquant_cases() -> Iterator[tuple[str, Case]]:
    """Yield kernels with their variants; a second each, too."""
    shape = {"ROWS": 16, "N": 128, "LOG_N": 7, "SQRT_N": 128**0.5, "BITS": 4, "K": 2, "BYTES": 1}
    stored = {"codes_ptr": "u8", "norm_ptr": "bf16", "signs_ptr": "fp32"}
    yield "encode_kernel", ({"x_ptr": "bf16", "middles_ptr": "fp32"} | stored, shape | {"LARGEST": 65504.0})
    yield "decode_kernel", ({"out_ptr": "bf16", "levels_ptr": "fp32"} | stored, shape)


def place_cases() -> Iterator[tuple[str, Case]]:
    """Yield the kernel with its variants: every codec for keys of which 32 of 80 channels rotate, values and 4-bit codes of V."""
    shape = {"D": 80, "BLOCK_HALF": 16, "TOKENS": 32}
    keys, values = shape | {"R": 32, "BLOCK_REST": 64}, shape | {"R": 0, "BLOCK_REST": 128}
    others = {"cos_ptr": "fp32", "sin_ptr": "fp32", "rows_ptr": "i64"}
    codecs = (
        (0, "i8", "fp32", keys),
        (1, "u8", "fp32", keys),
        (2, "u8", "bf16", keys),
        (3, "u8", "bf16", values),
        (4, "bf16", "bf16", keys),
    )
    for codec, codes, parameter, constants in codecs:
        for cache in FLOATS if codec == 0 else ("bf16",):
            pointers = {"codes_ptr": codes, "scale_ptr": parameter, "zero_ptr": parameter, "cache_ptr": cache} | others
            yield "write_kernel", (pointers, constants | {"CODEC": codec, "BITS": 4 if codec in (2, 3) else 8, "GROUP": 32})


def exponent_split_cases() -> Iterator[tuple[str, Case]]:
    """Yield kernels with their variants; both 16-bit dtypes are read as i16."""
    for kernel, (word, itemsize) in itertools.product(("encode_kernel", "decode_kernel"), (("i16", 2), ("i32", 4))):
        yield kernel, ({"word_ptr": word, "exponent_ptr": "u8", "rest_ptr": "u8"}, {"ITEMSIZE": itemsize, "BLOCK": 2048})


def kivi_cases() -> Iterator[tuple[str, Case]]:
    """Yield kernels with their variants: W is D along tokens and 1 along channels."""
    for dtype, (bits, width, k, n) in itertools.product(FLOATS, ((3, 80, 8, 3), (4, 1, 2, 1))):
        grid = {"W": width, "BITS": bits, "GROUP": 32, "K": k, "N": n, "BLOCK": 128}
        stored = {"codes_ptr": "u8", "scale_ptr": dtype, "zero_ptr": dtype}
        yield "encode_kernel", ({"x_ptr": dtype} | stored, grid)
        yield "decode_kernel", (stored | {"out_ptr": dtype}, grid)


def cq_cases() -> Iterator[tuple[str, Case]]:
    """Yield kernels with their variants; the search takes seconds to compile, so one dtype has to do."""
    grid = {"D": 80, "COUPLE": 4, "VECTORS": 256}
    yield "nearest_kernel", ({"x_ptr": "bf16", "vectors_ptr": "fp16", "found_ptr": "i16"}, grid | {"ROWS": 16})
    for dtype, code in zip(FLOATS, ("u8", "i16", "u8"), strict=True):
        yield "gather_kernel", ({"found_ptr": code, "vectors_ptr": "fp16", "out_ptr": dtype}, grid | {"BLOCK_D": 128, "ROWS": 16})


def pca_cases() -> Iterator[tuple[str, Case]]:
    """Yield kernels with their variants; keys have no gain, values have one."""
    shape = {"TOKENS": 32, "CHANNELS": 32, "RANK": 32}
    tables = {"weight_ptr": "fp32", "mean_ptr": "fp32", "basis_ptr": "fp16", "step_ptr": "fp32", "width_ptr": "i32", "start_ptr": "i32"}
    for dtype, has_gain, gain in (("fp32", 0, "fp32"), ("fp16", 1, "u8"), ("bf16", 1, "u8")):
        pointers = {"gain_ptr": gain, **tables, "codes_ptr": "u8"}
        yield "encode_kernel", (pointers | {"x_ptr": dtype}, shape | {"HAS_GAIN": has_gain})
        yield "decode_kernel", (pointers | {"out_ptr": dtype}, shape | {"HAS_GAIN": has_gain, "LARGEST": 65504.0})
    places = {"cos_ptr": "fp32", "sin_ptr": "fp32", "rows_ptr": "i64", "cache_ptr": "bf16", "codes_ptr": "u8", **tables}
    for rotary_dim, has_gain, gain, channels in ((128, 0, "fp32", 128), (0, 1, "u8", 32)):
        constants = shape | {"R": rotary_dim, "HAS_GAIN": has_gain, "LARGEST": 3e38, "CHANNELS": channels}
        yield "write_kernel", (places | {"gain_ptr": gain}, constants)


def skvq_cases() -> Iterator[tuple[str, Case]]:
    """Yield kernels with their variants: words of five codes, and of three bytes; a second each, so not in every dtype."""
    for dtype, parameter, levels, k, n in (("bf16", "u8", 3, 5, 1), ("fp16", "fp16", 8, 8, 3)):
        shape = {"LEVELS": levels, "IS_FLOAT8": int(parameter == "u8"), "K": k, "N": n, "SLOTS": 8, "WORDS": 64}
        stored = {"codes_ptr": "u8", "scale_ptr": parameter, "zero_ptr": parameter, "groups_ptr": "i64", "unit_ptr": "fp32"}
        largest = {"LARGEST": 448.0 if parameter == "u8" else 65504.0, "GROUPS": 4}
        yield "encode_kernel", (stored | {"x_ptr": dtype, "clip_ptr": "fp32"}, shape | largest)
        yield "decode_kernel", (stored | {"out_ptr": dtype}, shape)


def rotate_scatter_cases() -> Iterator[tuple[str, Case]]:
    """Yield the kernel with its variants; 80 channels of which 32 rotate."""
    shape = {"D": 80, "R": 32, "BLOCK_HALF": 16, "BLOCK_REST": 64, "TOKENS": 32}
    for source, target in [*((dtype, dtype) for dtype in FLOATS), ("fp32", "bf16")]:
        pointers = {"keys_ptr": source, "cos_ptr": "fp32", "sin_ptr": "fp32", "rows_ptr": "i64", "cache_ptr": target}
        yield "write_kernel", (pointers, shape)


CASES = {
    "int8_triton": int8_cases,
    "fp8_triton": fp8_cases,
    "hadamard_triton": hadamard_cases,
    "turboquant_triton": turboquant_cases,
    "place_triton": place_cases,
    "exponent_split_triton": exponent_split_cases,
    "kivi_triton": kivi_cases,
    "cq_triton": cq_cases,
    "pca_triton": pca_cases,
    "rotate_scatter_triton": rotate_scatter_cases,
    "skvq_triton": skvq_cases,
}


def kernels() -> dict[str, JITFunction]:
    """Find every kernel of the package: what ends in _kernel in a module that ends in _triton."""
    modules = [module.name for module in pkgutil.iter_modules(kvkernels.__path__) if module.name.endswith("_triton")]
    members = {name: vars(importlib.import_module(f"kvkernels.{name}")) for name in modules}
    return {f"{module}.{name}": kernel for module in modules for name, kernel in members[module].items() if name.endswith("_kernel")}


def compile_case(kernel: JITFunction, case: Case, integers: str, capability: int) -> int:
    """Return the bytes of machine code. integers is i32, or constexpr where every integer is 1."""
    pointers, constants = case
    others = [name for name in kernel.arg_names if name not in pointers | constants]
    types = (
        {name: f"*{dtype}" for name, dtype in pointers.items()} | dict.fromkeys(constants, "constexpr") | dict.fromkeys(others, integers)
    )
    ones = dict.fromkeys(others, 1) if integers == "constexpr" else {}
    source = ASTSource(kernel, {name: types[name] for name in kernel.arg_names}, constexprs=constants | ones)
    return len(triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"])


def outcomes(capability: int) -> Iterator[dict[str, object]]:
    """Compile all cases for one capability."""
    by_name = kernels()
    compiled = set()
    for module, cases in CASES.items():
        for name, case in ((f"{module}.{name}", case) for name, case in cases()):
            for integers in ("i32",) if name in compiled else ("i32", "constexpr"):
                outcome = {
                    "capability": capability,
                    "kernel": name,
                    "variant": [*case[0].values(), *case[1].values(), integers],
                    "error": None,
                }
                try:
                    yield outcome | {"nbytes": compile_case(by_name[name], case, integers, capability)}
                except Exception as error:
                    yield outcome | {"nbytes": 0, "error": f"{type(error).__name__}: {error}"}
            compiled.add(name)
    for name in by_name.keys() - compiled:
        yield {"capability": capability, "kernel": name, "variant": [], "nbytes": 0, "error": "no case compiles this kernel"}


if __name__ == "__main__":
    for capability in CAPABILITIES:
        for outcome in outcomes(capability):
            print(json.dumps(outcome), flush=True)
