"""Verify a small random checkpoint of every architecture listed here, and print a line for each.

    python bench/verify_families.py              all of them
    python bench/verify_families.py gemma2 lfm2  some
    python bench/verify_families.py --full       the shape of Qwen3-0.6B, both types, every row

Every row of `weft verify` is run in float32 on the CPU; the tokenizer is that of `weft/tiny`. A
family that transformers, or Weft, refuses is a line as well, with the reason. The table of
docs/models.md is this output.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from weft.client.errors import WeftError
from weft.engine.verify.record import Check
from weft.engine.verify.reference import quiet
from weft.engine.verify.report import lines_of
from weft.engine.verify.run import VerifyConfig, verify

TINY = Path(__file__).resolve().parents[1] / "engine" / "tiny"
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": None,
}
QWEN3_06B = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
HEADS = {"head_dim": 16}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": HEADS,
    "apertus": {},
    "bitnet": {},
    "bloom": {"n_head": 4, "n_layer": 2},
    "cohere": {},
    "cohere2": {"sliding_window": 32},
    "ernie4_5": HEADS,
    "exaone4": {"sliding_window": 32},
    "falcon": {},
    "gemma": HEADS,
    "gemma2": HEADS | {"query_pre_attn_scalar": 16, "sliding_window": 32},
    "gemma3_text": HEADS | {"query_pre_attn_scalar": 16, "sliding_window": 32},
    "glm": HEADS,
    "glm4": HEADS,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 4},
    "gpt_neox": {},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 8},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0},
    "helium": {"head_dim": 8},
    "ministral": HEADS | {"sliding_window": 32},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 32},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "seed_oss": HEADS,
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": HEADS | {"query_pre_attn_scalar": 16, "sliding_window": 32},
    "xglm": {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48},
    "deepseek_v2": MOE | MLA | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    "deepseek_v3": MOE | MLA | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    "dots1": MOE
    | HEADS
    | {"n_routed_experts": 4, "n_shared_experts": 1}
    | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "sliding_window": None},
    "ernie4_5_moe": MOE | {"moe_num_experts": 4, "moe_k": 2},
    "glm4_moe": MOE | HEADS | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    "gpt_oss": HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": MOE | {"num_experts": 4, "shared_expert_intermediate_size": 24},
    "qwen3_moe": MOE | HEADS | {"num_experts": 4},
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "falcon_h1": MAMBA | HEADS | {"mamba_d_ssm": 64},
    "falcon_mamba": {"state_size": 4},
    "granitemoehybrid": MAMBA
    | {"num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["mamba", "attention"]},
    "jamba": {"num_experts": 2, "mamba_d_state": 4, "attn_layer_period": 2, "attn_layer_offset": 1}
    | {"use_mamba_kernels": False},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba": {"state_size": 4},
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1},
    "qwen3_next": MOE
    | HEADS
    | {"num_experts": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 2}
    | {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    | {"layer_types": ["linear_attention", "full_attention"]},
    "recurrent_gemma": {"lru_width": 32, "num_key_value_heads": 1, "attention_window_size": 32}
    | {"block_types": ["recurrent", "attention"]},
    "zamba2": {"mamba_d_state": 8, "n_mamba_heads": 4, "mamba_headdim": 16}
    | {"layers_block_type": ["mamba", "hybrid"], "attention_head_dim": 16},
}


def save_family(path: Path, family: str) -> None:
    """Write a random checkpoint; what is near one or zero for a reason stays near it."""
    config = AutoConfig.for_model(family, **(SIZES | FAMILIES[family]))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.1 * torch.randn(parameter.shape)
            is_matrix = parameter.ndim > 1 and not name.endswith(("A_log", "conv1d.weight"))
            parameter.copy_(noise if is_matrix else parameter + noise)
    model.save_pretrained(path)
    add_tokenizer(path)


def add_tokenizer(path: Path) -> None:
    """Put the tokenizer of `weft/tiny` and its end tokens beside a checkpoint."""
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(TINY / name, path / name)


def line_of(family: str) -> str:
    """A row of a Markdown table: how it runs, what can be trained, and whether all rows passed."""
    rows: dict[str, Check] = {}
    with tempfile.TemporaryDirectory() as folder, quiet():
        try:
            save_family(Path(folder), family)
        except Exception as error:  # transformers raises what it likes
            return f"| {family} | not made: {type(error).__name__}: {str(error)[:90]} | | |"
        try:
            checks = verify(VerifyConfig(model=folder, device="cpu"), lambda check: None)
        except WeftError as error:
            return f"| {family} | refused: {error} | | |"
        rows = {check.name: check for check in checks}
    opened = rows["model"]
    if opened.status != "PASS":
        return f"| {family} | refused: {opened.detail.replace(folder, '')} | | |"
    trained = opened.detail.split("adapters: ")[1].split(";")[0]
    wrong = [f"{check.name}: {check.detail}" for check in checks if check.status != "PASS"]
    verdict = "; ".join(wrong) if wrong else "all rows pass"
    return f"| {family} | {opened.figure.removeprefix('runs on ')} | {trained} | {verdict} |"


def print_full_size() -> None:
    """Verify random weights in the shape of Qwen3-0.6B: depth and vocabulary as in use."""
    config = AutoConfig.for_model("qwen3", **(SIZES | QWEN3_06B))
    with tempfile.TemporaryDirectory() as folder:
        with quiet():
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
            model.save_pretrained(folder, max_shard_size="500MB")
        del model
        add_tokenizer(Path(folder))
        for dtype in ("float32", "bfloat16"):
            print(dtype)
            verify(
                VerifyConfig(model=folder, device="cpu", dtype=dtype),
                lambda check: print("\n".join(lines_of(check)), flush=True),
            )


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    if list(arguments) == ["--full"]:
        return print_full_size()
    print("| model_type | runs on | linears that take adapters | verified |")
    print("|---|---|---|---|")
    for family in arguments or FAMILIES:
        print(line_of(family), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
