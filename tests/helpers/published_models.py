"""Facts of published config.json files: what a decoder must understand, and its parameter count.

The counts are those the model's files hold, a tied embedding once.
"""

from dataclasses import dataclass
from typing import Any

LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA32 = LLAMA31 | {"factor": 32.0}
YARN_4X = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
QWEN_1M = {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}


@dataclass(frozen=True)
class Published:
    """One model; `context` is what Weft serves of it."""

    name: str
    fields: dict[str, Any]
    num_parameters: int
    context: int


def model(
    name: str,
    kind: str,
    shape: tuple[int, int, int, int, int, int],
    num_parameters: int,
    context: int,
    **fields: Any,
) -> Published:
    """`shape` is (width, layers, heads, key heads, feed-forward width, vocabulary)."""
    width, layers, heads, kv_heads, ffn_width, vocabulary = shape
    stated = {
        "model_type": kind,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn_width,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    return Published(name, stated | _OF_A_KIND[kind] | fields, num_parameters, context)


_OF_A_KIND: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1},
    "mistral": {"sliding_window": None, "rope_theta": 1e6, "attention_dropout": 0.0},
    "qwen2": {"sliding_window": 131072, "use_sliding_window": False, "max_window_layers": 28}
    | {"rope_theta": 1e6, "rms_norm_eps": 1e-6},
    "qwen3": {"sliding_window": None, "use_sliding_window": False, "max_window_layers": 28}
    | {"rope_theta": 1e6, "rms_norm_eps": 1e-6, "head_dim": 128, "attention_bias": False},
}
_SEVEN_B = (4096, 32, 32, 32, 11008, 32000)
_MISTRAL_7B = (4096, 32, 32, 8, 14336, 32000)
_SEVENTY_B = (8192, 80, 64, 8, 28672, 128256)
_TIED = {"tie_word_embeddings": True}
_WIDE_HEADS = {"head_dim": 128}

PUBLISHED = [
    model("huggyllama/llama-7b", "llama", _SEVEN_B, 6_738_415_616, 2048, rms_norm_eps=1e-6),
    model("huggyllama/llama-65b", "llama", (8192, 80, 64, 64, 22016, 32000), 65_285_660_672, 2048),
    model("meta-llama/Llama-2-7b-hf", "llama", _SEVEN_B, 6_738_415_616, 4096),
    model(
        "meta-llama/Llama-2-13b-hf", "llama", (5120, 40, 40, 40, 13824, 32000), 13_015_864_320, 4096
    ),
    model(
        "meta-llama/Llama-2-70b-hf", "llama", (8192, 80, 64, 8, 28672, 32000), 68_976_648_192, 4096
    ),
    model(
        "codellama/CodeLlama-7b-hf",
        "llama",
        (4096, 32, 32, 32, 11008, 32016),
        6_738_546_688,
        16384,
        rope_theta=1e6,
    ),
    model(
        "meta-llama/Meta-Llama-3-8B",
        "llama",
        (4096, 32, 32, 8, 14336, 128256),
        8_030_261_248,
        8192,
        rope_theta=5e5,
    ),
    model(
        "meta-llama/Llama-3.1-8B",
        "llama",
        (4096, 32, 32, 8, 14336, 128256),
        8_030_261_248,
        131072,
        rope_theta=5e5,
        rope_scaling=LLAMA31,
    ),
    model(
        "meta-llama/Llama-3.3-70B-Instruct",
        "llama",
        _SEVENTY_B,
        70_553_706_496,
        131072,
        rope_theta=5e5,
        rope_scaling=LLAMA31,
        eos_token_id=[128001, 128008, 128009],
    ),
    model(
        "meta-llama/Llama-3.1-405B",
        "llama",
        (16384, 126, 128, 8, 53248, 128256),
        405_853_388_800,
        131072,
        rope_theta=5e5,
        rope_scaling=LLAMA31,
    ),
    model(
        "meta-llama/Llama-3.2-1B",
        "llama",
        (2048, 16, 32, 8, 8192, 128256),
        1_235_814_400,
        131072,
        rope_theta=5e5,
        rope_scaling=LLAMA32,
        head_dim=64,
        **_TIED,
    ),
    model(
        "meta-llama/Llama-3.2-3B",
        "llama",
        (3072, 28, 24, 8, 8192, 128256),
        3_212_749_824,
        131072,
        rope_theta=5e5,
        rope_scaling=LLAMA32,
        head_dim=128,
        **_TIED,
    ),
    model("TinyLlama/TinyLlama-1.1B", "llama", (2048, 22, 32, 4, 5632, 32000), 1_100_048_384, 2048),
    model(
        "HuggingFaceTB/SmolLM2-135M",
        "llama",
        (576, 30, 9, 3, 1536, 49152),
        134_515_008,
        8192,
        rope_theta=1e5,
        rope_interleaved=False,
        is_llama_config=True,
        **_TIED,
    ),
    model("01-ai/Yi-6B", "llama", (4096, 32, 32, 4, 11008, 64000), 6_061_035_520, 4096),
    model("01-ai/Yi-34B", "llama", (7168, 60, 56, 8, 20480, 64000), 34_388_917_248, 4096),
    model(
        "deepseek-ai/deepseek-coder-6.7b-base",
        "llama",
        (4096, 32, 32, 32, 11008, 32256),
        6_740_512_768,
        16384,
        rope_theta=100000,
        rope_scaling={"type": "linear", "factor": 4.0},
    ),
    model(
        "mistralai/Mistral-7B-v0.1",
        "mistral",
        _MISTRAL_7B,
        7_241_732_096,
        4096,
        max_position_embeddings=32768,
        sliding_window=4096,
        rope_theta=10000.0,
    ),
    model("mistralai/Mistral-7B-Instruct-v0.2", "mistral", _MISTRAL_7B, 7_241_732_096, 32768),
    model(
        "mistralai/Mistral-7B-v0.3",
        "mistral",
        (4096, 32, 32, 8, 14336, 32768),
        7_248_023_552,
        32768,
    ),
    model(
        "mistralai/Mistral-Nemo-Instruct-2407",
        "mistral",
        (5120, 40, 32, 8, 14336, 131072),
        12_247_782_400,
        1024000,
        **_WIDE_HEADS,
    ),
    model(
        "mistralai/Mistral-Small-Instruct-2409",
        "mistral",
        (6144, 56, 48, 8, 16384, 32768),
        22_247_282_688,
        32768,
        **_WIDE_HEADS,
    ),
    model(
        "mistralai/Mistral-Small-24B-Instruct-2501",
        "mistral",
        (5120, 40, 32, 8, 32768, 131072),
        23_572_403_200,
        32768,
        rope_theta=1e8,
        **_WIDE_HEADS,
    ),
    model(
        "mistralai/Mistral-Large-Instruct-2407",
        "mistral",
        (12288, 88, 96, 8, 28672, 32768),
        122_610_069_504,
        131072,
        **_WIDE_HEADS,
    ),
    model("Qwen/Qwen2-0.5B", "qwen2", (896, 24, 14, 2, 4864, 151936), 494_032_768, 131072, **_TIED),
    model(
        "Qwen/Qwen2.5-1.5B",
        "qwen2",
        (1536, 28, 12, 2, 8960, 151936),
        1_543_714_304,
        131072,
        **_TIED,
    ),
    model(
        "Qwen/Qwen2.5-3B", "qwen2", (2048, 36, 16, 2, 11008, 151936), 3_085_938_688, 32768, **_TIED
    ),
    model("Qwen/Qwen2.5-7B", "qwen2", (3584, 28, 28, 4, 18944, 152064), 7_615_616_512, 131072),
    model(
        "Qwen/Qwen2.5-7B-Instruct with YaRN",
        "qwen2",
        (3584, 28, 28, 4, 18944, 152064),
        7_615_616_512,
        131072,
        max_position_embeddings=32768,
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    ),
    model(
        "Qwen/Qwen2.5-7B-Instruct-1M",
        "qwen2",
        (3584, 28, 28, 4, 18944, 152064),
        7_615_616_512,
        253952,
        max_position_embeddings=1010000,
        rope_theta=1e7,
        dual_chunk_attention_config=QWEN_1M,
    ),
    model("Qwen/Qwen2.5-14B", "qwen2", (5120, 48, 40, 8, 13824, 152064), 14_770_033_664, 131072),
    model("Qwen/Qwen2.5-32B", "qwen2", (5120, 64, 40, 8, 27648, 152064), 32_763_876_352, 131072),
    model("Qwen/Qwen2.5-72B", "qwen2", (8192, 80, 64, 8, 29568, 152064), 72_706_203_648, 131072),
    model("Qwen/Qwen3-0.6B", "qwen3", (1024, 28, 16, 8, 3072, 151936), 596_049_920, 40960, **_TIED),
    model(
        "Qwen/Qwen3-1.7B", "qwen3", (2048, 28, 16, 8, 6144, 151936), 1_720_574_976, 40960, **_TIED
    ),
    model("Qwen/Qwen3-4B", "qwen3", (2560, 36, 32, 8, 9728, 151936), 4_022_468_096, 40960, **_TIED),
    model(
        "Qwen/Qwen3-4B-Instruct-2507",
        "qwen3",
        (2560, 36, 32, 8, 9728, 151936),
        4_022_468_096,
        262144,
        rope_theta=5000000,
        **_TIED,
    ),
    model("Qwen/Qwen3-8B", "qwen3", (4096, 36, 32, 8, 12288, 151936), 8_190_735_360, 40960),
    model(
        "Qwen/Qwen3-8B with YaRN",
        "qwen3",
        (4096, 36, 32, 8, 12288, 151936),
        8_190_735_360,
        131072,
        max_position_embeddings=40960,
        rope_scaling=YARN_4X,
    ),
    model("Qwen/Qwen3-14B", "qwen3", (5120, 40, 40, 8, 17408, 151936), 14_768_307_200, 40960),
    model("Qwen/Qwen3-32B", "qwen3", (5120, 64, 64, 8, 25600, 151936), 32_762_123_264, 40960),
]
