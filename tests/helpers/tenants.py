"""What a tenant does in the end-to-end tests: random data and a short training loop."""

import numpy as np

from weft.client import AdamParams, Datum, ModelInput, TrainingClient

VOCAB_SIZE = 97


def make_data(
    seed: int, lengths: tuple[int, ...] = (12, 30, 7), weight: float = 1.0
) -> list[Datum]:
    """Next-token datums of random tokens, every token with this weight."""
    generator = np.random.default_rng(seed)
    made = []
    for length in lengths:
        tokens = generator.integers(0, VOCAB_SIZE, length + 1)
        weights = np.full(length, weight, np.float32)
        made.append(
            Datum(
                ModelInput.from_ints(tokens[:-1].tolist()),
                {"target_tokens": tokens[1:], "weights": weights},
            )
        )
    return made


def train(run: TrainingClient, seed: int, steps: int) -> list[float]:
    """Losses and gradient norms of some steps in turn; equal seeds see equal data."""
    seen = []
    for number in range(steps):
        passed = run.forward_backward(make_data(seed + number), "cross_entropy")
        stepped = run.optim_step(AdamParams(learning_rate=1e-2))
        seen.append(passed.result(60).metrics["loss:sum"])
        seen.append((stepped.result(60).metrics or {})["unclipped_grad_l2:mean"])
    return seen


def logprobs(run: TrainingClient, seed: int = 99) -> np.ndarray:
    """What a run thinks of some data, [tokens]."""
    output = run.forward(make_data(seed), "cross_entropy").result(60)
    return np.concatenate([one["logprobs"].to_numpy() for one in output.loss_fn_outputs])


def grad_norm(run: TrainingClient) -> float:
    """The norm of a run's gradient, which a step uses up."""
    stepped = run.optim_step(AdamParams(learning_rate=1e-3)).result(60)
    return (stepped.metrics or {})["unclipped_grad_l2:mean"]
