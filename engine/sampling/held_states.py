"""The states that prompts and samples of a sequential model hold."""

from collections.abc import Iterable
from typing import Any

from ..model.base import SequentialModel
from .sample_state import Active, Holder, Sample


class HeldStates:
    """Makes states for prompts and copies of them for samples, and lets them go.

    A prompt holds its state until the last sample that goes on has taken it over.
    """

    def __init__(self, model: SequentialModel) -> None:
        self._model = model
        self._states: dict[Holder, Any] = {}

    def __len__(self) -> int:
        return len(self._states)

    def of_prompt(self, active: Active) -> Any:
        """The state of a prompt, without tokens at first."""
        if active not in self._states:
            self._states[active] = self._model.new_state()
        return self._states[active]

    def of_sample(self, active: Active, sample: Sample) -> Any:
        """The state of a sample, at first the prompt's: a copy, or the prompt's own for the last."""
        if sample not in self._states:
            is_last = all(
                other is sample or other in self._states or other.stop_reason
                for other in active.samples
            )
            self._states[sample] = (
                self._states.pop(active)
                if is_last
                else self._model.copy_state(self._states[active])
            )
        return self._states[sample]

    def release(self, holder: Holder) -> None:
        """Let the state of a prompt or sample go, if it has one."""
        self._states.pop(holder, None)

    def check_integrity(self, requests: Iterable[Active]) -> None:
        """Raise AssertionError unless all states are held by prompts and samples in work."""
        holders = {
            holder
            for active in requests
            for holder in (active, *(each for each in active.samples if not each.stop_reason))
        }
        assert holders >= self._states.keys(), "states are held by what is not in work"
