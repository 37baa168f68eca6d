"""Which samplers without a name are closed, since the SDK never closes one. Pure.

A loop that saves weights for sampling at every step would fill the memory of the engine with
weights that nobody samples from any more. Of each run the latest few are kept, and those that are
being sampled from.
"""

from collections import Counter, OrderedDict

from ...client.errors import NotFound
from ...client.limits import limit

KEPT = limit("unnamed_samplers")
_MAX_CLOSED = 4096  # remembered, to say why they are gone


class Unnamed:
    """The samplers without a name of one session."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._runs: dict[str, OrderedDict[str, None]] = {}  # least recently used first
        self._run_of: dict[str, str] = {}
        self._under_way: Counter[str] = Counter()  # samples
        self._closed: OrderedDict[str, None] = OrderedDict()

    def opened(self, run_id: str, sampler_id: str) -> list[str]:
        """A sampler of a run was asked for; the samplers to be closed in its stead."""
        if sampler_id in self._closed:  # a repeat that comes late
            return []
        own = self._runs.setdefault(run_id, OrderedDict())
        own[sampler_id] = None
        own.move_to_end(sampler_id)
        self._run_of[sampler_id] = run_id
        spare = len(own) - self._kept
        idle = [name for name in list(own)[:-1] if not self._under_way[name]]
        for name in idle[: max(spare, 0)]:
            del own[name], self._run_of[name]
            self._closed[name] = None
            if len(self._closed) > _MAX_CLOSED:
                self._closed.popitem(last=False)
        return idle[: max(spare, 0)]

    def began(self, sampler_id: str) -> None:
        """A sample is asked for.

        Raises:
            NotFound: its sampler was closed.
        """
        if sampler_id in self._closed:
            raise NotFound(
                f"sampler {sampler_id} was closed: of the samplers without a name the latest "
                f"{self._kept} of each run are kept; save weights under a name to keep them"
            )
        run_id = self._run_of.get(sampler_id)
        if run_id is not None:
            self._runs[run_id].move_to_end(sampler_id)
            self._under_way[sampler_id] += 1

    def ended(self, sampler_id: str) -> None:
        """A sample was answered, one way or the other."""
        self._under_way[sampler_id] -= 1
        if self._under_way[sampler_id] <= 0:
            del self._under_way[sampler_id]
