"""Reinforcement learning in twenty lines: teach weft/tiny to add. Start `weft serve` first."""

import random

from weft.client import AdamParams, Datum, ModelInput, SamplingParams, ServiceClient, TensorData

training = ServiceClient().create_lora_training_client("weft/tiny", rank=8)
for step in range(60):
    sampler = training.save_weights_and_get_sampling_client()
    data, params, num_right = [], SamplingParams(max_tokens=5), 0
    sums = [(random.randint(10, 99), random.randint(10, 99)) for _ in range(16)]
    prompts = [list(f"{a}+{b}=".encode()) for a, b in sums]  # a token is a byte
    futures = [sampler.sample(ModelInput.from_ints(p), 8, params) for p in prompts]
    for (a, b), prompt, future in zip(sums, prompts, futures, strict=True):
        group = [(s.tokens, s.logprobs or []) for s in future.result().sequences]
        rewards = [tokens == [*f"{a + b}".encode(), 256] for tokens, _ in group]  # 256: the end
        num_right += sum(rewards)
        for (tokens, logprobs), reward in zip(group, rewards, strict=True):
            advantage, zeros = (reward - sum(rewards) / 8) / 128, [0.0] * (len(prompt) - 1)
            loss_inputs = {
                "target_tokens": TensorData(prompt[1:] + tokens),
                "logprobs": TensorData(zeros + logprobs),
                "advantages": TensorData(zeros + [advantage] * len(tokens)),
            }
            data.append(Datum(ModelInput.from_ints(prompt + tokens[:-1]), loss_inputs))
    training.forward_backward(data, "importance_sampling")
    training.optim_step(AdamParams(learning_rate=5e-4)).result()
    print(f"step {step}: {num_right} of 128 answers right")
