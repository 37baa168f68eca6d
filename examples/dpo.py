"""Direct preference optimization as a custom loss: weft/tiny learns to answer in whole sentences.

Start `weft serve` first. To "What is 3+4?" the model answers "7" or "The answer is 7.", one about
as often as the other; each pair prefers the sentence. The loss is computed here, in numpy, from
log-probabilities that the server gives; the server is sent its gradient. In the default 40 steps,
ten seconds on two cores, whole sentences rise from 44 % to 100 % on sums that are in no pair.

Source: Rafailov et al., "Direct Preference Optimization", 2023, equation 7,
https://arxiv.org/abs/2305.18290.
"""

import argparse
import random

import numpy as np

from weft.client import (
    AdamParams,
    Datum,
    ModelInput,
    SamplingParams,
    ServiceClient,
    TrainingClient,
)

IM_START, IM_END = 257, 258  # weft/tiny's tokens are bytes; these open and end a turn
BETA = 0.5
Sum = tuple[int, int]


def prompt_tokens(a: int, b: int) -> list[int]:
    """A question, and the opening of the assistant's turn."""
    question = [IM_START, *f"user\nWhat is {a}+{b}?".encode(), IM_END, *b"\n"]
    return [*question, IM_START, *b"assistant\n"]


def answers(a: int, b: int) -> tuple[list[int], list[int]]:
    """The chosen and the rejected answer."""
    return [*f"The answer is {a + b}.".encode(), IM_END], [*f"{a + b}".encode(), IM_END]


def pair_data(sums: list[Sum]) -> list[Datum]:
    """Chosen, rejected, chosen, rejected, ...; the weights say which tokens are the answer's."""
    data = []
    for a, b in sums:
        prompt = prompt_tokens(a, b)
        for answer in answers(a, b):
            tokens = prompt + answer
            weights = [0.0] * (len(prompt) - 1) + [1.0] * len(answer)
            data.append(
                Datum(
                    ModelInput.from_ints(tokens[:-1]),
                    {"target_tokens": tokens[1:], "weights": weights},
                )
            )
    return data


def answer_logprobs(data: list[Datum], logprobs: list[np.ndarray]) -> np.ndarray:
    """The log-probability of each answer, in rows of chosen and rejected."""
    sums = [
        float(datum.loss_fn_inputs["weights"].to_numpy() @ found)
        for datum, found in zip(data, logprobs, strict=True)
    ]
    return np.array(sums).reshape(-1, 2)


def reference(training: TrainingClient, data: list[Datum]) -> np.ndarray:
    """What the answers have before training: a new adapter leaves the base model as it is."""
    outputs = training.forward(data, "cross_entropy").result().loss_fn_outputs
    return answer_logprobs(data, [output["logprobs"].to_numpy() for output in outputs])


class DpoLoss:
    """-log sigmoid(beta * margin), as a mean over pairs, with its gradient."""

    def __init__(self, reference_logprobs: np.ndarray) -> None:
        self.reference = reference_logprobs
        self.margins = np.empty(0)  # of the last call

    def __call__(
        self, data: list[Datum], logprobs: list[np.ndarray]
    ) -> tuple[float, list[np.ndarray]]:
        gains = answer_logprobs(data, logprobs) - self.reference
        self.margins = gains[:, 0] - gains[:, 1]
        loss = np.logaddexp(0, -BETA * self.margins).mean()
        slopes = -BETA / (1 + np.exp(BETA * self.margins)) / len(self.margins)
        signs = np.stack([slopes, -slopes], axis=1).ravel()
        return float(loss), [
            sign * datum.loss_fn_inputs["weights"].to_numpy()
            for sign, datum in zip(signs, data, strict=True)
        ]


def share_of_sentences(training: TrainingClient, sums: list[Sum]) -> float:
    sampler = training.save_weights_and_get_sampling_client()
    params = SamplingParams(max_tokens=24, seed=0, stop=[IM_END])
    futures = [
        sampler.sample(ModelInput.from_ints(prompt_tokens(a, b)), 4, params) for a, b in sums
    ]
    sampled = [sequence for future in futures for sequence in future.result().sequences]
    start = list(b"The answer is ")
    return sum(sequence.tokens[: len(start)] == start for sequence in sampled) / len(sampled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--held-out", type=int, default=32, help="sums to measure on")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    args = parser.parse_args()

    rng = random.Random(0)
    sums = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    rng.shuffle(sums)
    held_out, sums = sums[: args.held_out], sums[-128:]
    with ServiceClient() as service:
        training = service.create_lora_training_client("weft/tiny", rank=4, seed=0)
        before = share_of_sentences(training, held_out)
        references = reference(training, pair_data(sums))
        for step in range(args.steps):
            chosen = rng.sample(range(len(sums)), args.batch)
            loss = DpoLoss(references[chosen])
            batch = pair_data([sums[i] for i in chosen])
            done = training.forward_backward_custom(batch, numpy_fn=loss)
            training.optim_step(AdamParams(learning_rate=args.learning_rate)).result()
            value = done.result().metrics["loss:sum"]
            print(f"step {step}: loss {value:.3f}, margin {loss.margins.mean():+.2f}")
        after = share_of_sentences(training, held_out)
    print(f"whole sentences {before:.0%} -> {after:.0%}")


if __name__ == "__main__":
    main()
