"""Who computed a KV cache: the model, its KV geometry and its rotary embedding, folded into one namespace digest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

from kvstore.core import canonical
from kvstore.core.errors import InvalidInputError

GroupKind = Literal["full", "window", "latent", "state"]


@dataclass(frozen=True)
class RopeSpec:
    """A rotary embedding, completely: two models with the same spec rotate the same key to the same place.

    Parameters
    ----------
    kind : str
        "default", "linear", "dynamic", "llama3" or "yarn"; an engine refuses what it does not know.
    theta : float
        Base of the frequencies.
    rotary_dim : int
        How many leading elements of a head are rotated, in pairs (i, i + rotary_dim / 2).
    params : tuple of (str, float)
        What the kind needs besides, sorted by name.
    """

    kind: str
    theta: float
    rotary_dim: int
    params: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        # 10000 and 10000.0 are one base but two spellings in the digest.
        object.__setattr__(self, "theta", float(self.theta))
        object.__setattr__(self, "params", tuple(sorted((name, float(value)) for name, value in self.params)))


@dataclass(frozen=True)
class LayerGroup:
    """A run of model layers with one KV geometry; one part of a stored chunk holds one group.

    Parameters
    ----------
    layers : tuple of int
        Indices of the model layers that own this KV, ascending.
    kv_heads, k_dim, v_dim : int
        Heads and head dimensions of K and V.
    rope : RopeSpec or None
        None where keys carry no position.
    kind : str
        "full" or "window" attention; "latent" and "state" are reserved for models whose cache is not K and V per head.
    window : int
        Keys that a query sees, itself included; 0 means all.
    readers : tuple of int
        Layers that read this KV without owning it (cross-layer sharing).
    """

    layers: tuple[int, ...]
    kv_heads: int
    k_dim: int
    v_dim: int
    rope: RopeSpec | None
    kind: GroupKind = "full"
    window: int = 0
    readers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers or min(self.kv_heads, self.k_dim, self.v_dim) < 1 or self.window < 0:
            raise InvalidInputError(f"a layer group needs layers, heads and dims of at least 1: {self}")


@dataclass(frozen=True)
class KVLayout:
    """The groups of a model's layers, in the order in which a forward pass needs them."""

    groups: tuple[LayerGroup, ...]

    def __post_init__(self) -> None:
        layers = [layer for group in self.groups for layer in group.layers]
        if layers != sorted(set(layers)):
            raise InvalidInputError(f"the groups of a layout must hold each layer once and in order, got {layers}")

    @property
    def n_layers(self) -> int:
        """Layers that own KV."""
        return sum(len(group.layers) for group in self.groups)


@dataclass(frozen=True)
class ModelIdentity:
    """Everything that decides the values in a KV cache besides the tokens.

    `name` is a label for people and stays out of the digest: the same weights under two names share their chunks.

    Parameters
    ----------
    weights_digest : str
        sha256 in hex over tensor names, types, shapes and bytes of the weights, and over the settings that change what they compute.
    adapter : str
        Digest of an adapter (LoRA), or "" for none.
    layout : KVLayout
        KV geometry and rotary embedding of every layer.
    dtype : str
        Type in which the model computes its KV: "float32", "bfloat16" or "float16".
    tokenizer_digest : str
        sha256 in hex of what turns text into token ids.
    """

    name: str
    weights_digest: str
    layout: KVLayout
    dtype: str
    tokenizer_digest: str
    adapter: str = ""

    @cached_property
    def namespace(self) -> bytes:
        """The digest (32 bytes) under which all chunks of this model live."""
        fields = asdict(self)
        del fields["name"]
        return canonical.digest({"larder": "namespace/1", **fields})
