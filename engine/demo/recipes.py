"""How the demo's tenants train: three recipes written against the client only."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ...client.training import TrainingClient
from ...client.types import AdamParams, Datum, ModelInput, SamplingParams
from . import tasks
from .tasks import ENDS, Item, Preference, Tokens

if TYPE_CHECKING:
    import torch

DPO_BETA = 0.5


class Recipe(Protocol):
    """A way to train."""

    def prepare(self, training: TrainingClient) -> None:
        """Do what is needed once, before the first step."""

    def step(self, training: TrainingClient, rng: random.Random) -> float:
        """Train on one batch; return the value to show as progress."""

    def prompts(self) -> set[Tokens]:
        """Return every prompt that a step may train on."""


@dataclass(kw_only=True)
class Supervised:
    """Cross-entropy on the answers, as a mean over their tokens."""

    items: Sequence[Item]
    batch_size: int
    learning_rate: float

    def prepare(self, training: TrainingClient) -> None:
        pass

    def step(self, training: TrainingClient, rng: random.Random) -> float:
        batch = rng.sample(self.items, self.batch_size)
        num_tokens = sum(len(item.answer) for item in batch)
        data = [answer_datum(item.prompt, item.answer, 1 / num_tokens) for item in batch]
        done = training.forward_backward(data, "cross_entropy")
        stepped = training.optim_step(AdamParams(learning_rate=self.learning_rate))
        loss = done.result().metrics["loss:sum"]
        stepped.result()
        return loss

    def prompts(self) -> set[Tokens]:
        return {item.prompt for item in self.items}


@dataclass(kw_only=True)
class Reinforced:
    """Online reinforcement: sample groups, reward what is right, centre, importance sampling."""

    items: Sequence[Item]
    num_prompts: int  # of a batch
    group_size: int
    learning_rate: float
    max_tokens: int
    has_shuffled_rewards: bool = False

    def prepare(self, training: TrainingClient) -> None:
        pass

    def step(self, training: TrainingClient, rng: random.Random) -> float:
        batch = rng.sample(self.items, self.num_prompts)
        sampler = training.save_weights_and_get_sampling_client()
        params = SamplingParams(
            max_tokens=self.max_tokens, stop=list(ENDS), seed=rng.getrandbits(31)
        )
        futures = [sampler.sample(model_input(i.prompt), self.group_size, params) for i in batch]
        groups = [future.result().sequences for future in futures]
        rewards = [
            [float(tasks.is_right(item, sequence.tokens)) for sequence in group]
            for item, group in zip(batch, groups, strict=True)
        ]
        mean_reward = float(np.mean(rewards))
        if self.has_shuffled_rewards:
            rewards = tasks.shuffled(rewards, rng)
        scale = 1 / (self.num_prompts * self.group_size)
        data = [
            sampled_datum(item.prompt, sequence.tokens, sequence.logprobs or [], advantage * scale)
            for item, group, advantages in zip(
                batch, groups, tasks.group_advantages(rewards), strict=True
            )
            for sequence, advantage in zip(group, advantages, strict=True)
            if advantage
        ]
        if data:
            done = training.forward_backward(data, "importance_sampling")
            stepped = training.optim_step(AdamParams(learning_rate=self.learning_rate))
            done.result()
            stepped.result()
        return mean_reward

    def prompts(self) -> set[Tokens]:
        return {item.prompt for item in self.items}


@dataclass(kw_only=True)
class Preferred:
    """Direct preference optimization against the untrained adapter, as a custom loss.

    Source: Rafailov et al., "Direct Preference Optimization", 2023, equation 7,
    https://arxiv.org/abs/2305.18290.
    """

    pairs: Sequence[Preference]
    batch_size: int
    learning_rate: float
    _reference: list[tuple[float, float]] = field(default_factory=list, init=False)

    def prepare(self, training: TrainingClient) -> None:
        outputs = training.forward(self._data(self.pairs), "cross_entropy").result()
        sums = [
            float(output["logprobs"].to_numpy()[len(pair.prompt) - 1 :].sum())
            for output, pair in zip(
                outputs.loss_fn_outputs, [p for p in self.pairs for _ in range(2)], strict=True
            )
        ]
        self._reference = list(zip(sums[::2], sums[1::2], strict=True))

    def step(self, training: TrainingClient, rng: random.Random) -> float:
        chosen = rng.sample(range(len(self.pairs)), self.batch_size)
        pairs = [self.pairs[i] for i in chosen]
        reference = [self._reference[i] for i in chosen]

        def loss(
            _: Sequence[Datum], logprobs: Sequence["torch.Tensor"]
        ) -> tuple["torch.Tensor", dict[str, float]]:
            return dpo_loss(pairs, reference, logprobs)

        done = training.forward_backward_custom(self._data(pairs), loss)
        stepped = training.optim_step(AdamParams(learning_rate=self.learning_rate))
        preferred = done.result().metrics["preferred:mean"]
        stepped.result()
        return preferred

    def prompts(self) -> set[Tokens]:
        return {pair.prompt for pair in self.pairs}

    def _data(self, pairs: Sequence[Preference]) -> list[Datum]:
        return [
            answer_datum(pair.prompt, answer, 0.0)
            for pair in pairs
            for answer in (pair.chosen, pair.rejected)
        ]


def dpo_loss(
    pairs: Sequence[Preference],
    reference: Sequence[tuple[float, float]],
    logprobs: Sequence["torch.Tensor"],
) -> tuple["torch.Tensor", dict[str, float]]:
    """Return mean -log sigmoid(beta * margin) and the share of pairs with a positive margin.

    Args:
        reference: summed log-probabilities of each pair's answers before training.
        logprobs: of every token of chosen, rejected, chosen, ... as `forward` gives them.
    """
    import torch

    margins = []
    for i, pair in enumerate(pairs):
        start = len(pair.prompt) - 1
        gain = logprobs[2 * i][start:].sum() - reference[i][0]
        margins.append(gain - (logprobs[2 * i + 1][start:].sum() - reference[i][1]))
    margin = torch.stack(margins)
    loss = -torch.nn.functional.logsigmoid(DPO_BETA * margin).mean()
    return loss, {"preferred:mean": float((margin > 0).float().mean())}


def answer_datum(prompt: Tokens, answer: Tokens, weight: float) -> Datum:
    """Build a cross-entropy datum in which only the answer's tokens have a weight."""
    tokens = (*prompt, *answer)
    weights = np.zeros(len(tokens) - 1, np.float32)
    weights[len(prompt) - 1 :] = weight
    return _datum(tokens, weights=weights)


def sampled_datum(
    prompt: Tokens, tokens: Sequence[int], logprobs: Sequence[float], advantage: float
) -> Datum:
    """Build a policy-gradient datum from one sampled answer."""
    whole = (*prompt, *tokens)
    sampled_logprobs = np.zeros(len(whole) - 1, np.float32)
    sampled_logprobs[len(prompt) - 1 :] = logprobs
    advantages = np.zeros(len(whole) - 1, np.float32)
    advantages[len(prompt) - 1 :] = advantage
    return _datum(whole, logprobs=sampled_logprobs, advantages=advantages)


def model_input(tokens: Sequence[int]) -> ModelInput:
    """Wrap the tokens of a prompt."""
    return ModelInput.from_ints(list(tokens))


def _datum(tokens: Tokens, **arrays: Any) -> Datum:
    inputs = {"target_tokens": np.array(tokens[1:], np.int32), **arrays}
    return Datum(model_input(tokens[:-1]), inputs)
