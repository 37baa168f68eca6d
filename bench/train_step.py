"""What does fusing tenants into one batch gain, and what do adapters cost?

    python bench/train_step.py [--quick]        ten minutes on two cores

A random Qwen3 (width 512, 8 layers, vocabulary 151,936). Sixteen requests of 32 to 512 tokens come
from 1, 4 or 16 tenants, ranks mixed 4 to 64, adapters on every site, every row with a loss. Timed
in rounds that take every variant once, so that a slow minute of the machine slows all of them:

    fused          all requests in one train step
    unfused        one train step per tenant
    frozen         forward and input gradient of the base alone, on the same packed rows
    peft           transformers + peft, tenant after tenant, one padless batch each

Optimizer steps are timed apart: their cost goes with the adapters, not with the tokens.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Table, save_random_qwen3, write_result
from peft import LoraConfig, get_peft_model
from rounds import measure, median_ratio
from train_case import NUM_REQUESTS, TrainCase
from transformers import AutoModelForCausalLM

from weft.engine.model.decoder import Decoder
from weft.engine.worker.commands import PassWork

VOCAB_SIZE = 151_936
RANKS = (4, 8, 16, 32, 64, 16, 8, 4, 64, 32, 16, 8, 4, 16, 32, 64)
SINGLE_RANK = 24  # of the only tenant: the mean of the mixed ranks
# Tokens per request, without and with adapters on the unembedding.
CASES = {False: (32, 64, 128, 512), True: (64, 128)}
QUICK_CASES = {False: (64,)}


def save_model(path: Path) -> int:
    """Write the random base model; returns its number of parameters."""
    return save_random_qwen3(
        path,
        width=512,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=1536,
        max_position_embeddings=4096,
        vocab_size=VOCAB_SIZE,
        num_hidden_layers=8,
    )


class Bench(TrainCase):
    """The model of this bench in float32 on the CPU."""

    def __init__(self, path: Path, is_deterministic: bool = False) -> None:
        row_tile = 256 if is_deterministic else 0
        super().__init__(
            Decoder.load(path, device="cpu", dtype=torch.float32, row_tile=row_tile),
            ranks=RANKS,
            single_rank=SINGLE_RANK,
            state_bytes=6 << 30,
            weights_bytes=3 << 30,
            is_deterministic=is_deterministic,
        )


class Peft:
    """transformers + peft, tenant after tenant: SDPA, float32, no padding, no checkpointing."""

    settings = "sdpa attention, float32, one batch a tenant without padding, use_cache off"

    def __init__(self, path: Path, number: int, has_unembed: bool) -> None:
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="sdpa")
        model.config.use_cache = False
        configs = [
            LoraConfig(
                r=RANKS[index] if number > 1 else SINGLE_RANK,
                lora_alpha=32,
                target_modules=targets + (["lm_head"] if has_unembed else []),
            )
            for index in range(number)
        ]
        self._model: Any = get_peft_model(model, configs[0], adapter_name="r0")
        for index, config in enumerate(configs[1:], start=1):
            self._model.add_adapter(f"r{index}", config)

    def train(self, works: Sequence[PassWork]) -> None:
        """Forward and backward, one tenant after the other."""
        for run_id in dict.fromkeys(work.run_id for work in works):
            own = [work for work in works if work.run_id == run_id]
            self._model.set_adapter(f"r{run_id.split('.')[1]}")
            tokens = torch.from_numpy(np.stack([work.tokens for work in own])).long()
            targets = torch.from_numpy(np.stack([work.targets for work in own])).long()
            logits = self._model(input_ids=tokens).logits
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), reduction="sum"
            )
            torch.autograd.backward(loss)


def main() -> None:
    """Measure the curve and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="64 tokens a request only, no peft")
    parser.add_argument("--rounds", type=int, default=2, help="512 tokens take one round")
    parser.add_argument("--tokens", type=int, help="this size only")
    parser.add_argument("--unembed", action="store_true", help="of --tokens: train it as well")
    arguments = parser.parse_args()
    table = Table(
        "tokens/request",
        "tenants",
        "unembed",
        "fused tok/s",
        "vs 1 tenant",
        "vs unfused",
        "vs peft",
        "fused/frozen",
    )
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        parameters = save_model(path)
        print(f"random Qwen3 of {parameters / 1e6:.0f} M parameters, vocabulary {VOCAB_SIZE}")
        print(f"peft: {Peft.settings}; {torch.get_num_threads()} threads")
        bench = Bench(path)
        cases = QUICK_CASES if arguments.quick else CASES
        name = "train_step_quick" if arguments.quick else "train_step"
        if arguments.tokens:
            cases = {arguments.unembed: (arguments.tokens,)}
            name = f"train_step_{arguments.tokens}{'_unembed' if arguments.unembed else ''}"
        for has_unembed, sizes in cases.items():
            peft = None if arguments.quick or has_unembed else Peft(path, 16, has_unembed)
            for tokens_each in sizes:
                numbers = (1, 16) if arguments.quick or tokens_each == 512 else (1, 4, 16)
                rounds = 1 if tokens_each == 512 else arguments.rounds
                for row in _measure_size(bench, peft, tokens_each, numbers, has_unembed, rounds):
                    rows.append(row)
                    table.row(
                        tokens_each,
                        row["tenants"],
                        "yes" if has_unembed else "no",
                        f"{row['fused_tokens_per_s']:.0f}",
                        *(
                            f"{row[key]:.2f}" if key in row else "-"
                            for key in (
                                "throughput_vs_one_tenant",
                                "speedup_vs_unfused",
                                "speedup_vs_peft",
                                "fused_over_frozen",
                            )
                        ),
                    )
        optimizer = _time_optimizer(bench)
    print(f"optimizer step over 16 due runs: {optimizer * 1e3:.0f} ms")
    print("goals: vs 1 tenant >= 0.95, vs peft at 64 tokens >= 1.8, fused/frozen <= 1.35")
    write_result(
        name,
        {"parameters": parameters, "rows": rows, "optimizer_s": optimizer, "peft": Peft.settings},
    )


def _measure_size(
    bench: Bench,
    peft: Peft | None,
    tokens_each: int,
    numbers: Sequence[int],
    has_unembed: bool,
    rounds: int,
) -> list[dict[str, Any]]:
    """All variants of one size in the same rounds; one row per number of tenants."""
    works = {
        number: bench.works(bench.tenants(number, has_unembed), tokens_each) for number in numbers
    }
    variants: dict[str, Callable[[], None]] = {"frozen": partial(bench.frozen, works[1])}
    for number in numbers:
        variants[f"fused {number}"] = partial(bench.train, works[number])
        if number > 1:
            variants[f"unfused {number}"] = partial(bench.train_one_by_one, works[number])
    if peft is not None:
        variants[f"peft {numbers[-1]}"] = partial(peft.train, works[numbers[-1]])
    seconds = measure(variants, rounds)
    rows = []
    for number in numbers:
        fused = seconds[f"fused {number}"]
        row: dict[str, Any] = {
            "tokens_per_request": tokens_each,
            "tenants": number,
            "unembed": has_unembed,
            "fused_s": fused,
            "fused_tokens_per_s": NUM_REQUESTS * tokens_each / float(np.median(fused)),
            "throughput_vs_one_tenant": median_ratio(seconds["fused 1"], fused),
            "fused_over_frozen": median_ratio(fused, seconds["frozen"]),
        }
        for other in ("unfused", "peft"):
            if f"{other} {number}" in seconds:
                row[f"speedup_vs_{other}"] = median_ratio(seconds[f"{other} {number}"], fused)
        rows.append(row)
    return rows


def _time_optimizer(bench: Bench) -> float:
    """Median seconds of one optimizer step over 16 runs with gradients."""
    works = bench.works(bench.tenants(NUM_REQUESTS, False), 32)
    seconds = []
    for _ in range(3):
        bench.train(works)
        start = time.perf_counter()
        bench.step_optimizer([work.run_id for work in works])
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


if __name__ == "__main__":
    main()
