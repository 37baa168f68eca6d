"""Supervised fine-tuning: teach weft/tiny to spell words backwards. Start `weft serve` first."""

import random

from weft.client import AdamParams, Datum, ModelInput, SamplingParams, ServiceClient

END = 256  # weft/tiny's tokens are bytes; this one ends a text
WORDS = ["weft", "loom", "warp", "thread", "yarn", "cloth", "wool", "silk", "felt", "linen"]


def example(word: str) -> Datum:
    """A prompt without weight and an answer with weight 1, each token predicting the next."""
    prompt, answer = list(f"backwards {word} -> ".encode()), [*word[::-1].encode(), END]
    tokens = prompt + answer
    weights = [0.0] * (len(prompt) - 1) + [1.0] * len(answer)
    return Datum(
        ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:], "weights": weights}
    )


with ServiceClient() as service:
    training = service.create_lora_training_client("weft/tiny", rank=16)
    for step in range(60):
        batch = [example(word) for word in random.sample(WORDS, 5)]
        loss = training.forward_backward(batch, "cross_entropy")
        training.optim_step(AdamParams(learning_rate=3e-3)).result()
        print(f"step {step}: loss {loss.result().metrics['loss:sum']:.2f}")

    sampler = training.save_weights_and_get_sampling_client()
    for word in WORDS[:3]:
        prompt = ModelInput.from_ints(list(f"backwards {word} -> ".encode()))
        params = SamplingParams(max_tokens=10, temperature=0.0)
        answer = sampler.sample(prompt, 1, params).result().sequences[0]
        print(word, "->", bytes(token for token in answer.tokens if token < END).decode())
