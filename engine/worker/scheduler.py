"""Decide what the worker computes next. Pure: metadata in, decisions out; no tensors, no clock.

Every run has a queue of jobs, in the order of its command log. What may run now is the head of a
queue, and for passes (forward, forward_backward) the prefix of passes at the head, since passes
between two optimizer steps only add gradients. Three rules give the shape of a train step:

- units are taken oldest job first until the budget of tokens or of workspace is full, from as
  many runs as are ready;
- of one run a step holds either a slice of one job or several whole jobs, so that a stage never
  mixes a finished job with the beginning of the next;
- a failed step is repeated smaller: each of its jobs alone, then alone and unit by unit; only a
  job that fails even so is given up, and only that job. A single unit gets a second chance.

Training and sampling share the device by measured time: whoever has used less of it goes next.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from .progress import Started

PASSES = ("forward", "forward_backward")
CLEAN_STEPS_TO_GROW = 8  # successful train steps before a budget cut by memory doubles again


@dataclass(frozen=True, slots=True)
class Job:
    """One command's metadata. `units` holds the tokens of each unit, for passes only."""

    job_id: int
    run_id: str
    kind: str
    units: tuple[int, ...] = ()
    unit_bytes: int = 0  # of workspace that each unit takes in a batch, beside its tokens


@dataclass(frozen=True, slots=True)
class Slice:
    """Units first..last - 1 of a job; `ends_job` when no unit follows."""

    job_id: int
    first: int
    last: int
    ends_job: bool


@dataclass(frozen=True, slots=True)
class Passes:
    """Run these slices as one packed batch."""

    slices: tuple[Slice, ...]
    backward: bool
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Optimizers:
    """Step all these jobs' runs in one launch."""

    job_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Control:
    """Carry out one job that is neither pass nor optimizer step."""

    job_id: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """Advance generation by one step."""


Decision = Passes | Optimizers | Control | Sampling


@dataclass(frozen=True, slots=True)
class GivenUp:
    """This job failed even alone and unit by unit."""

    job_id: int


@dataclass(slots=True)
class _Queued:
    job: Job
    arrival: int
    next_unit: int = 0
    caution: int = 0  # 0 in any company, 1 alone, 2 alone and one unit at a time


@dataclass(slots=True)
class Scheduler:
    """The queues of all runs and the shares of training and sampling."""

    batch_tokens: int
    workspace_bytes: int = 1 << 62  # that the units of a batch may take together
    fused: bool = True  # False: one run a step, to measure what fusing gains
    _queues: dict[str, deque[_Queued]] = field(default_factory=dict)
    _by_id: dict[int, _Queued] = field(default_factory=dict)
    _arrivals: int = 0
    _budget: int = 0
    _clean_steps: int = 0
    _train_s: float = 0.0
    _sample_s: float = 0.0

    def __post_init__(self) -> None:
        self._budget = self.batch_tokens

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, job: Job) -> None:
        """Append a job to its run's queue."""
        queued = _Queued(job, self._arrivals)
        self._arrivals += 1
        self._queues.setdefault(job.run_id, deque()).append(queued)
        self._by_id[job.job_id] = queued

    def next(self, is_sampling: bool) -> Decision | None:
        """Choose the next step; `is_sampling` says whether generation has work."""
        heads = sorted((queue[0] for queue in self._queues.values()), key=lambda q: q.arrival)
        for head in heads:
            if head.job.kind not in PASSES and head.job.kind != "optim_step":
                return Control(head.job.job_id)
        due = tuple(head.job.job_id for head in heads if head.job.kind == "optim_step")
        if due:
            return Optimizers(due if self.fused else due[:1])
        if not heads:
            return Sampling() if is_sampling else None
        if is_sampling and self._sample_s < self._train_s:
            return Sampling()
        return self._pack(heads)

    def finish(self, job_id: int) -> None:
        """Forget a job that was carried out, refused or failed for good."""
        queued = self._by_id.pop(job_id)
        queue = self._queues[queued.job.run_id]
        queue.remove(queued)
        if not queue:
            del self._queues[queued.job.run_id]

    def advance(self, passes: Passes) -> tuple[int, ...]:
        """Note that a batch succeeded; returns the jobs that are now complete (still queued)."""
        self._clean_steps += 1
        if self._budget < self.batch_tokens and self._clean_steps >= CLEAN_STEPS_TO_GROW:
            self._budget, self._clean_steps = min(self.batch_tokens, 2 * self._budget), 0
        for piece in passes.slices:
            self._by_id[piece.job_id].next_unit = piece.last
        return tuple(piece.job_id for piece in passes.slices if piece.ends_job)

    def retry_smaller(self, passes: Passes, out_of_memory: bool) -> list[GivenUp]:
        """Note that a batch failed as a whole: its jobs start over, each with more caution.

        Returns the jobs to give up; they stay queued until `finish`.
        """
        one_unit = len(passes.slices) == 1 and passes.slices[0].last - passes.slices[0].first == 1
        self._clean_steps = 0
        if out_of_memory and not one_unit:  # a unit too large is its own fault, not the budget's
            self._budget = max(1, min(self._budget, passes.num_tokens) // 2)
        given_up: list[GivenUp] = []
        for piece in passes.slices:
            if one_unit and self._by_id[piece.job_id].caution:
                given_up.append(GivenUp(piece.job_id))
            else:
                self.restart(piece.job_id)
        return given_up

    def restart(self, job_id: int) -> None:
        """Begin a job again from its first unit, with one more degree of caution."""
        queued = self._by_id[job_id]
        queued.next_unit = 0
        queued.caution = min(2, queued.caution + 1)

    def spent(self, decision: Decision, seconds: float) -> None:
        """Charge the time of a step to its side; the shares are relative, so the smaller is 0."""
        if isinstance(decision, Sampling):
            self._sample_s += seconds
        elif isinstance(decision, Passes):
            self._train_s += seconds
        least = min(self._sample_s, self._train_s)
        self._sample_s, self._train_s = self._sample_s - least, self._train_s - least

    def jobs_of(self, run_id: str) -> tuple[int, ...]:
        """All queued jobs of a run, oldest first."""
        return tuple(queued.job.job_id for queued in self._queues.get(run_id, ()))

    def is_started(self, job_id: int) -> bool:
        """Whether some units of a queued job have been computed already."""
        return self._by_id[job_id].next_unit > 0

    def started(self) -> list[Started]:
        """The jobs of which some units are computed, and not all."""
        return [
            Started(job_id, queued.next_unit, len(queued.job.units))
            for job_id, queued in self._by_id.items()
            if queued.next_unit
        ]

    def __contains__(self, job_id: int) -> bool:
        return job_id in self._by_id

    def _pack(self, heads: list[_Queued]) -> Passes:
        oldest = heads[0]
        if oldest.caution:
            limit = 1 if oldest.caution == 2 else len(oldest.job.units)
            room = max(self._budget, oldest.job.units[oldest.next_unit])
            return _passes(oldest.job.kind, [_take(oldest, room, limit)], [oldest])
        slices: list[Slice] = []
        owners: list[_Queued] = []
        room, bytes_room = self._budget, self.workspace_bytes
        for head in heads if self.fused else heads[:1]:
            for index, queued in enumerate(self._queues[head.job.run_id]):
                if queued.job.kind != oldest.job.kind or queued.caution:
                    break
                units = queued.job.units
                max_units = bytes_room // max(1, queued.job.unit_bytes)
                is_whole = queued.next_unit == 0 and sum(units) <= room and len(units) <= max_units
                if index > 0 and not is_whole:
                    break
                piece = _take(queued, room, min(max_units, len(units)))
                if piece.last == piece.first:
                    if slices:
                        break
                    piece = _take(queued, units[queued.next_unit], 1)
                slices.append(piece)
                owners.append(queued)
                room -= _tokens(queued, piece)
                bytes_room -= (piece.last - piece.first) * queued.job.unit_bytes
                if not piece.ends_job:
                    break
            if room <= 0:
                break
        return _passes(oldest.job.kind, slices, owners)


def _take(queued: _Queued, room: int, max_units: int) -> Slice:
    """The longest slice from the job's next unit that fits into `room` tokens."""
    units, first = queued.job.units, queued.next_unit
    last = first
    while last < len(units) and last - first < max_units and units[last] <= room:
        room -= units[last]
        last += 1
    return Slice(queued.job.job_id, first, last, last == len(units))


def _tokens(queued: _Queued, piece: Slice) -> int:
    return sum(queued.job.units[piece.first : piece.last])


def _passes(kind: str, slices: list[Slice], owners: Iterable[_Queued]) -> Passes:
    tokens = sum(_tokens(queued, piece) for queued, piece in zip(owners, slices, strict=True))
    return Passes(tuple(slices), kind == "forward_backward", tokens)
