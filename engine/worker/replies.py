"""Encode a worker's answers and hand them to its network thread."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...client import wire
from ...client.arrays import pack_arrays
from ...client.errors import sentence
from ...client.messages import Reply
from ...client.worker_messages import Done, Failed
from .commands import Origin
from .network import Network


class Replies:
    """Answers to dispatched work, by its origin."""

    def __init__(self, network: Network) -> None:
        self._send = network.send

    def done(
        self,
        origin: Origin,
        result: Mapping[str, Any],
        arrays: Sequence[Mapping[str, np.ndarray]] = ({},),
        usage: Mapping[str, int] | None = None,
    ) -> None:
        """Answer a success in as many parts as there are groups of arrays; part 0 has the result."""
        for part, named in enumerate(arrays):
            described, frames = pack_arrays(named)
            reply = Reply(
                request_id=origin.request_id,
                part=part,
                num_parts=len(arrays),
                result=dict(result) if part == 0 else {},
                arrays=described,
            )
            envelope = Done(
                dispatch_id=origin.dispatch_id,
                lease_epoch=origin.lease_epoch,
                part=part,
                num_parts=len(arrays),
                usage=dict(usage or {}) if part == 0 else {},
            )
            self._send(wire.encode(envelope), wire.encode(reply), *frames)

    def failed(self, origin: Origin, code: str, detail: str) -> None:
        """Answer a failure; the command left no trace."""
        failure = Failed(
            dispatch_id=origin.dispatch_id,
            lease_epoch=origin.lease_epoch,
            code=code,
            detail=sentence(detail),
        )
        self._send(wire.encode(failure))


def split_arrays(named: Mapping[str, np.ndarray], max_bytes: int) -> list[dict[str, np.ndarray]]:
    """Cut arrays along their first dimension into groups of at most `max_bytes` together.

    Whoever joins the pieces of each name in order has the arrays again.
    """
    groups: list[dict[str, np.ndarray]] = [{}]
    room = max_bytes
    for name, values in named.items():
        row_bytes = values.nbytes // len(values) if len(values) else 1
        first = 0
        while first < len(values) or name not in groups[-1]:
            last = min(len(values), first + room // row_bytes)
            if last == first < len(values):
                groups.append({})
                room = max_bytes
                continue
            groups[-1][name] = values[first:last]
            room -= (last - first) * row_bytes
            first = last
            if first >= len(values):
                break
    return groups
