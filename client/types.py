"""The values that calls take and give, with the names and defaults of the official SDK.

Where a value comes as a list in that SDK it does here; the array behind it has the same name with
`_np` appended.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .errors import BadRequest
from .rest_types import Checkpoint as Checkpoint
from .rest_types import CheckpointsListResponse as CheckpointsListResponse
from .rest_types import CheckpointType as CheckpointType
from .rest_types import Cursor as Cursor
from .rest_types import GetSamplerResponse as GetSamplerResponse
from .rest_types import GetSessionResponse as GetSessionResponse
from .rest_types import ListSessionsResponse as ListSessionsResponse
from .rest_types import TrainingRun as TrainingRun
from .rest_types import TrainingRunsResponse as TrainingRunsResponse
from .rest_types import WeightsInfoResponse as WeightsInfoResponse
from .sample_results import PromptAltTokens as PromptAltTokens
from .sample_results import SampledSequence as SampledSequence
from .sample_results import SampleResponse as SampleResponse
from .sample_results import StopReason as StopReason
from .sample_results import TopkLogprobs as TopkLogprobs
from .tensor_data import NumpyArray, TensorData, from_list, is_kept, is_torch, to_array

if TYPE_CHECKING:
    import torch

LossFnType = Literal["cross_entropy", "importance_sampling", "ppo", "cispo", "dro", "gspo"]
ModelID = str

# Loss inputs that may be given as plain lists, and what they hold.
_LIST_DTYPES = {
    "target_tokens": "int64",
    "weights": "float32",
    "advantages": "float32",
    "logprobs": "float32",
    "sequence_ratio_mask": "float32",
    "clip_low_threshold": "float32",
    "clip_high_threshold": "float32",
}


# --- what a model reads ---------------------------------------------------------------------------


class EncodedTextChunk:
    """Token ids in a row."""

    __slots__ = ("source", "tokens_np")

    tokens_np: NumpyArray
    source: list[Any] | None  # a copy of the list they came from, until a datum has looked at it
    type: Literal["encoded_text"] = "encoded_text"

    def __init__(self, tokens: "Sequence[int] | NumpyArray | torch.Tensor") -> None:
        self.source = None
        if is_kept(tokens) and tokens.dtype.kind == "i":
            self.tokens_np = tokens
        elif isinstance(tokens, list):
            self.tokens_np = from_list(tokens, "int64")
            self.source = tokens.copy()  # the caller may change his
        else:
            self.tokens_np = to_array(tokens, "int64")
        if self.tokens_np.ndim != 1:
            raise BadRequest(f"tokens have shape {list(self.tokens_np.shape)}, not one dimension")

    @property
    def tokens(self) -> list[int]:
        values: list[int] = self.tokens_np.tolist()
        return values

    @property
    def length(self) -> int:
        return len(self.tokens_np)

    def __repr__(self) -> str:
        return f"EncodedTextChunk({self.length} tokens)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EncodedTextChunk):
            return NotImplemented
        return np.array_equal(self.tokens_np, other.tokens_np)

    __hash__ = None  # type: ignore[assignment]


ModelInputChunk = EncodedTextChunk


class ModelInput:
    """What a model reads: chunks of token ids, one after the other."""

    __slots__ = ("chunks",)

    chunks: list[EncodedTextChunk]

    def __init__(self, chunks: Sequence[EncodedTextChunk]) -> None:
        for chunk in chunks:
            if not isinstance(chunk, EncodedTextChunk):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise BadRequest(
                    f"a chunk of type {type(chunk).__name__} is not served; EncodedTextChunk is"
                )
        self.chunks = list(chunks)

    @classmethod
    def from_ints(cls, tokens: "Sequence[int] | NumpyArray | torch.Tensor") -> "ModelInput":
        """One chunk of token ids."""
        made = cls.__new__(cls)
        made.chunks = [EncodedTextChunk(tokens)]
        return made

    @classmethod
    def empty(cls) -> "ModelInput":
        return cls([])

    @property
    def length(self) -> int:
        return sum(chunk.length for chunk in self.chunks)

    def to_numpy(self) -> NumpyArray:
        """All token ids in one array; with one chunk, that chunk's own."""
        if len(self.chunks) == 1:
            return self.chunks[0].tokens_np
        if not self.chunks:
            return np.empty(0, np.int32)
        return np.concatenate([chunk.tokens_np for chunk in self.chunks])

    def to_ints(self) -> list[int]:
        values: list[int] = self.to_numpy().tolist()
        return values

    def append(self, chunk: EncodedTextChunk) -> "ModelInput":
        """A new input with one more chunk."""
        return ModelInput([*self.chunks, chunk])

    def append_int(self, token: int) -> "ModelInput":
        """A new input with one more token."""
        return self.append(EncodedTextChunk([token]))

    def __repr__(self) -> str:
        return f"ModelInput({self.length} tokens)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ModelInput):
            return NotImplemented
        return np.array_equal(self.to_numpy(), other.to_numpy())

    __hash__ = None  # type: ignore[assignment]


class Datum:
    """One training example: what the model reads, and one array a loss input.

    Args:
        model_input: the tokens, N of them.
        loss_fn_inputs: arrays of N elements by name; plain lists for the names of the SDK's losses.
            Of cross_entropy, `target_tokens` and `weights` may be matrices [N, K]; those that come
            as torch tensors are kept sparse when that takes less room.

    Raises:
        BadRequest: a plain list under another name, or values that are not numbers.
    """

    __slots__ = ("loss_fn_inputs", "model_input")

    model_input: ModelInput
    loss_fn_inputs: dict[str, TensorData]

    def __init__(
        self,
        model_input: ModelInput,
        loss_fn_inputs: "Mapping[str, TensorData | Sequence[int] | Sequence[float] | NumpyArray | torch.Tensor]",
    ) -> None:
        self.model_input = model_input
        self.loss_fn_inputs = {
            name: value if type(value) is TensorData else _loss_input(name, value, model_input)
            for name, value in loss_fn_inputs.items()
        }
        for chunk in model_input.chunks:
            chunk.source = None

    def __repr__(self) -> str:
        names = ", ".join(self.loss_fn_inputs)
        return f"Datum({self.model_input.length} tokens; {names})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Datum):
            return NotImplemented
        return (self.model_input, self.loss_fn_inputs) == (other.model_input, other.loss_fn_inputs)

    __hash__ = None  # type: ignore[assignment]


def _loss_input(name: str, value: Any, model_input: ModelInput) -> TensorData:
    if isinstance(value, TensorData):
        return value
    if not isinstance(value, (list, tuple)):
        if name in ("target_tokens", "weights") and is_torch(value) and value.ndim == 2:
            return TensorData.from_torch_sparse(value)
        return TensorData(value)
    dtype = _LIST_DTYPES.get(name)
    if dtype is None:
        raise BadRequest(
            f"loss input {name!r} is a plain list and has no known dtype; give a TensorData"
        )
    values: list[Any] = value if isinstance(value, list) else list(value)  # pyright: ignore
    shifted = _shifted(values, model_input) if name == "target_tokens" else None
    return TensorData(from_list(values, dtype) if shifted is None else shifted)


def _shifted(values: list[Any], model_input: ModelInput) -> NumpyArray | None:
    """Targets that are the input's next tokens; comparing the lists is quicker than reading one."""
    source = model_input.chunks[0].source if len(model_input.chunks) == 1 else None
    if source is None or len(values) != len(source) or values[:-1] != source[1:]:
        return None
    tokens = model_input.chunks[0].tokens_np
    return np.concatenate((tokens[1:], from_list(values[-1:], "int64")))


# --- options --------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class SamplingParams:
    """How to draw tokens."""

    max_tokens: int | None = None  # None: up to the context
    seed: int | None = None  # None: drawn once, by the client
    stop: str | Sequence[str] | Sequence[int] | None = None  # None: end of sequence; []: nothing
    temperature: float = 1.0  # 0: the likeliest token
    top_k: int = -1  # -1: off
    top_p: float = 1.0


@dataclass(kw_only=True)
class AdamParams:
    """One step of AdamW."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0  # decoupled
    grad_clip_norm: float = 0.0  # 0: no clipping


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """An adapter's shape."""

    rank: int = 32
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True
    alpha: float = 32.0  # scale is alpha / rank; not in the official SDK


# --- results --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ForwardBackwardOutput:
    """Of forward and forward_backward. The loss is `metrics["loss:sum"]`."""

    loss_fn_output_type: str = "ArrayRecord"
    loss_fn_outputs: list[dict[str, TensorData]]  # of each datum "logprobs", as its target_tokens
    metrics: dict[str, float]  # names are `name:reduction`


@dataclass(frozen=True, kw_only=True)
class OptimStepResponse:
    metrics: dict[str, float] | None = None  # "unclipped_grad_l2:mean" is always there


@dataclass(frozen=True, kw_only=True)
class SaveWeightsResponse:
    path: str
    size_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class SaveWeightsForSamplerResponse:
    path: str | None = None
    sampling_session_id: str | None = None
    size_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class SaveWeightsExternalResponse:
    path: str
    size_bytes: int  # of the adapter's files


@dataclass(frozen=True, kw_only=True)
class LoadWeightsResponse:
    path: str


@dataclass(frozen=True, kw_only=True)
class ModelData:
    arch: str | None = None
    model_name: str | None = None
    tokenizer_id: str | None = None  # a directory or hub name
    model_type: str = ""  # of config.json, such as "qwen3"
    width: int = 0  # of the hidden states; 0 when it is not known


@dataclass(frozen=True, kw_only=True)
class GetInfoResponse:
    model_id: str  # the run's id
    model_data: ModelData
    is_lora: bool = True
    lora_rank: int | None = None
    lora_alpha: float | None = None
    model_name: str | None = None
    forked_from: str | None = None  # the id of the run that it began as a copy of


@dataclass(frozen=True, kw_only=True)
class SupportedModel:
    model_name: str
    max_context_length: int
    trainable: bool = True
    sampleable: bool = True
    aliases: list[str] = field(default_factory=list[str])
    vocab_size: int = 0
    max_rank: int = 0
    tokenizer: str = ""  # a directory or hub name, "" when there is none
    model_type: str = ""  # of config.json, such as "qwen3"
    width: int = 0  # of the hidden states; 0 when it is not known
    runs_on: str = "native"  # Weft's modelling code, or "packed" or "sequential" in transformers'
    targets: list[str] = field(default_factory=list[str])  # what can be adapted: attn, mlp, unembed
    notes: list[str] = field(default_factory=list[str])
    """What is less than one may expect, and why: a short context, weights that stay frozen."""


@dataclass(frozen=True, kw_only=True)
class GetServerCapabilitiesResponse:
    supported_models: list[SupportedModel]
