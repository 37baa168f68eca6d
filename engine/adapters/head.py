"""The language-model head by batched matmuls.

T rows of the batch, C rows of a chunk, D model width, V vocabulary, E entries of a piece, L rows
of an entry, R padded rank.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...kernels.head import (
    many_target_logprobs_,
    subtract_one_hot_,
    subtract_soft_targets_,
    target_logprobs_,
)
from ...kernels.head_plan import Chunk, Piece, cut_head
from ...kernels.lora import add_weight_gradient, shrink, weight_gradient
from .binding import BoundLinears
from .lora import LoraLinears
from .lora_batch import LoraBatch
from .loss_head import ROW_TILE, HeadResult, LossHead
from .losses import LossBatch, coefficients
from .soft_chunk import SoftChunk
from .targets import Targets


class Head(LossHead):
    """The head by batched matmuls, in one workspace.

    Gradients of adapters on the unembedding wait in planes for `linears.flush`.
    """

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
        assert isinstance(linears, LoraLinears), "the batched form is for batched linears"
        rows = np.flatnonzero(is_chosen)
        if not len(rows):
            return
        units = np.repeat(np.arange(len(losses.row_counts)), losses.row_counts)
        counts = np.bincount(units[rows], minlength=len(losses.row_counts))
        runs = linears.runs if is_trained else [None] * len(linears.runs)
        batch = LoraBatch(
            linears.store,
            Targets.UNEMBED,
            linears.versions,
            runs,
            counts,
            unit_order=linears.unit_order,
            is_deterministic=linears.is_deterministic,
            is_fine=True,
            workspace=linears.workspace,
        )
        if is_trained:
            linears.add_batch(batch)
        multiple = ROW_TILE if linears.is_deterministic else 1
        for chunk in cut_head(batch.plan, self.chunk_rows, multiple):
            _ChunkPass(self, batch, chunk, rows, hidden_TD, losses, result).run(is_trained)
        if is_trained:
            batch.mark_written((self.site,))


class _ChunkPass:
    """The three steps for one chunk."""

    def __init__(
        self,
        head: Head,
        batch: LoraBatch,
        chunk: Chunk,
        rows: npt.NDArray[np.int64],
        hidden_TD: Tensor,
        losses: LossBatch,
        result: HeadResult,
    ) -> None:
        self._base, self._sites, self._softcap = head.base, (head.site,), head.softcap
        self._batch, self._chunk, self._losses, self._result = batch, chunk, losses, result
        device = hidden_TD.device
        is_real = chunk.rows >= 0
        own_rows = rows[chunk.rows[is_real]]
        self._rows_C = torch.from_numpy(own_rows).to(device)
        self._soft: SoftChunk | None = None
        if losses.soft is not None:
            places, num_places = np.flatnonzero(is_real), len(chunk.rows)
            self._soft = SoftChunk.build(losses.soft, own_rows, places, num_places, device)
        self._places_C: Tensor | None = None
        if not is_real.all():
            self._places_C = torch.from_numpy(np.flatnonzero(is_real)).to(device)
        self._x_CD = self._spread(hidden_TD.index_select(0, self._rows_C))
        self._targets_C = self._spread(losses.targets_T.index_select(0, self._rows_C))
        self._projections: list[Tensor] = []

    def run(self, is_trained: bool) -> None:
        probabilities_CV, logprobs_C = self._logprobs()
        losses_C, slopes_C = coefficients(self._losses, self._rows_C, logprobs_C)
        if self._soft is not None:
            logprobs_C.index_fill_(0, self._soft.reals_Q, 0)
            losses_C.index_fill_(0, self._soft.reals_Q, 0)
        self._result.logprobs_T.index_copy_(0, self._rows_C, logprobs_C)
        self._result.losses_T.index_copy_(0, self._rows_C, losses_C)
        if is_trained:
            dx_CD = self._backward(probabilities_CV, self._spread(slopes_C))
            self._result.dhidden_TD.index_copy_(0, self._rows_C, self._collect(dx_CD))

    def _logprobs(self) -> tuple[Tensor, Tensor]:
        products, dtype = self._batch.products, self._x_CD.dtype
        logits_CV = self._chunk_logits(dtype)
        self._base.forward(self._x_CD, logits_CV)
        for piece in self._chunk.pieces:
            a_ERD, (bt_ERV,), scale_E = self._batch.weights(piece.block, self._sites)
            s_ELR = shrink(self._inputs(piece), a_ERD, scale_E, products)
            products.add(_view(logits_CV, piece), s_ELR, bt_ERV)
            self._projections.append(s_ELR)
        if dtype != torch.float32:
            logits_CV = self._chunk_logits(torch.float32).copy_(logits_CV)
        if self._softcap:
            bend_CV = self._bend(logits_CV)
            torch.tanh(logits_CV.div_(self._softcap), out=bend_CV)
            torch.mul(bend_CV, self._softcap, out=logits_CV)
        if self._soft is None:
            return logits_CV, self._collect(target_logprobs_(logits_CV, self._targets_C))
        logprobs_C, logprobs_M = many_target_logprobs_(
            logits_CV, self._targets_C, self._soft.target_places_M, self._soft.targets_M
        )
        self._result.soft_logprobs_M.index_copy_(0, self._soft.outputs_M, logprobs_M)
        return logits_CV, self._collect(logprobs_C)

    def _backward(self, probabilities_CV: Tensor, slopes_C: Tensor) -> Tensor:
        """dx [C, D], and the planes of the unembedding's adapters.

        dlogits = slope * (one_hot - probabilities); the slope is applied to the narrow factors.
        """
        dlogits_CV = self._subtract_targets(probabilities_CV)
        if self._softcap:  # the slope of softcap * tanh(x / softcap) is 1 - tanh^2
            bend_CV = self._bend(dlogits_CV)
            dlogits_CV.mul_(bend_CV.square_().neg_().add_(1))
        dtype = self._x_CD.dtype
        if dtype != torch.float32:
            dlogits_CV = self._chunk_logits(dtype).copy_(dlogits_CV)
        products = self._batch.products
        slopes_C1 = slopes_C.neg_()[:, None]
        dx_CD = self._base.backward_input(dlogits_CV).mul_(slopes_C1)
        for piece, s_ELR in zip(self._chunk.pieces, self._projections, strict=True):
            a_ERD, (bt_ERV,), scale_E = self._batch.weights(piece.block, self._sites)
            slopes_EL1, g_ELV = _view(slopes_C1, piece), _view(dlogits_CV, piece)
            ds_ELR = shrink(g_ELV, bt_ERV, scale_E, products).mul_(slopes_EL1)
            if self._batch.stacks[piece.block.stack].planes:
                da_ERD, (dbt_ERV,) = self._batch.planes(piece.block, self._sites)
                write = weight_gradient if piece.is_first else add_weight_gradient
                write(dbt_ERV, s_ELR.mul_(slopes_EL1), g_ELV, products)
                write(da_ERD, ds_ELR, self._inputs(piece), products)
            products.add(_view(dx_CD, piece), ds_ELR, a_ERD)
        return dx_CD

    def _subtract_targets(self, probabilities_CV: Tensor) -> Tensor:
        soft = self._soft
        if soft is None:
            return subtract_one_hot_(probabilities_CV, self._targets_C)
        return subtract_soft_targets_(
            probabilities_CV,
            self._targets_C,
            soft.one_hots_C,
            soft.totals_C,
            (soft.pull_places_P, soft.pull_targets_P, soft.pull_weights_P),
        )

    def _chunk_logits(self, dtype: torch.dtype) -> Tensor:
        """Where the logits of a chunk are kept, [C, V]."""
        num_rows, num_tokens = self._x_CD.shape[0], self._base.shape[0]
        return self._batch.products.operand("logits", num_rows, num_tokens, dtype)

    def _inputs(self, piece: Piece) -> Tensor:
        """The hidden states of a piece, [E, L, D]."""
        return self._batch.products.as_operand("x", _view(self._x_CD, piece))

    def _bend(self, logits_CV: Tensor) -> Tensor:
        """Where the tanh of capped logits is kept between forward and backward."""
        shape = (logits_CV.shape[0], logits_CV.shape[1])
        return self._batch.workspace.take("logits.bend", shape, torch.float32)

    def _spread(self, values_C: Tensor) -> Tensor:
        """Put the real rows in their places; padding is zero."""
        if self._places_C is None:
            return values_C
        spread = values_C.new_zeros(len(self._chunk.rows), *values_C.shape[1:])
        return spread.index_copy_(0, self._places_C, values_C)

    def _collect(self, values_C: Tensor) -> Tensor:
        """The real rows alone."""
        return values_C if self._places_C is None else values_C.index_select(0, self._places_C)


def _view(x_CD: Tensor, piece: Piece) -> Tensor:
    return x_CD[piece.start : piece.stop].view(piece.block.num_entries, piece.length, -1)
