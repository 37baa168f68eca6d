"""The runs and samplers that live on a worker, by the ids their owners use."""

from dataclasses import dataclass, field

from ...client.errors import Conflict, NotFound
from ..adapters.store import AdapterStore, Run, WeightsVersion
from ..sampling.requests import SampleRequest
from .commands import SampleWork


@dataclass(slots=True)
class HeldRun:
    """A run on this worker and what was added to its gradient since the last optimizer step."""

    run: Run
    lane: str
    base_model: str
    train_attn: bool
    train_mlp: bool
    train_unembed: bool
    num_calls: int = 0
    num_tokens: int = 0
    is_broken: bool = False  # its weights are not finite; only load_state helps

    def clear_counts(self) -> None:
        self.num_calls = self.num_tokens = 0


@dataclass(slots=True)
class RunTable:
    """Which run and which sampler is which. Owns one reference to each sampler's version."""

    store: AdapterStore
    eos_token_ids: tuple[int, ...]
    _runs: dict[str, HeldRun] = field(default_factory=dict)
    _samplers: dict[str, WeightsVersion | None] = field(default_factory=dict)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._runs

    @property
    def counts(self) -> dict[str, int]:
        """How many runs and samplers there are."""
        return {"runs": len(self._runs), "samplers": len(self._samplers)}

    def run(self, run_id: str) -> HeldRun:
        """The run of this id; raises NotFound."""
        held = self._runs.get(run_id)
        if held is None:
            raise NotFound(f"no run {run_id!r} on this worker")
        return held

    def unit_bytes(self, run_id: str) -> int:
        """Workspace that one unit of a run takes in a batch; 0 while the run is not there yet."""
        held = self._runs.get(run_id)
        return 0 if held is None else self.store.batch_bytes(held.run.version)

    def healthy(self, run_id: str) -> HeldRun:
        """The run, if its weights are finite; raises Conflict `non_finite` otherwise."""
        held = self.run(run_id)
        if held.is_broken:
            raise Conflict(
                f"the weights of {run_id!r} are not finite; load a saved state", "non_finite"
            )
        return held

    def add_run(self, run_id: str, held: HeldRun) -> None:
        """Enter a new run; raises Conflict when the id is taken."""
        if run_id in self._runs:
            raise Conflict(f"run {run_id!r} exists")
        self._runs[run_id] = held

    def drop_run(self, run_id: str) -> None:
        """Free a run's state; samplers made from it keep their versions."""
        held = self._runs.pop(run_id, None)
        if held is not None:
            self.store.drop(held.run)

    def add_sampler(self, sampler_id: str, version: WeightsVersion | None) -> None:
        """Open a sampler on a version, whose reference it takes over, or on the base model."""
        if sampler_id in self._samplers:
            raise Conflict(f"sampler {sampler_id!r} exists")
        self._samplers[sampler_id] = version

    def drop_sampler(self, sampler_id: str) -> None:
        """Close a sampler; samples in flight keep their own references."""
        version = self._samplers.pop(sampler_id, None)
        if version is not None:
            self.store.release(version)

    def version(self, sampler_id: str) -> WeightsVersion | None:
        """The weights of a sampler, None for the bare base model; raises NotFound."""
        if sampler_id not in self._samplers:
            raise NotFound(f"no sampler {sampler_id!r} on this worker")
        return self._samplers[sampler_id]

    def sample_request(self, work: SampleWork) -> SampleRequest:
        """What the generator needs to know of a sample request; raises NotFound."""
        header = work.header
        stops = set(header.stop_tokens)
        if header.default_stop:
            stops.update(self.eos_token_ids)
        return SampleRequest(
            key=work.origin.dispatch_id,
            tokens=work.tokens,
            num_samples=header.num_samples,
            max_tokens=header.max_tokens,
            temperature=header.temperature,
            top_k=header.top_k,
            top_p=header.top_p,
            seed=header.seed,
            stop_tokens=frozenset(stops),
            stop_strings=tuple(header.stop_strings),
            prompt_logprobs=header.prompt_logprobs,
            prompt_logprobs_last_n=header.prompt_logprobs_last_n,
            topk_prompt_logprobs=header.topk_prompt_logprobs,
            topk_sample_logprobs=header.topk_sample_logprobs,
            prompt_targets=work.targets,
            prompt_alt_tokens_k=header.prompt_alt_tokens_k,
            version=self.version(header.sampler_id),
        )
