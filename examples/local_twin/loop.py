"""Reinforcement learning of sums with the official Tinker SDK.

TINKER_API_KEY=... python loop.py --model Qwen/Qwen3-8B
"""

import argparse
import random

import numpy as np
import tinker
from tinker import types

GROUP = 8  # answers to one question, compared with each other


def train(
    service: tinker.ServiceClient, model: str, *, steps: int, seed: int, batch: int = 8
) -> list[float]:
    """Train an adapter; returns the share of right answers of each step."""
    training = service.create_lora_training_client(model, rank=8, seed=seed).result()
    tokenizer = training.get_tokenizer()
    generator, shares = random.Random(seed), []
    questions = [(generator.randint(10, 99), generator.randint(10, 99)) for _ in range(batch)]
    for step in range(steps):
        sampler = training.save_weights_and_get_sampling_client().result()
        asked = []
        for number, (a, b) in enumerate(questions):
            prompt = tokenizer.encode(f"{a}+{b}=", add_special_tokens=False)
            params = types.SamplingParams(max_tokens=5, seed=seed + step * batch + number)
            answers = sampler.sample(types.ModelInput.from_ints(prompt), GROUP, params)
            asked.append((prompt, str(a + b), answers))
        data, rewards = [], []
        for prompt, right, answers in asked:
            sampled = answers.result().sequences
            texts = [tokenizer.decode(each.tokens, skip_special_tokens=True) for each in sampled]
            group = [float(text.strip() == right) for text in texts]
            for each, reward in zip(sampled, group, strict=True):
                advantage = reward - sum(group) / GROUP
                data.append(datum(prompt, each.tokens, each.logprobs, advantage / GROUP))
            rewards += group
        training.forward_backward(data, "importance_sampling")
        training.optim_step(types.AdamParams(learning_rate=2e-3)).result()
        shares.append(sum(rewards) / len(rewards))
    return shares


def datum(
    prompt: list[int], tokens: list[int], logprobs: list[float], advantage: float
) -> types.Datum:
    """A sampled answer with what it is worth; the prompt is not trained on."""
    zeros = [0.0] * (len(prompt) - 1)
    return types.Datum(
        model_input=types.ModelInput.from_ints([*prompt, *tokens[:-1]]),
        loss_fn_inputs={
            "target_tokens": np.array([*prompt[1:], *tokens]),
            "logprobs": np.array([*zeros, *logprobs], np.float32),
            "advantages": np.array(zeros + [advantage] * len(tokens), np.float32),
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tinker.ServiceClient() as service_client:
        result = train(service_client, options.model, steps=options.steps, seed=options.seed)
    print(" ".join(f"{share:.2f}" for share in result))
