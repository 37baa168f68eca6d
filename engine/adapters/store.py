"""The adapters of all tenants on one device: training state, gradients, weights versions.

Two arenas. The state arena (`states.py`) holds five fp32 planes with equal offsets: master, two
planes that are gradient and stage in turn, and the two moments. The weights arena holds compute
weights as immutable counted versions. Blocks are laid out by `kernels.layout`: A rows [r, D] as in `lora_a`,
then Bt rows [r, O], the transpose of `lora_b` [O, r]; this file is where the two are converted.
The first granule of the weights arena is zero and stands for rows that an adapter does not have.
Touched only by the compute thread.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import count
from operator import or_

import numpy as np
import torch
from torch import Tensor

from ...client.errors import BadRequest, Busy
from ...client.limits import limit
from ...kernels.plan import rank_bucket
from ..model.config import Site
from .arena import Blocks
from .matrices import check_tensors, copies, fill, named_matrices
from .states import GRADIENT, MASTER, MOMENT1, MOMENT2, NUM_PLANES, STAGE, StateArena, StateBlock
from .targets import NOTHING, PORTIONS, Targets, layout_of, targets_of


@dataclass(eq=False, slots=True)
class WeightsVersion:
    """One immutable set of compute weights; lives while `references` is above zero."""

    id: int  # unique in the store; an update in place makes a new version of the same block
    rank: int
    scale: float  # alpha / rank
    targets: Targets
    start: int  # granule in the weights arena
    references: int = 1


@dataclass(eq=False, slots=True)
class Run:
    """One adapter in training. Change it through its store only."""

    rank: int
    alpha: float
    targets: Targets
    block: StateBlock  # of its state; shared with its forks until one of them writes
    version: WeightsVersion  # the weights that its next forward uses
    step: int = 0  # optimizer steps taken
    has_gradient: bool = False
    gradient_plane: int = GRADIENT
    is_staging: bool = False  # between begin and commit or discard
    stage_written: Targets = NOTHING  # families in the stage; the others stand for zeros

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def stage_plane(self) -> int:
        return GRADIENT + STAGE - self.gradient_plane


class AdapterStore:
    """Arenas, runs and versions of one device.

    Args:
        sites: `ModelConfig.sites()`.
        device, dtype: where everything lives, and the type of the compute weights.
        state_bytes, weights_bytes: sizes of the two arenas.
        uses_triton: whoever computes with the adapters does so by the Triton kernels.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        state_bytes: int,
        weights_bytes: int,
        uses_triton: bool = False,
    ) -> None:
        self.sites = tuple(sites)
        self.device = torch.device(device)
        self.dtype = dtype
        self.uses_triton = uses_triton
        self.layout = layout_of(self.sites)
        self.targets = Targets(reduce(or_, self.layout.families))  # what the model has sites for
        granule = self.layout.granule
        num_state = state_bytes // (NUM_PLANES * granule * 4)
        num_weights = max(1, weights_bytes // (granule * dtype.itemsize))
        self.states = StateArena(num_state, granule, self.device)
        self.weights = torch.empty(num_weights, granule, dtype=dtype, device=device)
        self.weights[0] = 0
        self._weights_blocks = Blocks(num_weights, reserved=1)
        self._ids = count(1)

    # --- runs and versions

    def create(
        self,
        *,
        rank: int,
        alpha: float,
        train_attn: bool,
        train_mlp: bool,
        train_unembed: bool,
        seed: int,
    ) -> Run:
        """Make a new adapter: A uniform in +-1/sqrt(D) from `seed`, B zero.

        Raises:
            BadRequest: a rank out of range, an alpha that is not finite and positive, no target.
            Busy: an arena is full.
        """
        targets = targets_of(train_attn, train_mlp, train_unembed)
        size = self._check(rank, alpha, targets)
        block = self.states.take(size)
        if block is None:
            raise Busy(f"no room for the training state of an adapter of rank {rank}")
        try:
            version = self._new_version(rank, alpha / rank, targets)
        except Busy:
            self.states.leave(block)
            raise
        run = Run(rank, float(alpha), targets, block, version)
        for plane in (MASTER, MOMENT1, MOMENT2):
            self.writable(run, plane).zero_()
        self._initialise(run, seed)
        self.version_flat(version).copy_(self.flat(run, MASTER))
        return run

    def fork(self, run: Run) -> Run:
        """Make a run with the state of another: weights, moments, step count and gradient.

        Nothing is copied: both hold the same version, and the same state until one of them writes.
        Room for the copy is taken now.

        Raises:
            Busy: the state arena is full.
        """
        assert not run.is_staging, "stage is open"
        if not self.states.share(run.block):
            raise Busy(f"no room for the training state of a fork of rank {run.rank}")
        return replace(run, version=self.retain(run.version))

    def drop(self, run: Run) -> None:
        """Free a run's state; its version lives on while others hold it."""
        self.states.leave(run.block)
        self.release(run.version)

    def retain(self, version: WeightsVersion) -> WeightsVersion:
        """Hold a version: later optimizer steps of its run will not touch it."""
        assert version.references > 0, "version was freed"
        version.references += 1
        return version

    def release(self, version: WeightsVersion) -> None:
        """Give up a hold; the last one frees the memory."""
        assert version.references > 0, "version was freed"
        version.references -= 1
        if version.references == 0:
            self._weights_blocks.give(version.start)

    def prepare_version(self, run: Run) -> WeightsVersion:
        """Where the next weights of a run go: its own block when nobody else holds that, or a new
        one. Nothing changes until `publish`; to give up an unpublished version, `forget` it.

        Raises:
            Busy: the weights arena is full.
        """
        old = run.version
        if old.references == 1:
            return WeightsVersion(next(self._ids), old.rank, old.scale, old.targets, old.start)
        return self._new_version(old.rank, old.scale, old.targets)

    def forget(self, run: Run, version: WeightsVersion) -> None:
        """Undo `prepare_version`."""
        if version.start != run.version.start:
            self.release(version)

    def publish(self, run: Run, version: WeightsVersion) -> None:
        """Make a prepared and written version the run's weights."""
        old, run.version = run.version, version
        if old.start == version.start:
            old.references = 0
        else:
            self.release(old)

    # --- gradients

    def begin(self, *runs: Run) -> None:
        """Open the stage of each run: a copy of its gradient, or zeros when it has none."""
        for run in runs:
            assert not run.is_staging, "stage is open"
            run.is_staging = True
            run.stage_written = run.targets if run.has_gradient else NOTHING
        held = [run for run in runs if run.has_gradient]
        if held:
            torch._foreach_copy_(
                [self.writable(run, run.stage_plane) for run in held],
                [self.flat(run, run.gradient_plane) for run in held],
            )

    def add_to_stages(
        self, runs: Sequence[Run], gradients: Sequence[Sequence[Tensor]], portion: Targets
    ) -> None:
        """Add flat fp32 gradients to a portion of open stages, in the order given.

        A run may occur several times. The number of operations grows with the most often that one
        run occurs, not with the number of runs. Allocates nothing.

        Args:
            runs: whose stage takes each gradient.
            gradients: flat tensors each, one after the other as long as the run's `portion`.
            portion: families that lie side by side.
        """
        waves: dict[tuple[int, bool], list[tuple[Tensor, Tensor]]] = {}
        seen: dict[int, int] = {}
        for run, gradient in zip(runs, gradients, strict=True):
            assert run.is_staging, "stage is not open"
            wave = seen[id(run)] = seen.get(id(run), -1) + 1
            is_fresh = not run.stage_written & portion
            stage = self.writable(run, run.stage_plane, portion)
            pieces = torch.split(stage, [piece.numel() for piece in gradient])
            waves.setdefault((wave, is_fresh), []).extend(zip(pieces, gradient, strict=True))
            run.stage_written |= run.targets & portion
        for (_, is_fresh), pairs in sorted(waves.items(), key=lambda item: item[0]):
            put: Callable[..., None] = torch._foreach_copy_ if is_fresh else torch._foreach_add_
            put([stage for stage, _ in pairs], [gradient for _, gradient in pairs])

    def stage_is_finite(self, runs: Sequence[Run]) -> list[bool]:
        """Whether the norm of each open stage is finite. Waits for the device."""
        parts = [
            (index, self.flat(run, run.stage_plane, portion))
            for index, run in enumerate(runs)
            for portion in PORTIONS
            if run.stage_written & portion
        ]
        finite = [True] * len(runs)
        for (index, _), norm in zip(parts, self.norms([flat for _, flat in parts]), strict=True):
            finite[index] &= norm < float("inf")
        return finite

    def commit(self, *runs: Run) -> None:
        """The stage becomes the gradient."""
        unwritten = [
            self.writable(run, run.stage_plane, portion)
            for run in runs
            for portion in PORTIONS
            if run.targets & portion & ~run.stage_written
        ]
        if unwritten:
            torch._foreach_zero_(unwritten)
        for run in runs:
            assert run.is_staging, "stage is not open"
            run.gradient_plane = run.stage_plane
            run.has_gradient = True
            run.is_staging, run.stage_written = False, NOTHING

    def discard(self, *runs: Run) -> None:
        """Forget the stage; the gradient stays what it was before `begin`."""
        for run in runs:
            run.is_staging, run.stage_written = False, NOTHING

    def norms(self, flats: Sequence[Tensor]) -> list[float]:
        """Euclidean norm of parts of planes; not finite when an element or the sum of squares is."""
        if not flats:
            return []
        if self.uses_triton:
            from ...kernels.gpu import optimizer as gpu  # needs Triton

            found = gpu.norms(flats)
        else:
            found = torch.stack(torch._foreach_norm(list(flats)))
        norms: list[float] = found.tolist()
        return norms

    # --- files

    def export_weights(self, version: WeightsVersion) -> dict[str, Tensor]:
        """Copies of a version's weights, fp32 on the host: `<site>.lora_a` [R, D], `.lora_b`."""
        flat = self.version_flat(version)
        return copies("", self._matrices(flat, version.rank, version.targets))

    def import_weights(
        self,
        tensors: Mapping[str, Tensor],
        *,
        rank: int,
        alpha: float,
        train_attn: bool,
        train_mlp: bool,
        train_unembed: bool,
    ) -> WeightsVersion:
        """A version without a run, from what `export_weights` gave. The caller holds it.

        Raises:
            BadRequest: names, shapes or values that do not fit.
            Busy: the weights arena is full.
        """
        targets = targets_of(train_attn, train_mlp, train_unembed)
        self._check(rank, alpha, targets)
        check_tensors(self.layout, self.sites, tensors, rank, targets, ("",))
        version = self._new_version(rank, alpha / rank, targets)
        flat = self.version_flat(version).zero_()
        fill(self._matrices(flat, rank, targets), "", tensors)
        return version

    def export_state(self, run: Run, with_optimizer: bool = True) -> tuple[dict[str, Tensor], int]:
        """Copies of master weights and moments, fp32 on the host, and the step count.

        Names are those of `export_weights`, and for the moments `moment1.<name>`, `moment2.<name>`.
        """
        tensors: dict[str, Tensor] = {}
        for prefix, plane in _STATE_PLANES.items():
            if prefix and not with_optimizer:
                continue
            matrices = self._matrices(self.flat(run, plane), run.rank, run.targets)
            tensors |= copies(prefix, matrices)
        return tensors, run.step

    def import_state(
        self, run: Run, tensors: Mapping[str, Tensor], step: int, with_optimizer: bool
    ) -> None:
        """Replace a run's weights, and its moments and step count or zero; clears gradients.

        Raises:
            BadRequest: names, shapes or values that do not fit; nothing has changed then.
            Busy: the old weights are held and the arena has no room for new ones; same.
        """
        prefixes = tuple(_STATE_PLANES) if with_optimizer else ("",)
        check_tensors(self.layout, self.sites, tensors, run.rank, run.targets, prefixes)
        version = self.prepare_version(run)
        for prefix, plane in _STATE_PLANES.items():
            flat = self.writable(run, plane).zero_()
            if prefix in prefixes:
                fill(self._matrices(flat, run.rank, run.targets), prefix, tensors)
        self.version_flat(version).copy_(self.flat(run, MASTER))
        self.publish(run, version)
        run.step = step if with_optimizer else 0
        run.has_gradient = False
        self.discard(run)

    # --- memory

    @property
    def memory(self) -> dict[str, tuple[int, int]]:
        """Bytes in use and in all of either arena; what a fork may come to need is in use."""
        state_bytes = NUM_PLANES * self.layout.granule * 4
        weights_bytes = self.layout.granule * self.dtype.itemsize
        return {
            "adapter_state_bytes": self.states.blocks.levels(state_bytes),
            "adapter_weights_bytes": self._weights_blocks.levels(weights_bytes),
        }

    def batch_bytes(self, version: WeightsVersion) -> int:
        """What one unit with these weights takes in a train batch: padded weights and gradient.

        Nothing where the Triton kernels read and write both in place.
        """
        if self.uses_triton:
            return 0
        bucket = int(rank_bucket(np.array([version.rank]))[0])
        elements = self.layout.block_size(bucket, version.targets) * self.layout.granule
        return elements * (self.dtype.itemsize + 4)

    def flat(self, run: Run, plane: int, portion: Targets | None = None) -> Tensor:
        """A run's part of a plane, to be read, [elements]; of some families or all."""
        first, size = 0, run.block.size
        if portion is not None:
            first, size = self.layout.portion_range(run.rank, run.targets, portion)
        return self.states.flat(run.block, plane, first, size)

    def writable(self, run: Run, plane: int, portion: Targets | None = None) -> Tensor:
        """As `flat`, to be written: a state that other runs share is copied first.

        Every write to a state comes through here. An earlier `flat` shows what the others share.
        """
        kept = [MASTER, MOMENT1, MOMENT2] + [run.gradient_plane] * run.has_gradient
        run.block = self.states.own(run.block, kept)
        return self.flat(run, plane, portion)

    def check_integrity(self, runs: Sequence[Run]) -> None:
        """Raise AssertionError unless these runs, all there are, hold what they should."""
        self.states.check_integrity(run.block for run in runs)
        self._weights_blocks.check_integrity()
        for run in runs:
            assert run.version.references >= sum(run.version is other.version for other in runs)
            assert not (run.stage_written and run.block.spares), "a stage in a shared block"

    def version_flat(self, version: WeightsVersion) -> Tensor:
        """The compute weights of a version, [elements]."""
        size = self.layout.block_size(version.rank, version.targets)
        return self.weights[version.start : version.start + size].view(-1)

    def _matrices(self, flat: Tensor, rank: int, targets: Targets) -> dict[str, Tensor]:
        return named_matrices(self.layout, self.sites, flat, rank, targets)

    def _new_version(self, rank: int, scale: float, targets: Targets) -> WeightsVersion:
        start = self._weights_blocks.take(self.layout.block_size(rank, targets))
        if start is None:
            raise Busy(f"no room for the weights of an adapter of rank {rank}")
        return WeightsVersion(next(self._ids), rank, scale, targets, start)

    def _initialise(self, run: Run, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        flat = self.writable(run, MASTER)
        for name, matrix in self._matrices(flat, run.rank, run.targets).items():
            if name.endswith(".lora_a"):
                bound = matrix.shape[1] ** -0.5  # kaiming_uniform with a = sqrt(5), as in PEFT
                values = torch.empty(matrix.shape).uniform_(-bound, bound, generator=generator)
                matrix.copy_(values)

    def _check(self, rank: int, alpha: float, targets: Targets) -> int:
        if not 1 <= rank <= limit("rank"):
            raise BadRequest(f"rank is {rank}; it must be 1 to {limit('rank')}")
        if not 0 < alpha < float("inf"):
            raise BadRequest(f"alpha is {alpha}; it must be positive and finite")
        if not targets:
            raise BadRequest("train_attn, train_mlp and train_unembed are all false")
        if missing := targets & ~self.targets:
            raise BadRequest(
                f"this model has no linears of {missing.name} that can be adapted, only of "
                f"{self.targets.name}"
            )
        return self.layout.block_size(rank, targets)


_STATE_PLANES = {"": MASTER, "moment1.": MOMENT1, "moment2.": MOMENT2}
