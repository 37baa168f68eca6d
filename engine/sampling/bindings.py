"""The linears of the adapters in a step, kept while the composition stays the same."""

from collections.abc import Sequence

import numpy as np

from ..adapters.binding import Binder, BoundLinears
from ..adapters.store import AdapterStore, WeightsVersion
from ..adapters.targets import Targets


class Bindings:
    """Binds weights versions to rows, without gradients, in memory that is kept.

    Args:
        store: where the adapters live.
        is_deterministic: the bits of one unit must not depend on the others.
    """

    def __init__(self, store: AdapterStore, *, is_deterministic: bool = False) -> None:
        self._binder = Binder(store, is_deterministic=is_deterministic)
        self._kept: dict[Targets, tuple[tuple[object, ...], BoundLinears]] = {}

    def bind(
        self, portion: Targets, versions: Sequence[WeightsVersion | None], counts: np.ndarray
    ) -> BoundLinears:
        """The linears of these units, kept until the next other ones of this portion.

        Args:
            portion: `LAYERS` or `Targets.UNEMBED`, whose sites the linears are used for.
            versions: weights of each unit, None for the bare base model.
            counts: rows of each unit.
        """
        ids = [0 if version is None else version.id for version in versions]
        key = (*ids, *counts.tolist())
        kept = self._kept.get(portion)
        if kept is not None and kept[0] == key:
            return kept[1]
        self._kept.pop(portion, None)
        linears = self._binder.bind(versions, [None] * len(versions), counts, portion=portion)
        self._kept[portion] = (key, linears)
        return linears
