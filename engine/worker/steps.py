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
    names = sorted({name for work in works for name in work.inputs})
    pieces: list[dict[str, np.ndarray]] = []
    lengths: list[Int32s] = []
    rows: list[int] = []
    slices, indices = [], []
    soft: list[tuple[int, SoftTargets]] = []
    for place in order:
        piece, index = units[int(place)]
        work = works[piece]
        unit, span = work.units[index], work.rows(index)
        if work.soft is not None:
            soft.append((sum(rows), work.soft.part(span.start, span.stop)))
        lengths.append(work.lengths[unit.first_datum : unit.last_datum])
        pieces.append(_columns(work, span, lengths[-1], names))
        rows.append(unit.num_tokens)
        slices.append(piece)
        indices.append(index)
    padding = -sum(rows) % ROW_TILE if pad_rows else 0
    if padding:
        blank = {name: np.zeros(padding, np.float32) for name in pieces[0]}
        pieces.append(blank | {"positions": np.arange(padding)})
        lengths.append(np.array([padding], np.int32))
        rows.append(padding)
        slices.append(-1)
        indices.append(-1)
    joined = {name: np.concatenate([one[name] for one in pieces]) for name in pieces[0]}
    return TrainStep(
        tokens=joined["tokens"].astype(np.int64),
        positions=joined["positions"].astype(np.int64),
        targets=joined["targets"].astype(np.int64),
        cu_seqlens=np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int32),
        unit_rows=np.array(rows, np.int32),
        unit_slices=np.array(slices, np.int32),
        unit_indices=np.array(indices, np.int32),
        inputs={name: joined[name].astype(np.float32, copy=False) for name in names},
        num_targets=joined["num_targets"].astype(np.int32) if soft else None,
        soft=join(soft) if soft else None,
    )


def list_units(decision: Passes) -> list[tuple[int, int]]:
    """(slice, unit of its job) of every unit of a decision, slice by slice."""
    return [
        (number, index)
        for number, piece in enumerate(decision.slices)
        for index in range(piece.first, piece.last)
    ]


def _columns(
    work: PassWork, span: slice, lengths: Int32s, names: Sequence[str]
) -> dict[str, np.ndarray]:
    """What the rows of one unit have of each column; an input that the loss lacks is 0."""
    num_rows = span.stop - span.start
    if work.output_starts is None:
        num_targets = np.ones(num_rows, np.int32)
    else:
        num_targets = np.diff(work.output_starts[span.start : span.stop + 1]).astype(np.int32)
    columns: dict[str, np.ndarray] = {
        "tokens": work.tokens[span],
        "targets": work.targets[span],
        "positions": _positions(lengths),
        "num_targets": num_targets,
    }
    for name in names:
        column = work.inputs.get(name)
        columns[name] = np.zeros(num_rows, np.float32) if column is None else column[span]
    return columns


def _positions(lengths: Int32s) -> Int64s:
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1])) - np.repeat(ends - lengths, lengths)
