"""The language-model head by the Triton kernels: for CUDA devices.

The logits of a chunk lie in memory once, in the model's type, and become their own gradient there.
Each unit is cut at multiples of the chunk size from its own first row, and the units of a run come
in their order, so that the sums of its gradients are cut and ordered by the run's own rows alone.
T rows of the batch, C rows of a chunk, D model width, V vocabulary, M pairs of a row and a target.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...kernels.gpu.head import Pulls, pair_logprobs, rows_gradient_, rows_logprobs
from ...kernels.gpu.tiles import TileBuffers
from ...kernels.head_plan import Span, cut_units
from ..model.uploads import upload
from .binding import BoundLinears
from .gpu_linears import TileMemory, TritonLinears
from .loss_head import ROW_TILE, HeadResult, LossHead
from .losses import LossBatch, coefficients
from .soft_chunk import SoftChunk
from .store import AdapterStore, Run, WeightsVersion
from .targets import Targets


class TritonHead(LossHead):
    """The head by Triton kernels, one plan of tiles a chunk.

    Gradients of adapters on the unembedding are in the open stages when `forward_backward` returns.
    """

    _store: AdapterStore | None = None
    _memories: Sequence[TileMemory] = ()

    def _run(
        self,
        hidden_TD: Tensor,
        losses: LossBatch,
        linears: BoundLinears,
        result: HeadResult,
        is_chosen: npt.NDArray[np.bool_],
        is_trained: bool = False,
    ) -> None:
        """Pass the chosen rows through the head, with backward or without."""
        rows = np.flatnonzero(is_chosen)
        units = np.repeat(np.arange(len(losses.row_counts)), losses.row_counts)
        counts = np.bincount(units[rows], minlength=len(losses.row_counts))
        firsts = np.cumsum(counts) - counts
        order = np.arange(len(counts))
        if linears.unit_order is not None:
            order = np.argsort(np.asarray(linears.unit_order), kind="stable")
        chunks = cut_units(counts, order, self.chunk_rows)
        memories = self._take_memories(linears.store, len(chunks))
        for spans, memory in zip(chunks, memories, strict=True):
            own = [rows[firsts[span.unit] + span.start :][: span.num_rows] for span in spans]
            bound = _bind(linears, spans, memory, is_trained)
            self._run_chunk(hidden_TD, losses, bound, result, np.concatenate(own), is_trained)

    def _run_chunk(
        self,
        hidden_TD: Tensor,
        losses: LossBatch,
        linears: TritonLinears,
        result: HeadResult,
        rows: npt.NDArray[np.int64],
        is_trained: bool,
    ) -> None:
        device, num_rows = hidden_TD.device, len(rows)
        # Padding repeats a row, and nobody reads what becomes of it.
        all_rows = upload(np.pad(rows, (0, -num_rows % ROW_TILE), mode="edge"), device)
        rows_C = all_rows[:num_rows]
        targets_C = losses.targets_T.index_select(0, rows_C)
        soft: SoftChunk | None = None
        if losses.soft is not None:
            soft = SoftChunk.build(losses.soft, rows, np.arange(num_rows), num_rows, device)
        x_CD = hidden_TD.index_select(0, all_rows).requires_grad_(is_trained)
        with torch.set_grad_enabled(is_trained):
            (padded_CV,) = linears.group(x_CD, (self.base,), (self.site,))
        logits_CV = padded_CV.detach()[:num_rows]
        logprobs_C, norms_C2 = rows_logprobs(logits_CV, targets_C, softcap=self.softcap)
        losses_C, slopes_C = coefficients(losses, rows_C, logprobs_C)
        if soft is not None:
            logprobs_M = pair_logprobs(
                logits_CV, norms_C2, soft.target_places_M, soft.targets_M, softcap=self.softcap
            )
            result.soft_logprobs_M.index_copy_(0, soft.outputs_M, logprobs_M)
            logprobs_C.index_fill_(0, soft.reals_Q, 0)
            losses_C.index_fill_(0, soft.reals_Q, 0)
        result.logprobs_T.index_copy_(0, rows_C, logprobs_C)
        result.losses_T.index_copy_(0, rows_C, losses_C)
        if is_trained:
            self._turn_into_gradient(logits_CV, targets_C, norms_C2, slopes_C, soft)
            (dx_CD,) = torch.autograd.grad(padded_CV, x_CD, padded_CV.detach())
            linears.flush()
            result.dhidden_TD.index_copy_(0, rows_C, dx_CD[:num_rows])

    def _turn_into_gradient(
        self,
        logits_CV: Tensor,
        targets_C: Tensor,
        norms_C2: Tensor,
        slopes_C: Tensor,
        soft: SoftChunk | None,
    ) -> None:
        """slope * (one_hot - p), or total * p - the sum of weight * one_hot, in the logits."""
        pushes_C = pulls_C = -slopes_C
        further: Pulls | None = None
        if soft is not None:
            pushes_C, pulls_C = pushes_C * soft.totals_C, slopes_C * soft.one_hots_C
            further = Pulls(soft.pull_places_P, soft.pull_targets_P, soft.pull_weights_P)
        rows_gradient_(
            logits_CV,
            targets_C,
            norms_C2,
            pushes_C,
            pulls_C,
            softcap=self.softcap,
            further=further,
        )

    def _take_memories(self, store: AdapterStore, count: int) -> Sequence[TileMemory]:
        """Of each chunk its own: none waits until the device has read another's plan."""
        if self._store is not store:
            self._store, self._memories = store, [TileMemory.of(store)]
        table = self._memories[0].table
        missing = count - len(self._memories)
        more = [TileMemory(table, TileBuffers(store.device)) for _ in range(missing)]
        self._memories = [*self._memories, *more]
        return self._memories[:count]


def _bind(
    linears: BoundLinears, spans: Sequence[Span], memory: TileMemory, is_trained: bool
) -> TritonLinears:
    """The adapters of a chunk; those that have no rows for the unembedding are none."""
    versions: list[WeightsVersion | None] = []
    runs: list[Run | None] = []
    for span in spans:
        version, run = linears.versions[span.unit], linears.runs[span.unit]
        is_targeted = version is not None and bool(version.targets & Targets.UNEMBED)
        versions.append(version if is_targeted else None)
        runs.append(run if is_targeted and is_trained else None)
    return TritonLinears(
        linears.store,
        versions,
        runs,
        [span.num_rows for span in spans],
        memory=memory,
        portion=Targets.UNEMBED,
        is_deterministic=True,  # a pass without gradient has the bits of one with
    )
