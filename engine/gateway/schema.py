"""The messages of the official SDK that travel as protobuf: package `tinker_public`, proto3.

Of arrays `bytes` hold the values, little-endian. Facts from the SDK's own description of them.
"""

from ...client.limits import limit
from .protobuf import MAX_FIELDS, Field, Message

_MAX_DIMS = limit("array_dims")
_MAX_DATUMS = limit("pass_datums")
_MAX_INPUTS = limit("pass_inputs")

# Of `dtype`; 0 is none.
FLOAT32, INT64, INT32, BFLOAT16 = range(1, 5)
# Of `stop_reason`.
STOP_REASONS = ("stop", "length")

SPARSE_CSR = Message(
    "SparseCsr",
    Field(1, "values", "bytes"),
    Field(2, "crow_indices", "bytes"),  # int64
    Field(3, "col_indices", "bytes"),  # int64
)
TENSOR = Message(
    "Tensor",
    Field(1, "dense", "bytes"),
    Field(2, "sparse_csr", SPARSE_CSR),
    Field(3, "dtype", "int32"),
    Field(4, "shape", "int64", _MAX_DIMS),
    oneof=("dense", "sparse_csr"),
)

# --- a pass -------------------------------------------------------------------------------------

ENCODED_TEXT = Message("EncodedTextChunk", Field(1, "tokens", "bytes"))  # int32
IMAGE = Message(
    "ImageChunk",
    Field(1, "data", "bytes"),
    Field(2, "format", "string"),
    Field(3, "expected_tokens", "int32"),
    Field(
        4,
        "override_dimensions",
        Message("ImageDimensions", Field(1, "width", "int32"), Field(2, "height", "int32")),
    ),
)
CHUNK = Message(
    "Chunk",
    Field(1, "encoded_text", ENCODED_TEXT),
    Field(2, "image", IMAGE),
    Field(3, "dmel", Message("DmelChunk", Field(1, "dmel", "bytes"))),
    oneof=("encoded_text", "image", "dmel"),
)
_SPAN = (
    Field(1, "sequence_id", "string"),
    Field(2, "offset", "int64"),
    Field(3, "length", "int64"),
)
SPAN = Message(
    "ProvenanceSpan",
    Field(1, "prompt_tokens", Message("PromptProvenanceSpan", *_SPAN)),
    Field(2, "sampled_tokens", Message("SampledProvenanceSpan", *_SPAN)),
    oneof=("prompt_tokens", "sampled_tokens"),
)
DATUM = Message(
    "Datum",
    Field(1, "model_input", CHUNK, MAX_FIELDS),
    Field(2, "loss_fn_inputs", TENSOR, _MAX_INPUTS, is_map=True),
    Field(3, "model_input_spans", SPAN, MAX_FIELDS),
    Field(4, "loss_fn_input_spans", SPAN, MAX_FIELDS),
)
LOSS_CONFIG_VALUE = Message(
    "LossConfigValue",
    Field(1, "number", "double"),
    Field(2, "text", "string"),
    oneof=("number", "text"),
)
_PLACE = (Field(1, "model_id", "string"), Field(2, "seq_id", "int32"))
PASS_PLACE = Message("ForwardBackwardRequest", *_PLACE, skips_others=True)
FORWARD_BACKWARD_REQUEST = Message(
    "ForwardBackwardRequest",
    *_PLACE,
    Field(3, "data", DATUM, _MAX_DATUMS),
    Field(4, "loss_fn", "string"),
    Field(5, "loss_fn_config", "double", _MAX_INPUTS, is_map=True),
    Field(6, "forward_only", "bool"),
    Field(7, "loss_fn_config_v2", LOSS_CONFIG_VALUE, _MAX_INPUTS, is_map=True),
)

BATCHED_TENSOR = Message(
    "BatchedTensor",
    Field(1, "data", "bytes"),
    Field(
        2, "offsets", "bytes"
    ),  # int64: where each datum's begin in `data`, in bytes, and the end
    Field(3, "dtype", "int32"),
    Field(4, "trailing_shape", "int64", _MAX_DIMS),
)
ARRAY_RECORD = Message(
    "ArrayRecord",
    Field(1, "type_tag", "string"),
    Field(2, "fields", BATCHED_TENSOR, _MAX_INPUTS, is_map=True),
    Field(3, "num_datums", "int64"),
)
FORWARD_BACKWARD_OUTPUT = Message(
    "ForwardBackwardOutput",
    Field(1, "loss_fn_output_type", "string"),
    Field(2, "loss_fn_outputs", ARRAY_RECORD, _MAX_DATUMS),
    Field(3, "metrics", "double", MAX_FIELDS, is_map=True),
)

# --- samples ------------------------------------------------------------------------------------

TOPK_LOGPROBS = Message(
    "TopkLogprobs",
    Field(1, "token_ids", "bytes"),  # int32 [length, k]
    Field(2, "logprobs", "bytes"),  # float32 [length, k]
    Field(3, "k", "uint32"),
    Field(4, "length", "uint32"),
)
SAMPLED_SEQUENCE = Message(
    "SampledSequence",
    Field(1, "stop_reason", "int32"),
    Field(2, "tokens", "bytes"),  # int32
    Field(3, "logprobs", "bytes"),  # float32
    Field(4, "topk_sampled_logprobs", TOPK_LOGPROBS),
)
PROMPT_ALT_TOKENS = Message(
    "PromptAltTokens", Field(1, "tokens", TENSOR), Field(2, "logprobs", TENSOR)
)
SAMPLE_RESPONSE = Message(
    "SampleResponse",
    Field(1, "sequences", SAMPLED_SEQUENCE, MAX_FIELDS),
    Field(2, "prompt_logprobs", "bytes"),  # float32, NaN where there is none
    Field(3, "topk_prompt_logprobs", TOPK_LOGPROBS),
    Field(4, "prompt_cache_hit_tokens", "int32"),
    Field(5, "target_prompt_logprobs", TENSOR),
    Field(6, "prompt_alt_tokens", PROMPT_ALT_TOKENS),
)
