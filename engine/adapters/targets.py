"""Which modules of a model an adapter has rows for, and how it is laid out over them."""

from collections.abc import Sequence
from enum import IntFlag
from itertools import groupby

from ...kernels.layout import Layout
from ...kernels.plan import HEAD_FAMILY
from ..model.config import Site


class Targets(IntFlag):
    """Which modules an adapter has rows for."""

    ATTN = 1  # q, k, v, o
    MLP = 2  # gate, up, down
    UNEMBED = HEAD_FAMILY


NOTHING = Targets(0)
LAYERS = Targets.ATTN | Targets.MLP
PORTIONS = (LAYERS, Targets.UNEMBED)  # staged separately: the head has rows of its own
_FAMILIES = {"attn": Targets.ATTN, "mlp": Targets.MLP, "unembed": Targets.UNEMBED}


def layout_of(sites: Sequence[Site]) -> Layout:
    """The layout of adapters over a model's sites."""
    groups: list[tuple[int, ...]] = []
    families: list[int] = []
    for _, members in groupby(
        range(len(sites)), key=lambda index: (sites[index].layer, sites[index].group)
    ):
        groups.append(tuple(members))
        families.append(int(_FAMILIES[sites[groups[-1][0]].family]))
    shapes = tuple((site.in_features, site.out_features) for site in sites)
    return Layout(shapes, tuple(groups), tuple(families))


def targets_of(train_attn: bool, train_mlp: bool, train_unembed: bool) -> Targets:
    """The mask of the three switches."""
    return Targets(
        Targets.ATTN * train_attn | Targets.MLP * train_mlp | Targets.UNEMBED * train_unembed
    )
