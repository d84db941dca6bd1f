"""Matching pursuit: every step takes its share of what is left, and no more is lost than it says."""

from __future__ import annotations

import pytest
import torch

from kvkernels import csr


def values(n_tokens: int, dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return x (2, 3, T, D)."""
    return torch.randn(2, 3, n_tokens, dim, generator=torch.Generator().manual_seed(0)).to(dtype)


def random_atoms(n_atoms: int, width: int) -> torch.Tensor:
    """Return dictionaries (2, N, W) of rows of length 1."""
    atoms = torch.randn(2, n_atoms, width, generator=torch.Generator().manual_seed(1))
    return atoms / atoms.norm(dim=2, keepdim=True)


def back(x: torch.Tensor, dictionaries: torch.Tensor, split: int, steps: int) -> torch.Tensor:
    """Encode and decode."""
    return csr.decode(*csr.encode(x, dictionaries, split, steps), dictionaries, x.shape[-1], split, x.dtype)


def test_what_is_left_falls_by_the_square_of_the_coefficient() -> None:
    """The method's identity; float16 rounds a coefficient by 2**-11 at most, which its square feels twice over again."""
    x, atoms = values(50, 16)[0, 0], random_atoms(64, 16)[0]
    for steps in range(6):
        before, after = (csr.pursue(x, atoms, n)[2].square().sum(1) if n else x.square().sum(1) for n in (steps, steps + 1))
        own = csr.pursue(x, atoms, steps + 1)[1][:, -1].float()
        assert ((before - after - own.square()).abs() <= 2.0**-10 * own.square() + 1e-5 * x.square().sum(1)).all()


@pytest.mark.parametrize("n_tokens", [1, 63, 257])
def test_the_error_never_rises_with_the_steps(n_tokens: int) -> None:
    x, atoms = values(n_tokens, 16), random_atoms(64, 16)
    errors = torch.stack([(back(x, atoms, 1, steps) - x).norm(dim=-1) for steps in (1, 2, 4, 8)])
    assert (errors.diff(dim=0) <= 1e-5).all()


@pytest.mark.parametrize(("dim", "split"), [(16, 1), (17, 2), (18, 4)])
def test_what_comes_back_is_what_pursuit_leaves_out(dim: int, split: int) -> None:
    """Pieces need not divide a head."""
    x, atoms = values(5, dim), random_atoms(32, -(-dim // split))
    left = torch.stack([csr.pursue(csr.pieces_of(own, split), atoms[n], 3)[2] for n, own in enumerate(x)])
    torch.testing.assert_close(x - back(x, atoms, split, 3), left.view(*x.shape[:3], -1)[..., :dim], rtol=0, atol=1e-5)


def test_an_atom_takes_one_step() -> None:
    atoms = random_atoms(32, 16)
    x = -0.5 * atoms[:, None, 3:4].expand(2, 3, 5, 16)
    codes, coefficients = csr.encode(x, atoms, 1, 1)
    assert codes.view(torch.int16).unique().tolist() == [3]
    torch.testing.assert_close(coefficients, torch.full_like(coefficients, -0.5), rtol=0, atol=2.0**-11)


def test_zeros_come_back_as_zeros() -> None:
    assert not back(torch.zeros(2, 3, 5, 16), random_atoms(32, 16), 1, 4).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_beyond_float16_end_there(dtype: torch.dtype) -> None:
    x = torch.full((2, 3, 4, 16), torch.finfo(dtype).max).to(dtype)
    found = back(x, random_atoms(32, 16), 1, 4)
    assert found.dtype == dtype
    assert torch.isfinite(found).all()


def test_atoms_beyond_the_dictionary_are_the_last_one() -> None:
    """Bytes may say anything."""
    atoms = random_atoms(32, 16)
    codes, ones = torch.full((2, 3, 4, 2), 255, dtype=torch.uint8), torch.ones(2, 3, 4, 1).half()
    expected = atoms[:, None, None, -1].expand(2, 3, 4, 16)
    assert torch.equal(csr.decode(codes, ones, atoms, 16, 1, torch.float32), expected)


def test_what_does_not_fit_is_refused() -> None:
    atoms = random_atoms(32, 16)
    with pytest.raises(ValueError, match="dictionaries: expected"):
        csr.encode(values(3, 17), atoms, 1, 2)
    with pytest.raises(ValueError, match="atoms: expected"):
        csr.decode(torch.zeros(2, 3, 4, 3, dtype=torch.uint8), torch.zeros(2, 3, 4, 2).half(), atoms, 16, 1, torch.float32)
