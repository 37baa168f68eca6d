"""What a worker without a model says of tokens beside those drawn: 1, 2, 3, with their negatives."""

from collections.abc import Mapping

import numpy as np

from weft.client.messages import Sample


def sample_extras(
    header: Sample, arrays: Mapping[str, np.ndarray], num_drawn: int
) -> dict[str, np.ndarray]:
    """The arrays of an answer that only some requests ask for; targets score as -token."""
    num_prompt = header.num_tokens - 1
    wanted = {
        "topk_prompt": (header.prompt_logprobs_last_n or num_prompt, header.topk_prompt_logprobs),
        "topk_sample": (num_drawn, header.topk_sample_logprobs),
        "prompt_alt": (num_prompt, header.prompt_alt_tokens_k),
    }
    found: dict[str, np.ndarray] = {}
    for name, (rows, k) in wanted.items():
        if k:
            found[f"{name}_tokens"] = np.tile(np.arange(1, k + 1, dtype=np.int32), (rows, 1))
            found[f"{name}_logprobs"] = -found[f"{name}_tokens"].astype(np.float32)
    if "target_tokens" in arrays:
        found["target_prompt_logprobs"] = -arrays["target_tokens"].astype(np.float32)
    return found
