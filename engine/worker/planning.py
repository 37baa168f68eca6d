"""Memory plans of base models: what each needs, put into numbers for `plan_memory`."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...client.limits import limit
from ..adapters.head_form import head_bytes
from ..hosted.checkpoint import checkpoint_parameters
from ..hosted.costs import measure_activations, packed_bytes_per_token
from ..hosted.model import PackedModel, SequentialHosted
from ..model.checkpoint_files import checkpoint_bytes
from ..model.config import MODULES, ModelConfig
from .memory import MemoryPlan, MemoryRequest, plan_memory

log = logging.getLogger(__name__)

PAGE_SIZE = 16  # tokens
SURE_CONTEXT = 4096  # tokens of a sequence that must always fit, if the model has so many
PROJECTIONS = len(MODULES) * limit("rank")  # elements that adapters of a layer keep of a token
NEVER = 1 << 62  # tokens or bytes: above the size of any batch


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a plan is made for."""

    granted_bytes: int
    dtype: torch.dtype
    batch_tokens: int
    uses_triton: bool = False

    def request(
        self,
        *,
        weights: int,
        vocab_size: int,
        max_context: int,
        activations: int,
        page_bytes: int,
        is_capped: bool = False,
    ) -> MemoryRequest:
        """The request of a model that computes no activations again."""
        return MemoryRequest(
            weights=weights,
            adapter_parameter_bytes=self.dtype.itemsize,
            activation_bytes_per_token=activations,
            checkpointed_bytes_per_token=activations,
            workspace=head_bytes(
                vocab_size, self.dtype, uses_triton=self.uses_triton, is_capped=is_capped
            ),
            page_bytes=page_bytes,
            batch_tokens=self.batch_tokens,
            max_context=min(max_context, SURE_CONTEXT),
            page_size=PAGE_SIZE,
            gathers_adapters=not self.uses_triton,
        )


def plan_native(wishes: Wishes, directory: Path) -> MemoryPlan:
    """The plan of our own decoder, from config.json alone; raises BadRequest."""
    model, item = ModelConfig.from_directory(directory), wishes.dtype.itemsize
    kv_width = 2 * model.num_kv_heads * model.head_dim
    layer = layer_cost(model, wishes.uses_triton)
    request = replace(
        wishes.request(
            weights=checkpoint_bytes(directory, wishes.dtype),
            vocab_size=model.vocab_size,
            max_context=model.max_context,
            activations=(model.num_layers * layer.kept + layer.passing) * item,
            page_bytes=PAGE_SIZE * model.num_layers * kv_width * item,
        ),
        checkpointed_bytes_per_token=(
            (model.num_layers * model.width + layer.kept + layer.passing) * item
        ),
    )
    return _noted(plan_memory(wishes.granted_bytes, request))


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What a layer of our own decoder holds, in elements per token."""

    kept: int  # from forward to backward
    passing: int  # besides, while its backward runs


def layer_cost(model: ModelConfig, uses_triton: bool) -> LayerCost:
    """The cost in either form; that of PyTorch has room in `kept` for padding and what passes."""
    kv_width = 2 * model.num_kv_heads * model.head_dim
    q_width = model.num_heads * model.head_dim
    if not uses_triton:
        # The two norms' inputs and outputs, q, k, v twice (before and after RoPE and packing),
        # attention's output, gate, up and their product.
        kept = 6 * model.width + 3 * (q_width + kv_width) + 2 * q_width + 4 * model.ffn_width
        return LayerCost(kept=kept, passing=0)
    # The two norms' inputs and outputs, attention's arguments and output, gate, up and product.
    kept = 4 * model.width + 2 * q_width + kv_width + 3 * model.ffn_width + PROJECTIONS
    if model.has_qk_norm:
        kept += q_width + kv_width // 2
    # Gradients of gate, up and their product; of a norm's two arguments and two results.
    return LayerCost(kept=kept, passing=3 * model.ffn_width + 4 * model.width)


def check_hosted(wishes: Wishes, directory: Path) -> None:
    """Refuse a model whose weights alone do not fit, before they are read; raises BadRequest."""
    weights = checkpoint_parameters(directory) * wishes.dtype.itemsize
    request = wishes.request(
        weights=weights, vocab_size=1, max_context=1, activations=1, page_bytes=1
    )
    plan_memory(wishes.granted_bytes, request)


def plan_hosted(
    wishes: Wishes, directory: Path, model: PackedModel | SequentialHosted
) -> MemoryPlan:
    """The plan of a model in transformers' code, which has been loaded and is measured.

    A model that runs a sequence at a time has batches of one sequence, and its states take the
    share of the pages.

    Raises:
        BadRequest: the model does not fit.
    """
    facts, item = model.config, wishes.dtype.itemsize
    cost = measure_activations(model)
    if isinstance(model, PackedModel):
        page_bytes = 2 * facts.num_layers * facts.num_kv_heads * facts.head_dim * item * PAGE_SIZE
    else:
        sure = min(facts.max_context, SURE_CONTEXT)
        page_bytes = -(-model.state_bytes(sure) * PAGE_SIZE // sure)
    request = wishes.request(
        weights=checkpoint_parameters(directory) * item,
        vocab_size=facts.vocab_size,
        max_context=facts.max_context,
        activations=packed_bytes_per_token(cost),
        page_bytes=max(1, page_bytes),
        is_capped=model.logit_softcap > 0,
    )
    plan = replace(plan_memory(wishes.granted_bytes, request), recompute_above_tokens=NEVER)
    if isinstance(model, SequentialHosted):
        longest = max(1, cost.max_tokens(plan.activations))
        plan = replace(plan, batch_tokens=1, max_datum_tokens=longest)
    return _noted(plan)


def _noted(plan: MemoryPlan) -> MemoryPlan:
    log.info("memory plan: %s", plan)
    return plan
