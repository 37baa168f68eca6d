"""Losses of whole sequences by the oracle, and inputs to try them on."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from weft.client.losses import LOSSES, fill_config, find_loss
from weft.kernels.reference import sequence_log_ratio, token_loss

CONFIGS = {name: fill_config(find_loss(name), None) for name in LOSSES}
POLICY = [name for name in LOSSES if name != "cross_entropy"]


def plain_losses(
    loss_fn: str,
    logprobs_T: Tensor,
    inputs: Mapping[str, np.ndarray],
    config: Mapping[str, float] | None = None,
) -> Tensor:
    """The loss of every token of one sequence, float64; gradients are those of autograd."""
    config = CONFIGS[loss_fn] | dict(config or {})
    if loss_fn == "cross_entropy":
        return torch.stack(
            [
                token_loss(loss_fn, logprob, weight=float(weight))
                for logprob, weight in zip(logprobs_T, inputs["weights"], strict=True)
            ]
        )
    blank = np.zeros(len(logprobs_T), np.float32)
    low, high = (
        inputs[name] if loss_fn == "gspo" else blank + np.float32(config.get(name, 0.0))
        for name in ("clip_low_threshold", "clip_high_threshold")
    )
    shared = 0.0
    if loss_fn == "gspo" and inputs["sequence_ratio_mask"].any():
        shared = sequence_log_ratio(
            logprobs_T,
            torch.from_numpy(inputs["logprobs"]),
            torch.from_numpy(inputs["sequence_ratio_mask"]),
        )
    return torch.stack(
        [
            token_loss(
                loss_fn,
                logprob,
                weight=float(inputs["advantages"][row]),
                sampling_logprob=float(inputs["logprobs"][row]),
                low=float(low[row]),
                high=float(high[row]),
                beta=config.get("beta", 0.0),
                sequence_log_ratio=shared,
            )
            for row, logprob in enumerate(logprobs_T)
        ]
    )


def random_inputs(
    generator: np.random.Generator, length: int, idle: float = 0.3, level: float = -1.0
) -> dict[str, np.ndarray]:
    """Inputs of every loss: a prompt of zeros, then tokens of which some have no advantage."""
    inputs = {
        name: generator.normal(size=length).astype(np.float32) for name in ("weights", "advantages")
    }
    for column in inputs.values():
        column[generator.random(length) < idle] = 0
    inputs["logprobs"] = generator.normal(level, 0.3, length).astype(np.float32)
    inputs["sequence_ratio_mask"] = np.ones(length, np.float32)
    prompt = int(generator.integers(0, max(1, length // 3)))
    for column in inputs.values():
        column[:prompt] = 0
    inputs["clip_low_threshold"] = np.full(length, 0.9, np.float32)
    inputs["clip_high_threshold"] = np.full(length, 1.1, np.float32)
    return inputs
