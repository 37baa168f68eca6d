"""Stages as kernels see them, which add gradients to them in place.

`AdapterStore.begin` opens stages before and `commit` or `discard` ends them after.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from .store import AdapterStore, Run
from .targets import Targets


def open_stages(
    store: AdapterStore, runs: Sequence[Run | None], portion: Targets
) -> tuple[list[int], list[bool]]:
    """Where kernels add gradients of a portion, and whether nothing was added there yet.

    Places are granules, counted through all planes of `store.states`; -1 for no run. Call
    `close_stages` when the kernels have succeeded; after a failure the stages are to be discarded.
    """
    starts: list[int] = []
    for run in runs:
        assert run is None or run.is_staging, "stage is not open"
        if run is None:
            starts.append(-1)
        else:
            store.writable(run, run.stage_plane)
            starts.append(run.stage_plane * store.states.blocks.size + run.block.start)
    return starts, [run is not None and not run.stage_written & portion for run in runs]


def close_stages(
    store: AdapterStore, runs: Sequence[Run | None], portion: Targets, sites: Collection[int]
) -> None:
    """Take over what kernels have added for these sites; the portion's others add zeros."""
    missing: list[Tensor] = []
    for run in {id(run): run for run in runs if run is not None}.values():
        if not run.stage_written & portion:
            expected = store.layout.site_offsets(run.rank, run.targets & portion)
            missing += [_part_of(store, run, site) for site in expected if site not in sites]
        run.stage_written |= run.targets & portion
    if missing:
        torch._foreach_zero_(missing)


def _part_of(store: AdapterStore, run: Run, site: int) -> Tensor:
    """The part of a stage that belongs to one site, [elements]."""
    layout = store.layout
    start = layout.site_offsets(run.rank, run.targets)[site][0] * layout.granule
    size = run.rank * sum(layout.row_granules(site)) * layout.granule
    return store.writable(run, run.stage_plane)[start : start + size]
