"""What the worker, the trainer and the samplers need of any base model, whoever computes it.

T tokens of a batch, L tokens of one sequence, D model width.
"""

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .attention import Attention
from .config import Site
from .linear import BaseLinear, Linears


class ModelFacts(Protocol):
    """Numbers of a model that others plan with; `ModelConfig` has them all."""

    @property
    def model_type(self) -> str:
        """The architecture as config.json names it."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def num_layers(self) -> int: ...

    @property
    def num_kv_heads(self) -> int:
        """Key heads of a layer, the same in all layers; 0 where there is no such number."""

    @property
    def head_dim(self) -> int:
        """Width of a key head; 0 where there is no such number."""

    @property
    def max_context(self) -> int:
        """Tokens of one sequence, prompt and answer together."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...


class BaseModel(Protocol):
    """A frozen base model; holds weights and nothing that changes between calls.

    The logits of a hidden row h are `head.forward(h)`, bent by `softcap * tanh(logits / softcap)`
    where `logit_softcap` is not 0.
    """

    @property
    def config(self) -> ModelFacts: ...

    @property
    def runs_on(self) -> str:
        """ "native", "packed" or "sequential"; see `ModelCard`."""

    @property
    def uses_triton(self) -> bool:
        """Whether it computes by the Triton kernels, attention included."""

    @property
    def notes(self) -> Sequence[str]:
        """What is less than one may expect of the model, and why."""

    @property
    def sites(self) -> Sequence[Site]:
        """Where adapters can sit, in order; the unembedding is the last."""

    @property
    def head(self) -> BaseLinear: ...

    @property
    def logit_softcap(self) -> float: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def forward(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        attention: Attention,
        linears: Linears,
        *,
        checkpoint_layers: Collection[int] = (),
    ) -> Tensor:
        """Return the hidden states that the head reads, [T, D]; differentiable in the adapters.

        A model that runs on "sequential" takes exactly one whole sequence, from position 0 and
        without padding, and uses its own attention instead of the one given.

        Args:
            tokens_T: token ids, int64, below `vocab_size`.
            positions_T: position of each token in its own sequence, int64, below `max_context`.
            attention: which keys each token sees.
            linears: the linears with or without adapters.
            checkpoint_layers: layers that compute their activations again for backward.
        """


class SequentialModel(BaseModel, Protocol):
    """A model that cannot be packed: it also continues one sequence at a time, with its own cache.

    A state belongs to one sequence and to one weights version: what it holds was computed under
    the adapters of the calls that filled it.
    """

    @property
    def continues_in_chunks(self) -> bool:
        """Whether `advance` takes several tokens for a state that has some already.

        Where not, a prompt goes in by one call, and whatever follows token by token.
        """

    def new_state(self) -> Any:
        """The state of a sequence without tokens."""

    def copy_state(self, state: Any) -> Any:
        """An independent copy; advancing one leaves the other as it is."""

    def state_bytes(self, num_tokens: int) -> int:
        """What a state of so many tokens takes on the device; never less for more tokens.

        The sampler reserves by it, so it may be too large but not too small.
        """

    def advance(self, state: Any, tokens_L: Tensor, linears: Linears) -> Tensor:
        """Feed L >= 1 more tokens of the sequence; returns their hidden states, [L, D].

        Positions go on from the tokens the state has. The state changes in place; after an
        exception it must not be used any more. Call it without gradients.

        Args:
            linears: bound to exactly L rows, all of one unit.
        """
