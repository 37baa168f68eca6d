"""Binds adapters to the rows of a batch, in the form that the store's device computes by."""

from collections.abc import Sequence
from typing import Any, Protocol

from ...kernels.workspace import Workspace
from ..model.linear import Linears
from .lora import LoraLinears
from .lora_batch import Counts
from .store import AdapterStore, Run, WeightsVersion
from .targets import LAYERS, Targets


class BoundLinears(Linears, Protocol):
    """Linears of one batch, with gradients for its runs."""

    @property
    def store(self) -> AdapterStore: ...

    @property
    def versions(self) -> Sequence[WeightsVersion | None]:
        """Weights of each unit."""

    @property
    def runs(self) -> Sequence[Run | None]:
        """Who gets each unit's gradient."""

    @property
    def row_counts(self) -> Counts: ...

    @property
    def unit_order(self) -> Counts | None: ...

    @property
    def is_deterministic(self) -> bool: ...

    def flush(self) -> None:
        """Make the runs' stages whole. Call once, after backward has succeeded."""


class Binder:
    """Makes the linears of one batch after the other, in memory that it keeps.

    Args:
        store: where the adapters live.
        is_deterministic: a unit's bits must not depend on its neighbours' presence.
    """

    def __init__(self, store: AdapterStore, *, is_deterministic: bool = False) -> None:
        self._store = store
        self._is_deterministic = is_deterministic
        self._workspace = Workspace(store.device)
        self._memories: dict[Targets, Any] = {}

    def bind(
        self,
        versions: Sequence[WeightsVersion | None],
        runs: Sequence[Run | None],
        row_counts: Counts,
        *,
        unit_order: Counts | None = None,
        portion: Targets = LAYERS,
    ) -> BoundLinears:
        """The linears of units that lie one after the other from row 0.

        Those that were bound before for the same portion are not to be used any more.

        Args:
            versions: weights of each unit, None for the bare base model.
            runs: whose open stage gets a unit's gradient; None for none.
            row_counts: rows of each unit.
            unit_order: orders the units of one run in the sum of their gradients.
            portion: of the sites that will be asked for: `LAYERS` or `Targets.UNEMBED`.
        """
        if self._store.uses_triton:
            from .gpu_linears import TileMemory, TritonLinears

            if portion not in self._memories:
                self._memories[portion] = TileMemory.of(self._store)
            return TritonLinears(
                self._store,
                versions,
                runs,
                row_counts,
                memory=self._memories[portion],
                portion=portion,
                unit_order=unit_order,
                is_deterministic=self._is_deterministic,
            )
        return LoraLinears(
            self._store,
            versions,
            runs,
            row_counts,
            unit_order=unit_order,
            is_deterministic=self._is_deterministic,
            workspace=self._workspace,
        )
