"""The order of one run's commands: what came, what is due, which numbers are used up.

Numbers below `next_seq` are used up: their commands were handed on, refused or voided. Higher ones
are held until all before them are used up. Every number is used up once, whatever its fate, so
that nothing can wedge a run.
"""

from bisect import insort
from collections import deque

from ...client.messages import CreateRun, ForkRun
from .work import State, Work

MAX_FATES = 1024


class RunLog:
    """Commands by number, and the ranges of numbers that were given up ahead of their turn."""

    __slots__ = ("_fates", "_first", "_voids", "commands", "next_seq", "num_held")

    def __init__(self) -> None:
        self.next_seq = 0
        self.commands: dict[int, Work] = {}  # all that are remembered
        self.num_held = 0
        self._first: Work | None = None  # the latest command that may be given back
        self._voids: list[tuple[int, int]] = []  # first and last, sorted, apart
        # Ranges used up without effect, and the error code of each; the latest ones.
        self._fates: deque[tuple[int, int, str]] = deque(maxlen=MAX_FATES)

    @property
    def num_voids(self) -> int:
        """How many ranges are voided ahead of their turn."""
        return len(self._voids)

    @property
    def awaited(self) -> Work | None:
        """The command under way whose outcome decides whether anything else is due, if any."""
        return self._first if self._first is not None and self._first.is_underway else None

    def is_used(self, seq: int) -> bool:
        """Whether a number is used up."""
        if seq < self.next_seq:
            return True
        return bool(self._voids) and any(first <= seq <= last for first, last in self._voids)

    def fate(self, seq: int) -> str:
        """Why a number that is used up has no answer any more, as an error code."""
        fates = (code for first, last, code in self._fates if first <= seq <= last)
        return next(fates, "cancelled" if seq >= self.next_seq else "result_expired")

    def add(self, work: Work) -> None:
        """Enter a command under its number, which was free."""
        self.commands[work.seq] = work
        self.num_held += 1

    def due(self, can_start: bool) -> list[Work]:
        """Take the commands whose turn has come, in order; they become queued.

        After a command that may be given back nothing is taken until its outcome is known.

        Args:
            can_start: the run exists; before that only number 0 may go.
        """
        taken: list[Work] = []
        while self.awaited is None:
            work = self.commands.get(self.next_seq)
            if work is not None:
                if work.state is State.HELD:
                    if work.missing or (self.next_seq and not can_start):
                        return taken
                    work.state = State.QUEUED
                    self.num_held -= 1
                    taken.append(work)
                    if isinstance(work.header, CreateRun | ForkRun):
                        self._first = work
                self.next_seq += 1
            elif self._voids and self._voids[0][0] <= self.next_seq:
                self._skip()
            else:
                return taken
        return taken

    def void(self, first: int, last: int) -> list[Work]:
        """Use up the numbers first..last as far as nothing whole has come under them.

        Returns the commands of which only some parts had come; they are to be failed.
        """
        broken = [
            work
            for seq, work in self.commands.items()
            if first <= seq <= last and work.state is State.HELD and work.missing
        ]
        if last >= self.next_seq:
            insort(self._voids, (max(first, self.next_seq), last))
            self._merge()
        return broken

    def forget(self, work: Work, code: str) -> None:
        """Remember no more of a finished command than that it failed with `code`, if it did."""
        if self.commands.pop(work.seq, None) is None:
            return
        if code:
            self._fates.append((work.seq, work.seq, code))
        if work.seq >= self.next_seq:
            self.void(work.seq, work.seq)

    def give_back(self, work: Work) -> bool:
        """Let the command that was taken last be sent again under its number; whether it may be."""
        is_last = self.next_seq == work.seq + 1
        if is_last:
            self.next_seq = work.seq
            del self.commands[work.seq]
        return is_last

    def begin_at_one(self) -> None:
        """Use up number 0: the run is made by a command of another run."""
        self.next_seq = 1
        self._fates.append((0, 0, "conflict"))

    def use_up(self) -> None:
        """Use up every number seen so far, and all below: their session has ended."""
        first = self.next_seq
        ends = [seq for seq in self.commands if seq >= self.next_seq]
        ends += [last for _, last in self._voids]
        self.next_seq = max([self.next_seq - 1, *ends]) + 1
        self._voids.clear()
        if self.next_seq > first:
            self._fates.append((first, self.next_seq - 1, "session_expired"))

    def held(self) -> list[Work]:
        """The commands that wait for parts or for lower numbers."""
        return [work for work in self.commands.values() if work.state is State.HELD]

    def check_integrity(self) -> None:
        """Raise AssertionError when the books contradict each other."""
        held = self.held()
        assert self.num_held == len(held)
        assert all(work.seq >= self.next_seq for work in held)
        assert self._voids == sorted(self._voids)
        assert all(first <= last >= self.next_seq for first, last in self._voids)
        assert all(seq == work.seq for seq, work in self.commands.items())

    def _skip(self) -> None:
        """Pass over the first voided range, as far as no command came under its numbers."""
        _, last = self._voids.pop(0)
        taken = [seq for seq in self.commands if self.next_seq <= seq <= last]
        first, self.next_seq = self.next_seq, min(taken, default=max(self.next_seq, last + 1))
        if self.next_seq > first:
            self._fates.append((first, self.next_seq - 1, "cancelled"))
        if self.next_seq <= last:
            self._voids.insert(0, (self.next_seq, last))

    def _merge(self) -> None:
        merged: list[tuple[int, int]] = []
        for first, last in self._voids:
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        self._voids = merged
