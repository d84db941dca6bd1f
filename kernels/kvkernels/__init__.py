"""Triton operators for KV tensors, each with a torch reference that defines its result.

One module per operator: `int8`, `kivi`, `exponent_split`, `rotate_scatter`. Its public functions run the Triton kernel of the
sibling `<operator>_triton` on a CUDA tensor when triton is installed, and the `reference_*` function everywhere else. Triton is
imported by the first call that needs it, never by importing this package.
"""
