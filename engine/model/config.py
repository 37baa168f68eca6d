"""The shape of a decoder as its `config.json` states it, and the places an adapter can sit.

The file is read closed: a key that would change the computation and is not built here is refused
by name, and so is a key nobody here has heard of.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...client.errors import BadRequest, NotFound
from .errors import NotBuilt

MODULES = ("q", "k", "v", "o", "gate", "up", "down")  # the order inside a layer
UNEMBED = "unembed"
_GROUPS = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}

_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
_USED_KEYS = frozenset(
    {
        "attention_bias",
        "eos_token_id",
        "head_dim",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "mlp_bias",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "tie_word_embeddings",
        "vocab_size",
    }
)
# Says nothing about the forward pass, or only how to train, generate or store.
_IDLE_KEYS = frozenset(
    {
        "_attn_implementation",
        "_name_or_path",
        "architectures",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "id2label",
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "max_window_layers",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
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
class RopeScaling:
    """Frequency scaling of Llama 3.1: long wavelengths are stretched by `factor`.

    Source: transformers, `modeling_rope_utils.py`, `_compute_llama3_parameters`.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_context: int  # tokens of pretraining

    def __post_init__(self) -> None:
        if self.high_freq_factor <= self.low_freq_factor:
            raise BadRequest(
                f"high_freq_factor {self.high_freq_factor} is not above "
                f"low_freq_factor {self.low_freq_factor}"
            )


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
        fields = _read_json(path / "config.json")
        if (path / "generation_config.json").is_file():
            end_tokens = _read_json(path / "generation_config.json").get("eos_token_id")
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
        width, num_heads = _count(fields, "hidden_size"), _count(fields, "num_attention_heads")
        kv_heads_default = num_heads if model_type == "llama" else None
        head_dim_default = 128 if model_type == "qwen3" else width // num_heads
        attention_bias = _flag(fields, "attention_bias") if model_type != "qwen2" else False
        theta, scaling = _rope(fields)
        return cls(
            model_type=model_type,
            vocab_size=_count(fields, "vocab_size"),
            width=width,
            num_layers=_count(fields, "num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=_count(fields, "num_key_value_heads", kv_heads_default),
            head_dim=_count(fields, "head_dim", head_dim_default),
            ffn_width=_count(fields, "intermediate_size"),
            max_context=_count(fields, "max_position_embeddings"),
            rope_theta=theta,
            rope_scaling=scaling,
            rms_eps=_positive(fields, "rms_norm_eps", 1e-6),
            has_qk_norm=model_type == "qwen3",
            has_qkv_bias=model_type == "qwen2" or attention_bias,
            has_o_bias=attention_bias,
            has_mlp_bias=_flag(fields, "mlp_bias"),
            is_tied=_flag(fields, "tie_word_embeddings"),
            eos_token_ids=_token_ids(fields),
        )


def _read_json(path: Path) -> dict[str, object]:
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist") from None
    except (ValueError, OSError) as error:
        raise BadRequest(f"{path} cannot be read: {error}") from error
    if not isinstance(fields, dict):
        raise BadRequest(f"{path} does not hold a JSON object")
    return fields


def _refuse_unsupported(fields: Mapping[str, object]) -> None:
    """Refuse every key that asks for another computation than the one built here."""
    if fields.get("hidden_act", "silu") not in ("silu", "swish"):
        raise NotBuilt(f"hidden_act {fields['hidden_act']!r} is not supported, only silu")
    if fields.get("attention_dropout"):
        raise NotBuilt(
            f"attention_dropout {fields['attention_dropout']} is not supported, only 0"
        )
    # Qwen states a window and leaves it unused; Mistral uses one wherever it states none.
    stated = "sliding_window" in fields or fields["model_type"] != "mistral"
    window = fields.get("sliding_window") if stated else 4096
    if fields["model_type"] in ("qwen2", "qwen3") and not fields.get("use_sliding_window"):
        window = None
    if window is not None or fields.get("use_sliding_window"):
        raise NotBuilt(f"sliding_window {window} is not supported, only full attention")
    layer_types = fields.get("layer_types") or []
    if not isinstance(layer_types, list):
        raise BadRequest("layer_types is not a list")
    for layer_type in layer_types:
        if layer_type != "full_attention":
            raise NotBuilt(f"layer_types has {layer_type!r}, only full_attention is supported")
    checked = {"hidden_act", "attention_dropout", "sliding_window", "use_sliding_window"}
    known = _USED_KEYS | _IDLE_KEYS | checked | {"layer_types"}
    for key, value in fields.items():
        if key not in known and value not in (None, False, {}, []):
            raise NotBuilt(f"config.json has {key} = {value!r}, which is not supported")


def _rope(fields: Mapping[str, object]) -> tuple[float, RopeScaling | None]:
    rope = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise BadRequest(f"rope_scaling is {rope!r}, not an object")
    theta = _positive(rope, "rope_theta", _positive(fields, "rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    expected = {"rope_theta", "rope_type", "type"}
    scaling = None
    if kind == "llama3":
        expected |= {
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        }
        default = _count(fields, "max_position_embeddings")
        scaling = RopeScaling(
            factor=_positive(rope, "factor"),
            low_freq_factor=_positive(rope, "low_freq_factor"),
            high_freq_factor=_positive(rope, "high_freq_factor"),
            original_max_context=_count(rope, "original_max_position_embeddings", default),
        )
    elif kind != "default":
        raise NotBuilt(f"rope_type {kind!r} is not supported, only default and llama3")
    for key in rope.keys() - expected:
        if not (key == "partial_rotary_factor" and rope[key] == 1.0):
            raise NotBuilt(f"{key} in the rope parameters of type {kind!r} is not supported")
    return theta, scaling


def _count(fields: Mapping[str, object], key: str, default: int | None = None) -> int:
    """Read a positive whole number; null counts as absent."""
    value = fields.get(key)
    if value is None:
        value = default
    if value is None:
        raise BadRequest(f"config.json lacks {key}")
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise BadRequest(f"{key} is {value!r}, not a positive whole number")
    return value


def _positive(fields: Mapping[str, object], key: str, default: float | None = None) -> float:
    value = fields.get(key)
    if value is None:
        value = default
    if value is None:
        raise BadRequest(f"config.json lacks {key}")
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1e30:
        raise BadRequest(f"{key} is {value!r}, not a positive number")
    return float(value)


def _flag(fields: Mapping[str, object], key: str) -> bool:
    value = fields.get(key, False)
    if not isinstance(value, bool):
        raise BadRequest(f"{key} is {value!r}, not true or false")
    return value


def _token_ids(fields: Mapping[str, object]) -> tuple[int, ...]:
    value = fields.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise BadRequest(f"eos_token_id is {value!r}, not a token id or a list of them")
    return tuple(ids)
