"""Log-probabilities of target tokens from logits, and their gradient, in the logits' own memory.

C rows of a chunk, V vocabulary.
"""

import torch
from torch import Tensor


def target_logprobs_(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
    """Return log softmax(logits)[target], [C] float32, and turn the logits into probabilities.

        logprob = logit[target] - max(logit) + log(max(probability))

    which stays exact where the target's own probability underflows. softmax and two maxima in place
    of log_softmax and exp: 28 ms instead of 43 for 256 rows of 151,936 (one thread).
    """
    top_C = logits_CV.amax(1)
    target_logits_C = logits_CV.gather(1, targets_C[:, None]).squeeze(1)
    torch.softmax(logits_CV, 1, out=logits_CV)
    return target_logits_C - top_C + logits_CV.amax(1).log_()


def subtract_one_hot_(probabilities_CV: Tensor, targets_C: Tensor) -> Tensor:
    """Turn probabilities into minus the gradient of each row's target logprob by its logits."""
    ones = torch.full_like(targets_C, -1, dtype=probabilities_CV.dtype)
    return probabilities_CV.scatter_add_(1, targets_C[:, None], ones[:, None])
