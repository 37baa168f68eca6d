"""The linears of the adapters in a step, kept while the composition stays the same."""

from collections.abc import Sequence

import numpy as np

from ...kernels.workspace import Workspace
from ..adapters.lora import LoraLinears
from ..adapters.store import AdapterStore, WeightsVersion


class Bindings:
    """Binds weights versions to rows, without gradients, in one workspace.

    Args:
        store: where the adapters live.
        is_deterministic: the bits of one unit must not depend on the others.
    """

    def __init__(self, store: AdapterStore, *, is_deterministic: bool = False) -> None:
        self._store = store
        self._is_deterministic = is_deterministic
        self._workspace = Workspace(store.device)
        self._kept: dict[str, tuple[tuple[object, ...], LoraLinears]] = {}

    def bind(
        self, place: str, versions: Sequence[WeightsVersion | None], counts: np.ndarray
    ) -> LoraLinears:
        """The linears of these units, kept until the next other ones in this place.

        Args:
            place: "layers" or "head", whose sites the linears are used for.
            versions: weights of each unit, None for the bare base model.
            counts: rows of each unit.
        """
        ids = [0 if version is None else version.id for version in versions]
        key = (*ids, *counts.tolist())
        kept = self._kept.get(place)
        if kept is not None and kept[0] == key:
            return kept[1]
        self._kept.pop(place, None)
        linears = LoraLinears(
            self._store,
            versions,
            [None] * len(versions),
            counts,
            is_deterministic=self._is_deterministic,
            shares_weights=True,
            workspace=self._workspace,
        )
        self._kept[place] = (key, linears)
        return linears
