"""Who computed a cache: everything that decides its values changes the namespace, and nothing else does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvstore.core.errors import InvalidInputError
from kvstore.core.identity import KVLayout, LayerGroup, ModelIdentity, RopeSpec
from kvstore.core.stages import PipelineSpec, StageSpec

ROPE = RopeSpec("linear", 10000.0, 16, (("factor", 2.0), ("alpha", 1.0)))
GROUPS = (LayerGroup((0, 1), 2, 16, 16, ROPE), LayerGroup((2, 3), 2, 16, 16, ROPE, "window", 12))
IDENTITY = ModelIdentity("tiny", "00" * 32, KVLayout(GROUPS), "float32", "11" * 32)


def with_group(**changes: object) -> ModelIdentity:
    """Return the identity with another second layer group."""
    return replace(IDENTITY, layout=KVLayout((GROUPS[0], replace(GROUPS[1], **changes))))  # type: ignore[arg-type]


def with_rope(**changes: object) -> ModelIdentity:
    """Return the identity with another rotary embedding in its second group."""
    return with_group(rope=replace(ROPE, **changes))  # type: ignore[arg-type]


OTHERS = {
    "weights": replace(IDENTITY, weights_digest="01" * 32),
    "adapter": replace(IDENTITY, adapter="22" * 32),
    "dtype": replace(IDENTITY, dtype="bfloat16"),
    "tokenizer": replace(IDENTITY, tokenizer_digest="12" * 32),
    "window": with_group(window=13),
    "kind": with_group(kind="full"),
    "heads": with_group(kv_heads=4),
    "k dim": with_group(k_dim=8),
    "v dim": with_group(v_dim=8),
    "readers": with_group(readers=(4,)),
    "layers": with_group(layers=(3, 4)),
    "no rope": with_group(rope=None),
    "rope base": with_rope(theta=10001.0),
    "rope kind": with_rope(kind="default"),
    "rope dim": with_rope(rotary_dim=8),
    "rope factor": with_rope(params=(("alpha", 1.0), ("factor", 4.0))),
    "one group for all": replace(IDENTITY, layout=KVLayout((LayerGroup((0, 1, 2, 3), 2, 16, 16, ROPE),))),
}


def test_everything_that_decides_the_values_changes_the_namespace() -> None:
    """Eighteen models, eighteen namespaces."""
    assert len({other.namespace for other in OTHERS.values()} | {IDENTITY.namespace}) == len(OTHERS) + 1


def test_the_name_changes_nothing() -> None:
    """The same weights under two names share their chunks."""
    assert replace(IDENTITY, name="other").namespace == IDENTITY.namespace


def test_the_spelling_of_a_rotary_embedding_changes_nothing() -> None:
    """10000 and 10000.0 are one base, and parameters have no order."""
    same = RopeSpec("linear", 10000, 16, (("alpha", 1), ("factor", 2)))
    assert same == ROPE
    assert with_group(rope=same).namespace == IDENTITY.namespace


@pytest.mark.parametrize("layers", [(1, 0), (0, 0), (1, 2)])
def test_a_layout_that_holds_a_layer_twice_or_out_of_order_is_refused(layers: tuple[int, ...]) -> None:
    """A pass meets each layer once, in order."""
    with pytest.raises(InvalidInputError, match="each layer once"):
        KVLayout((LayerGroup((0, 1), 1, 1, 1, None), LayerGroup(layers, 1, 1, 1, None)))


@pytest.mark.parametrize("changes", [{"layers": ()}, {"kv_heads": 0}, {"k_dim": 0}, {"v_dim": 0}, {"window": -1}])
def test_a_group_of_nothing_is_refused(changes: dict[str, object]) -> None:
    """It would have no KV."""
    with pytest.raises(InvalidInputError):
        replace(GROUPS[0], **changes)  # type: ignore[arg-type]


def test_a_layout_counts_its_layers() -> None:
    """Over all groups."""
    assert IDENTITY.layout.n_layers == 4


STAGES = (StageSpec("kivi", (("bits", 4), ("group", 32))), StageSpec("zstd"))


def test_stage_parameter_order_and_artifact_are_part_of_the_variant() -> None:
    """One way to store, one variant; 1, 1.0 and True differ."""
    specs = [
        PipelineSpec(STAGES),
        PipelineSpec(STAGES[::-1]),
        PipelineSpec(STAGES[:1]),
        PipelineSpec(STAGES, "artifact"),
        PipelineSpec((StageSpec("kivi", (("bits", 2), ("group", 32))), STAGES[1])),
        *(PipelineSpec((StageSpec("x", (("p", value),)),)) for value in (1, 1.0, True, "1")),
    ]
    assert len({spec.variant() for spec in specs}) == len(specs)
    assert PipelineSpec(STAGES).label == "kivi+zstd"
