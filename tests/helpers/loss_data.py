"""Datums for every loss, of random tokens."""

from typing import Any

import numpy as np
from tenants import VOCAB_SIZE, make_data

from weft.client import Datum, ModelInput, TensorData
from weft.client.csr import Csr
from weft.client.losses import LOSSES

SIZES = (40, 24)  # one unit of 64 tokens where units are that small


def policy_data(seed: int, loss_fn: str, lengths: tuple[int, ...] = SIZES) -> list[Datum]:
    """A prompt of 5 tokens, then tokens whose sampler was close to a fresh model."""
    generator = np.random.default_rng(seed)
    made = []
    for length in lengths:
        tokens = generator.integers(0, VOCAB_SIZE, length + 1)
        inputs: dict[str, Any] = {"target_tokens": tokens[1:]}
        columns = {
            "logprobs": generator.normal(-4.6, 0.4, length),
            "advantages": generator.normal(size=length),
            "sequence_ratio_mask": np.ones(length),
            "clip_low_threshold": np.full(length, 0.9),
            "clip_high_threshold": np.full(length, 1.2),
        }
        for item in LOSSES[loss_fn].inputs[1:]:
            column = columns[item.name].astype(np.float32)
            if item.name in ("logprobs", "advantages", "sequence_ratio_mask"):
                column[:5] = 0
            inputs[item.name] = column
        made.append(Datum(ModelInput.from_ints(tokens[:-1]), inputs))
    return made


def loss_data(seed: int, loss_fn: str) -> list[Datum]:
    return make_data(seed, SIZES) if loss_fn == "cross_entropy" else policy_data(seed, loss_fn)


def soft_data(seed: int, num_targets: int, lengths: tuple[int, ...] = SIZES) -> list[Datum]:
    """Signed weights of several targets a position, some of them 0."""
    generator = np.random.default_rng(seed)
    made = []
    for length in lengths:
        shape = (length, num_targets)
        weights = generator.normal(size=shape) * (generator.random(shape) < 0.7)
        inputs: Any = {
            "target_tokens": generator.integers(0, VOCAB_SIZE, shape),
            "weights": weights.astype(np.float32),
        }
        made.append(Datum(ModelInput.from_ints(generator.integers(0, VOCAB_SIZE, length)), inputs))
    return made


def as_sparse(datum: Datum) -> Datum:
    """The same, of which every second target is listed."""
    matrices = {name: value.to_numpy() for name, value in datum.loss_fn_inputs.items()}
    is_listed = np.zeros(matrices["weights"].shape, bool)
    is_listed[:, ::2] = True
    csr = Csr.of(is_listed)
    inputs = {name: TensorData.listed(csr.collect(one), csr) for name, one in matrices.items()}
    return Datum(datum.model_input, inputs)
