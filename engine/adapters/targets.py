"""Which modules of a model an adapter has rows for, and how it is laid out over them."""

from collections.abc import Sequence
from enum import IntFlag
from itertools import groupby

from ...kernels.layout import Layout
from ...kernels.plan import HEAD_FAMILY
from ..model.config import UNEMBED, Site

# Modules that read the same input have the same number.
_INPUTS = {"q": 0, "k": 0, "v": 0, "o": 1, "gate": 2, "up": 2, "down": 3, UNEMBED: 4}


class Targets(IntFlag):
    """Which modules an adapter has rows for."""

    ATTN = 1  # q, k, v, o
    MLP = 2  # gate, up, down
    UNEMBED = HEAD_FAMILY


NOTHING = Targets(0)
LAYERS = Targets.ATTN | Targets.MLP
PORTIONS = (LAYERS, Targets.UNEMBED)  # staged separately: the head has rows of its own
_FAMILIES = (Targets.ATTN, Targets.ATTN, Targets.MLP, Targets.MLP, Targets.UNEMBED)


def layout_of(sites: Sequence[Site]) -> Layout:
    """The layout of adapters over a model's sites."""
    groups: list[tuple[int, ...]] = []
    families: list[int] = []
    for (_, source), members in groupby(
        range(len(sites)), key=lambda index: (sites[index].layer, _INPUTS[sites[index].module])
    ):
        groups.append(tuple(members))
        families.append(int(_FAMILIES[source]))
    shapes = tuple((site.in_features, site.out_features) for site in sites)
    return Layout(shapes, tuple(groups), tuple(families))


def targets_of(train_attn: bool, train_mlp: bool, train_unembed: bool) -> Targets:
    """The mask of the three switches."""
    return Targets(
        Targets.ATTN * train_attn | Targets.MLP * train_mlp | Targets.UNEMBED * train_unembed
    )
