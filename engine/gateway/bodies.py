"""The JSON requests of the official SDK, 0.28.1 to 0.38.0, as closed records with its defaults.

What an older SDK does not send has a default. A request with a field that no SDK has is refused by
its name; `unserved` refuses what a known field asks for and is not served. Requests whose route is not
served at all have no record. NaN and infinity are no JSON: the SDK sends null in their place, which no
number here may be.
"""

from typing import Annotated, Literal, TypeVar, dataclass_transform

import msgspec

from ...client.errors import BadRequest
from ...client.limits import limit
from ...client.wire import Malformed

T = TypeVar("T")

Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Seq = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Number = Annotated[int, msgspec.Meta(ge=0, le=999_999_999)]  # of a run or sampler in its session
Metadata = dict[str, str]
Anything = dict[str, object]

_MAX_BYTES = limit("json_bytes")


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Body(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Base of all requests and of what they hold."""


# --- sessions -------------------------------------------------------------------------------------


class ClientConfig(Body, kw_only=True):
    sdk_version: str


class CreateSession(Body, kw_only=True):
    tags: list[str]
    sdk_version: str
    user_metadata: Metadata | None = None
    project_id: str | None = None
    display_name: str | None = None
    type: Literal["create_session"] = "create_session"


class SessionHeartbeat(Body, kw_only=True):
    session_id: str
    type: Literal["session_heartbeat"] = "session_heartbeat"


class FinishReason(Body, kw_only=True):
    type: Literal["success", "errored", "interrupted"]


class FinishSession(Body, kw_only=True):
    reason: FinishReason
    detail: str | None = None


# --- training -------------------------------------------------------------------------------------


class LoraConfig(Body, kw_only=True):
    rank: Int
    seed: Int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class AdamParams(Body, kw_only=True):
    learning_rate: float = 0.0001
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


class CreateModel(Body, kw_only=True):
    session_id: str
    model_seq_id: Number
    base_model: str
    lora_config: LoraConfig  # without, the SDK would mean all weights
    user_metadata: Metadata | None = None
    optimizer_config: Anything | None = None
    type: Literal["create_model"] = "create_model"


class GetInfo(Body, kw_only=True):
    model_id: str
    type: Literal["get_info"] = "get_info"


class OptimStep(Body, kw_only=True):
    """One of the two kinds of params is there."""

    model_id: str
    seq_id: Seq | None = None
    adam_params: AdamParams | None = None
    optimizer_params: Anything | None = None  # of another optimizer
    type: Literal["optim_step"] = "optim_step"

    def __post_init__(self) -> None:
        if (self.adam_params is None) == (self.optimizer_params is None):
            raise ValueError("exactly one of `adam_params` and `optimizer_params` is needed")


class SaveWeights(Body, kw_only=True):
    model_id: str
    path: str | None = None  # a name
    seq_id: Seq | None = None
    ttl_seconds: Int | None = None
    overwrite: bool = False
    user_metadata: Metadata | None = None
    type: Literal["save_weights"] = "save_weights"


class LoadWeights(Body, kw_only=True):
    """Into a run, or as the first request of a new one, which may have what a new one may."""

    path: str
    optimizer: bool
    model_id: str | None = None
    seq_id: Seq | None = None
    session_id: str | None = None
    model_seq_id: Number | None = None
    base_model: str | None = None
    user_metadata: Metadata | None = None
    optimizer_config: Anything | None = None
    weights_access_token: str | None = None
    type: Literal["load_weights"] = "load_weights"

    def __post_init__(self) -> None:
        old = (self.model_id, self.seq_id)
        new = (self.session_id, self.model_seq_id)
        is_new = None not in new
        if (None not in old) == is_new or any(
            item is not None for item in (old if is_new else new)
        ):
            raise ValueError(
                "either `session_id` and `model_seq_id`, or `model_id` and `seq_id` are needed"
            )
        if not is_new:
            for name in ("base_model", "user_metadata", "optimizer_config"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` is of a new run, and `model_id` names one")


class SaveWeightsForSampler(Body, kw_only=True):
    model_id: str
    path: str | None = None  # a name
    sampling_session_seq_id: Number | None = None
    kind: str = "snapshot"
    seq_id: Seq | None = None
    ttl_seconds: Int | None = None
    user_metadata: Metadata | None = None
    type: Literal["save_weights_for_sampler"] = "save_weights_for_sampler"


class SaveWeightsExternal(Body, kw_only=True):
    model_id: str
    path: str  # a name
    seq_id: Seq | None = None
    ttl_seconds: Int | None = None
    age_encryption_recipients: list[str] | None = None
    type: Literal["save_weights_external"] = "save_weights_external"


# --- sampling -------------------------------------------------------------------------------------


class CreateSamplingSession(Body, kw_only=True):
    session_id: str
    sampling_session_seq_id: Number
    base_model: str | None = None
    model_path: str | None = None
    type: Literal["create_sampling_session"] = "create_sampling_session"


class JoinSamplingSession(Body, kw_only=True):
    sampling_session_id: str
    type: Literal["join_sampling_session"] = "join_sampling_session"


class EncodedTextChunk(Body, tag_field="type", tag="encoded_text", kw_only=True):
    tokens: list[Int]


class ImageChunk(Body, tag_field="type", tag="image", kw_only=True):
    data: str
    format: str
    expected_tokens: Int | None = None


class ImageAssetPointerChunk(Body, tag_field="type", tag="image_asset_pointer", kw_only=True):
    location: str
    format: str
    expected_tokens: Int | None = None


class DmelChunk(Body, tag_field="type", tag="dmel", kw_only=True):
    dmel: str


class ModelInput(Body, kw_only=True):
    chunks: list[EncodedTextChunk | ImageChunk | ImageAssetPointerChunk | DmelChunk]


class SamplingParams(Body, kw_only=True):
    max_tokens: Int | None = None
    seed: Int | None = None
    stop: str | list[str | Int] | None = None
    temperature: float = 1.0
    top_k: Int = -1
    top_p: float = 1.0


class Tensor(Body, kw_only=True):
    data: list[Int | float]
    dtype: Literal["int64", "float32"]
    shape: list[Seq] | None = None
    sparse_crow_indices: list[Int] | None = None
    sparse_col_indices: list[Int] | None = None


class Sample(Body, kw_only=True):
    prompt: ModelInput
    sampling_params: SamplingParams
    sampling_session_id: str
    seq_id: Seq
    num_samples: Int = 1
    base_model: str | None = None
    model_path: str | None = None
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: Int = 0
    topk_sample_logprobs: Int = 0
    target_prompt_logprobs: Tensor | None = None
    prompt_alt_tokens_k: Int = 0
    prompt_logprobs_last_n: Int | None = None
    record_stability_info: bool | None = None
    type: Literal["sample"] = "sample"


# --- futures --------------------------------------------------------------------------------------


class RetrieveFuture(Body, kw_only=True):
    request_id: str
    allow_metadata_only: bool = False


class FuturesTarget(Body, kw_only=True):
    sampling_session_id: str
    type: Literal["sampling_session"] = "sampling_session"
    cloned_sampler_id: Seq = 0


class RetrieveFutures(Body, kw_only=True):
    target: FuturesTarget
    prev_cursor: Seq = 0
    timeout: float | None = None  # 0: only what `retrieved_request_ids` says; None: a long poll
    retrieved_request_ids: list[str] = []


class CancelFuture(Body, kw_only=True):
    request_id: str


# --- what is kept ---------------------------------------------------------------------------------


class WeightsInfo(Body, kw_only=True):
    tinker_path: str


class SetTtl(Body, kw_only=True):
    ttl_seconds: Int | None  # None: for ever


class CopyWeights(Body, kw_only=True):
    source_path: str
    session_id: str | None = None
    model_seq_id: Number | None = None
    destination_project_id: str | None = None
    ttl_seconds: Int | None = None
    weights_access_token: str | None = None


# --- reading --------------------------------------------------------------------------------------


def decode(kind: type[T], body: bytes) -> T:
    """Read a body.

    Raises:
        Malformed: it is no JSON of this kind; names the field.
        BadRequest: `too_large`, over the limit `json_bytes`.
    """
    if len(body) > _MAX_BYTES:
        raise BadRequest(f"a JSON body of {len(body)} bytes, at most {_MAX_BYTES}", "too_large")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(kind, error) from None


def _malformed(kind: type[object], error: Exception) -> Malformed:
    hint = (
        ", which the SDK sends for a value that is not finite" if "got `null`" in str(error) else ""
    )
    return Malformed(f"{kind.__name__}: {error}{hint}")


class _Place(msgspec.Struct):
    model_id: str
    seq_id: Seq


def peek(body: bytes) -> tuple[str, int] | None:
    """The run and number of a command that may be refused, when they can be read.

    Of a body over the limit, too: what is passed over takes time, but no memory.
    """
    try:
        place = msgspec.json.decode(body, type=_Place)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return place.model_id, place.seq_id
