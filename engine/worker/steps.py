"""Steps as frozen records of numpy arrays: what a device needs to compute, and nothing else.

A record can be logged, replayed, or sent to the other ranks of a tensor-parallel group. T rows of
the packed batch, N sequences, U units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..adapters.soft_targets import SoftTargets, join
from .commands import PassWork
from .scheduler import Passes

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]

ROW_TILE = 16  # deterministic batches have a multiple of so many rows


@dataclass(frozen=True, slots=True)
class TrainStep:
    """One packed batch of units from many runs.

    Rows lie unit by unit, in the order the segment plan wants. A unit that pads the batch to full
    row tiles has slice -1; its rows carry token 0 and no loss.
    """

    tokens: Int64s  # [T]
    positions: Int64s  # [T], position inside its sequence
    cu_seqlens: Int32s  # [N + 1]
    unit_rows: Int32s  # [U] rows of each unit
    unit_slices: Int32s  # [U] index into the decision's slices, -1 for padding
    unit_indices: Int32s  # [U] index of the unit inside its job, -1 for padding
    targets: Int64s  # [T]; 0 where a row has none or several
    inputs: Mapping[str, Float32s]  # loss inputs by name, [T]; 0 where a loss has no such input
    num_targets: Int32s | None = None  # [T] of each row; None: one everywhere
    soft: SoftTargets | None = None  # of the rows with several

    @property
    def unit_starts(self) -> Int32s:
        """First row of each unit, and the number of rows: [U + 1]."""
        return np.concatenate([[0], np.cumsum(self.unit_rows)]).astype(np.int32)


@dataclass(frozen=True, slots=True)
class OptimStep:
    """AdamW's hyper-parameters for all due runs, one element a run: [A] float64 each."""

    learning_rate: npt.NDArray[np.float64]
    beta1: npt.NDArray[np.float64]
    beta2: npt.NDArray[np.float64]
    eps: npt.NDArray[np.float64]
    weight_decay: npt.NDArray[np.float64]
    grad_clip_norm: npt.NDArray[np.float64]


def pack(
    decision: Passes, works: Sequence[PassWork], order: Sequence[int] | Int64s, pad_rows: bool
) -> TrainStep:
    """Lay the units of a decision's slices one after the other.

    Args:
        decision: what to run.
        works: the command of each slice.
        order: permutation of the units, listed slice by slice, into the wished order.
        pad_rows: fill up to full row tiles, for deterministic mode.
    """
    units = list_units(decision)
    columns: dict[str, list[np.ndarray]] = {"tokens": [], "positions": [], "targets": []}
    names = sorted({name for work in works for name in work.inputs})
    for name in names:
        columns[name] = []
    lengths: list[Int32s] = []
    rows: list[int] = []
    slices, indices = [], []
    num_targets: list[Int32s] = []
    soft: list[tuple[int, SoftTargets]] = []
    for place in order:
        piece, index = units[int(place)]
        work = works[piece]
        unit, span = work.units[index], work.rows(index)
        if work.soft is not None:
            soft.append((sum(rows), work.soft.part(span.start, span.stop)))
        num_targets.append(_num_targets(work, span))
        own = work.lengths[unit.first_datum : unit.last_datum]
        lengths.append(own)
        columns["tokens"].append(work.tokens[span])
        columns["targets"].append(work.targets[span])
        columns["positions"].append(_positions(own))
        for name in names:
            column = work.inputs.get(name)
            filled = np.zeros(unit.num_tokens, np.float32) if column is None else column[span]
            columns[name].append(filled)
        rows.append(unit.num_tokens)
        slices.append(piece)
        indices.append(index)
    padding = -sum(rows) % ROW_TILE if pad_rows else 0
    if padding:
        blank = np.zeros(padding, np.float32)
        lengths.append(np.array([padding], np.int32))
        for name, pieces in columns.items():
            pieces.append(np.arange(padding) if name == "positions" else blank)
        rows.append(padding)
        num_targets.append(np.ones(padding, np.int32))
        slices.append(-1)
        indices.append(-1)
    joined = {name: np.concatenate(column) for name, column in columns.items()}
    return TrainStep(
        tokens=joined.pop("tokens").astype(np.int64),
        positions=joined.pop("positions").astype(np.int64),
        targets=joined.pop("targets").astype(np.int64),
        cu_seqlens=np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int32),
        unit_rows=np.array(rows, np.int32),
        unit_slices=np.array(slices, np.int32),
        unit_indices=np.array(indices, np.int32),
        inputs={name: column.astype(np.float32, copy=False) for name, column in joined.items()},
        num_targets=np.concatenate(num_targets) if soft else None,
        soft=join(soft) if soft else None,
    )


def list_units(decision: Passes) -> list[tuple[int, int]]:
    """(slice, unit of its job) of every unit of a decision, slice by slice."""
    return [
        (number, index)
        for number, piece in enumerate(decision.slices)
        for index in range(piece.first, piece.last)
    ]


def _num_targets(work: PassWork, span: slice) -> Int32s:
    if work.output_starts is None:
        return np.ones(span.stop - span.start, np.int32)
    return np.diff(work.output_starts[span.start : span.stop + 1]).astype(np.int32)


def _positions(lengths: Int32s) -> Int64s:
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1])) - np.repeat(ends - lengths, lengths)
