"""The shape of a decoder as its `config.json` states it, and the places an adapter can sit.

The file is read closed: a key that would change the computation and is not built here is refused
by name, and so is a key nobody here has heard of.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...client.errors import BadRequest, NotFound
from .context import read_context
from .errors import NotBuilt
from .fields import count, flag, positive, read_json, token_ids
from .rope_config import RopeScaling, read_rope

MODULES = ("q", "k", "v", "o", "gate", "up", "down")  # the order inside a layer
UNEMBED = "unembed"
_GROUPS = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}

_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
_WITH_ATTENTION_BIAS = ("llama", "qwen3")  # qwen2 always has q, k and v biases
_USED_KEYS = frozenset(
    {
        "attention_bias",
        "attention_dropout",
        "dual_chunk_attention_config",
        "eos_token_id",
        "head_dim",
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "layer_types",
        "max_position_embeddings",
        "max_window_layers",
        "mlp_bias",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "sliding_window",
        "tie_word_embeddings",
        "use_sliding_window",
        "vocab_size",
    }
)
# Says nothing about the forward pass, or only how to train, generate or store.
_IDLE_KEYS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "do_sample",
        "dtype",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "id2label",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "is_llama_config",
        "label2id",
        "max_length",
        "max_new_tokens",
        "max_sequence_length",
        "min_length",
        "num_beams",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "repetition_penalty",
        "return_dict",
        "temperature",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "trust_remote_code",
        "typical_p",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
        "use_flash_attention",
    }
)


@dataclass(frozen=True, slots=True)
class Site:
    """One linear layer that can carry an adapter; the unembedding has layer -1 and comes last."""

    layer: int
    module: str  # one of MODULES, `UNEMBED`, or another architecture's name inside the layer
    in_features: int
    out_features: int
    name: str  # Hugging Face's: "model.layers.3.mlp.gate_proj"; in files and messages
    family: str  # "attn", "mlp" or "unembed": what decides whether it is trained
    group: str  # sites of one layer and group read the same input and stand side by side


def decoder_site(layer: int, module: str, in_features: int, out_features: int) -> Site:
    """The site of one of `MODULES` in a layer of our own decoder, or its unembedding."""
    name, family = linear_name(layer, module), "attn" if module in MODULES[:4] else "mlp"
    if module == UNEMBED:
        name, family = "lm_head", "unembed"
    group = _GROUPS.get(module, module)
    return Site(layer, module, in_features, out_features, name, family, group)


def linear_name(layer: int, module: str) -> str:
    """Hugging Face's name of a linear of `MODULES`: `model.layers.3.mlp.gate_proj`."""
    block = "self_attn" if module in MODULES[:4] else "mlp"
    return f"model.layers.{layer}.{block}.{module}_proj"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything that decides the computation of a decoder of the Llama and Qwen family."""

    model_type: str = ""  # as config.json names it
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_width: int
    max_context: int  # tokens, prompt and answer together
    context_note: str = ""  # why that is less than the model was made for
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_eps: float = 1e-6
    has_qk_norm: bool = False
    has_qkv_bias: bool = False
    has_o_bias: bool = False
    has_mlp_bias: bool = False
    is_tied: bool = False
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise BadRequest(
                f"num_attention_heads is {self.num_heads}, "
                f"not a multiple of num_key_value_heads {self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise BadRequest(f"head_dim is {self.head_dim}; rotary positions need an even one")

    @property
    def q_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def num_sites(self) -> int:
        return self.num_layers * len(MODULES) + 1

    def site_index(self, layer: int, module: str) -> int:
        """Place of a site in `sites()`; the layer of the unembedding is -1."""
        if module == UNEMBED:
            return self.num_sites - 1
        return layer * len(MODULES) + MODULES.index(module)

    def sites(self) -> list[Site]:
        """Every site in order: layer by layer in the order of `MODULES`, the unembedding last."""
        shapes = {
            "q": (self.width, self.q_width),
            "k": (self.width, self.kv_width),
            "v": (self.width, self.kv_width),
            "o": (self.q_width, self.width),
            "gate": (self.width, self.ffn_width),
            "up": (self.width, self.ffn_width),
            "down": (self.ffn_width, self.width),
        }
        sites = [
            decoder_site(layer, module, *shapes[module])
            for layer in range(self.num_layers)
            for module in MODULES
        ]
        return [*sites, decoder_site(-1, UNEMBED, self.width, self.vocab_size)]

    @property
    def num_parameters(self) -> int:
        """Parameters held in memory; a tied embedding counts once."""
        linears = sum(site.in_features * site.out_features for site in self.sites()[:-1])
        norms = (2 * self.num_layers + 1) * self.width
        if self.has_qk_norm:
            norms += 2 * self.num_layers * self.head_dim
        biases = self.has_qkv_bias * (self.q_width + 2 * self.kv_width)
        biases += self.has_o_bias * self.width
        biases += self.has_mlp_bias * (2 * self.ffn_width + self.width)
        tables = self.vocab_size * self.width * (1 if self.is_tied else 2)
        return linears + norms + self.num_layers * biases + tables

    @classmethod
    def from_directory(cls, path: str | Path) -> "ModelConfig":
        """Read `config.json`, and the end tokens of `generation_config.json` where it exists.

        Raises:
            NotFound: the directory or its config.json does not exist.
            BadRequest: the file is not JSON, lacks a key, or asks for something not built here.
        """
        path = Path(path)
        if not path.is_dir():
            raise NotFound(f"model directory {path} does not exist")
        fields = read_json(path / "config.json")
        if (path / "generation_config.json").is_file():
            end_tokens = read_json(path / "generation_config.json").get("eos_token_id")
            if end_tokens is not None:
                fields["eos_token_id"] = end_tokens
        return cls.from_fields(fields)

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> "ModelConfig":
        """Build from the fields of a Hugging Face `config.json`; see `from_directory`."""
        model_type = fields.get("model_type")
        if model_type not in _MODEL_TYPES:
            raise NotBuilt(
                f"model_type {model_type!r} is not supported (it must be one of "
                f"{', '.join(_MODEL_TYPES)})"
            )
        _refuse_unsupported(fields)
        width, num_heads = count(fields, "hidden_size"), count(fields, "num_attention_heads")
        states_kv_heads = "num_key_value_heads" in fields or model_type == "llama"
        attention_bias = flag(fields, "attention_bias")
        if attention_bias and model_type not in _WITH_ATTENTION_BIAS:
            raise BadRequest(f"attention_bias is true, which a {model_type} does not have")
        theta, scaling = read_rope(fields)
        max_context, context_note = read_context(fields, scaling)
        return cls(
            model_type=model_type,
            vocab_size=count(fields, "vocab_size"),
            width=width,
            num_layers=count(fields, "num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=count(
                fields, "num_key_value_heads", num_heads if states_kv_heads else None
            ),
            head_dim=count(
                fields, "head_dim", 128 if model_type == "qwen3" else width // num_heads
            ),
            ffn_width=count(fields, "intermediate_size"),
            max_context=max_context,
            context_note=context_note,
            rope_theta=theta,
            rope_scaling=scaling,
            rms_eps=positive(fields, "rms_norm_eps", 1e-6),
            has_qk_norm=model_type == "qwen3",
            has_qkv_bias=model_type == "qwen2" or attention_bias,
            has_o_bias=attention_bias,
            has_mlp_bias=flag(fields, "mlp_bias"),
            is_tied=flag(fields, "tie_word_embeddings"),
            eos_token_ids=token_ids(fields, "eos_token_id"),
        )


def _refuse_unsupported(fields: Mapping[str, object]) -> None:
    """Refuse every key that asks for another computation than the one built here."""
    if fields.get("hidden_act", "silu") not in ("silu", "swish"):
        raise NotBuilt(f"hidden_act {fields['hidden_act']!r} is not supported, only silu")
    if fields.get("attention_dropout"):
        raise NotBuilt(f"attention_dropout {fields['attention_dropout']} is not supported, only 0")
    if fields.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise NotBuilt(
            f"partial_rotary_factor {fields['partial_rotary_factor']} is not supported, only 1"
        )
    if fields.get("mlp_bias") and fields["model_type"] != "llama":
        raise BadRequest(f"mlp_bias is true, which a {fields['model_type']} does not have")
    for key, value in fields.items():
        if key not in _USED_KEYS | _IDLE_KEYS and value not in (None, False, {}, []):
            raise NotBuilt(f"config.json has {key} = {value!r}, which is not supported")
