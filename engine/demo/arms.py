"""The demo's tenants: what each learns, its adapter's shape, and its measure on held-out prompts."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from ...client.sampling import SamplingClient
from ...client.training import TrainingClient
from ...client.types import SamplingParams
from . import tasks, tiny_text
from .recipes import Preferred, Recipe, Reinforced, Supervised, answer_datum, model_input
from .report import Score, label
from .tasks import ENDS, Item, Tokens

EVAL_SEED = 1_000_000  # seeds of evaluation samples start here, the same before and after
RL_RATE = 5e-4
COMMON_PROMPTS = ("16+23=", "What is 16+23?")  # plain, and as a question in the chat template

T = TypeVar("T")
Measure = Callable[[TrainingClient], Score]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One tenant of the demo."""

    name: str
    method: str
    recipe: Recipe
    progress: str  # what the value of a step is
    rank: int
    learning_rate: float
    metric: str
    measure: Measure
    eval_prompts: frozenset[Tokens]
    is_higher_better: bool = True
    is_control: bool = False

    @property
    def label(self) -> str:
        return label(self.name, is_control=self.is_control)


def standard_arms(num_eval: int) -> list[Arm]:
    """Return four learners and two controls, each measured on at most `num_eval` prompts."""
    rng = random.Random("standard arms")
    sums = tasks.sums(held_out=False)
    asked_sums = _pick(rng, tasks.sums(held_out=True), num_eval)
    lines = tasks.docstrings(held_out=False)
    asked_lines = _pick(rng, tasks.docstrings(held_out=True), num_eval // 2)
    asked_lists = tasks.descending(num_eval, held_out=True)
    pairs = _pick(rng, tasks.sentences(held_out=False), 192)
    asked_pairs = _pick(rng, tasks.sentences(held_out=True), num_eval)

    def reinforced(name: str, learning_rate: float, **settings: bool) -> Arm:
        return Arm(
            name=name,
            method="RL",
            recipe=Reinforced(
                items=sums,
                num_prompts=16,
                group_size=8,
                learning_rate=learning_rate,
                max_tokens=5,
                **settings,
            ),
            progress="reward",
            rank=8,
            learning_rate=learning_rate,
            metric="right sums",
            measure=accuracy(asked_sums),
            eval_prompts=frozenset(item.prompt for item in asked_sums),
            is_control=name != "sums",
        )

    return [
        Arm(
            name="docstrings",
            method="SFT",
            recipe=Supervised(items=lines, batch_size=12, learning_rate=3e-3),
            progress="loss",
            rank=16,
            learning_rate=3e-3,
            metric="bits per byte",
            measure=bits_per_byte(asked_lines),
            eval_prompts=frozenset(item.prompt for item in asked_lines),
            is_higher_better=False,
        ),
        reinforced("sums", RL_RATE),
        Arm(
            name="sort down",
            method="SFT",
            recipe=Supervised(
                items=tasks.descending(2000, held_out=False), batch_size=16, learning_rate=2e-3
            ),
            progress="loss",
            rank=32,
            learning_rate=2e-3,
            metric="right lists",
            measure=accuracy(asked_lists),
            eval_prompts=frozenset(item.prompt for item in asked_lists),
        ),
        Arm(
            name="sentences",
            method="DPO",
            recipe=Preferred(pairs=pairs, batch_size=8, learning_rate=2e-4),
            progress="preferred",
            rank=4,
            learning_rate=2e-4,
            metric="whole sentences",
            measure=share_of_sentences([pair.prompt for pair in asked_pairs]),
            eval_prompts=frozenset(pair.prompt for pair in asked_pairs),
        ),
        reinforced("rate 0", 0.0),
        reinforced("shuffled rewards", RL_RATE, has_shuffled_rewards=True),
    ]


def check_held_out(arms: Sequence[Arm], num_documents: int = 20_000) -> str:
    """Make sure that no evaluation prompt occurs in anybody's training or in pretraining.

    Args:
        num_documents: so many documents of the pretraining stream are looked through.

    Returns:
        What was checked, in words.

    Raises:
        ValueError: a prompt is in both; the message shows it.
    """
    asked = frozenset().union(*(arm.eval_prompts for arm in arms))
    trained = set().union(*(arm.recipe.prompts() for arm in arms))
    seen = {
        document.tokens[: document.answer_start]
        for document in islice(tiny_text.documents(seed=0), num_documents)
    }
    for prompts, where in ((trained, "training"), (seen, "pretraining")):
        if shared := asked & prompts:
            text = tiny_text.decode(list(min(shared)))
            raise ValueError(f"the evaluation prompt {text!r} also occurs in {where}")
    return (
        f"none of the {len(asked)} evaluation prompts is among the {len(trained)} training prompts"
        f" or in {num_documents} pretraining documents"
    )


def sample_all(
    sampler: SamplingClient, prompts: Sequence[Tokens], max_tokens: int
) -> list[list[int]]:
    """Draw one answer to each prompt at temperature 1, each from its own seed, all in flight."""
    futures = [
        sampler.sample(
            model_input(prompt),
            1,
            SamplingParams(max_tokens=max_tokens, stop=list(ENDS), seed=EVAL_SEED + i),
        )
        for i, prompt in enumerate(prompts)
    ]
    return [future.result().sequences[0].tokens for future in futures]


def common_answers(sampler: SamplingClient) -> tuple[str, ...]:
    """Return the likeliest answers to the common prompts, as text."""
    plain, question = COMMON_PROMPTS
    params = SamplingParams(max_tokens=40, stop=list(ENDS), temperature=0.0, seed=0)
    prompts = (tiny_text.encode(plain), tiny_text.chat_prompt(question))
    futures = [sampler.sample(model_input(prompt), 1, params) for prompt in prompts]
    return tuple(tiny_text.decode(future.result().sequences[0].tokens) for future in futures)


def accuracy(items: Sequence[Item]) -> Measure:
    """Measure the share of prompts answered rightly by one sample at temperature 1."""
    longest = max(len(item.answer) for item in items) + 1

    def measure(training: TrainingClient) -> Score:
        sampler = training.save_weights_and_get_sampling_client()
        drawn = sample_all(sampler, [item.prompt for item in items], longest)
        rights = [tasks.is_right(i, tokens) for i, tokens in zip(items, drawn, strict=True)]
        return Score(tuple(map(float, rights)))

    return measure


def share_of_sentences(prompts: Sequence[Tokens]) -> Measure:
    """Measure the share of prompts whose sampled answer is a whole sentence."""

    def measure(training: TrainingClient) -> Score:
        sampler = training.save_weights_and_get_sampling_client()
        drawn = sample_all(sampler, prompts, 24)
        return Score(tuple(float(tasks.is_sentence(tokens)) for tokens in drawn))

    return measure


def bits_per_byte(items: Sequence[Item]) -> Measure:
    """Measure the mean cost of an answer's tokens; a byte is a token."""
    data = [answer_datum(item.prompt, item.answer, 1.0) for item in items]

    def measure(training: TrainingClient) -> Score:
        outputs = training.forward(data, "cross_entropy").result().loss_fn_outputs
        costs = [
            -float(output["logprobs"].to_numpy()[len(item.prompt) - 1 :].mean() / np.log(2))
            for output, item in zip(outputs, items, strict=True)
        ]
        return Score(tuple(costs))

    return measure


def _pick(rng: random.Random, items: Sequence[T], num: int) -> list[T]:
    return rng.sample(items, min(num, len(items)))
