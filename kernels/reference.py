"""What everything computes, in float64 and plain loops. The oracle of all other forms.

Arguments are converted to float64; gradients of the functions are those of autograd. T rows,
S segments, D input features, O output features, R rank, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor


@dataclass
class Adapter:
    """One adapter at one site, in PEFT orientation."""

    lora_a: Tensor  # [R, D]
    lora_b: Tensor  # [O, R]
    scale: float


def lora_linear(
    x_TD: Tensor,
    weight_OD: Tensor,
    bias_O: Tensor | None,
    row_counts: Sequence[int],
    adapters: Sequence[Adapter | None],
) -> Tensor:
    """A frozen linear plus each segment's adapter.

    y[t] = W x[t] + bias + scale[s] * B[s] A[s] x[t]    for every row t of segment s

    Rows beyond the segments', and those of segments without adapter, are W x + bias.
    """
    y_TO = x_TD.double() @ weight_OD.double().t()
    if bias_O is not None:
        y_TO = y_TO + bias_O.double()
    pieces, start = [], 0
    for count, adapter in zip(row_counts, adapters, strict=True):
        rows = slice(start, start + count)
        y_SO = y_TO[rows]
        if adapter is not None:
            s_SR = x_TD[rows].double() @ adapter.lora_a.double().t()
            y_SO = y_SO + adapter.scale * (s_SR @ adapter.lora_b.double().t())
        pieces.append(y_SO)
        start += count
    return torch.cat([*pieces, y_TO[start:]])


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Each row over its root mean square, times the weights; any leading dimensions."""
    x_TD = x_TD.double()
    mean_square_T1 = (x_TD**2).mean(-1, keepdim=True)
    return x_TD / (mean_square_T1 + eps).sqrt() * weight_D.double()


def rope(x_THK: Tensor, cos_TJ: Tensor, sin_TJ: Tensor) -> Tensor:
    """Every pair (x[j], x[j + K / 2]) of every head as a complex number, times cos + i sin."""
    num_pairs = x_THK.shape[2] // 2
    pairs_THJ = torch.complex(x_THK[..., :num_pairs].double(), x_THK[..., num_pairs:].double())
    turns_TJ = torch.complex(cos_TJ.double(), sin_TJ.double())
    turned_THJ = pairs_THJ * turns_TJ[:, None]
    return torch.cat([turned_THJ.real, turned_THJ.imag], dim=2)


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """silu(gate) * up."""
    gate_TF = gate_TF.double()
    return gate_TF / (1 + torch.exp(-gate_TF)) * up_TF.double()


def token_loss(
    loss_fn: str,
    logprob: Tensor,
    *,
    weight: float,
    sampling_logprob: float = 0.0,
    low: float = 0.0,
    high: float = 0.0,
    beta: float = 0.0,
    sequence_log_ratio: float = 0.0,
) -> Tensor:
    """The loss of one token; `weight` is the weight of cross-entropy, else the advantage."""
    logprob = logprob.double()
    if weight == 0 and (loss_fn != "dro" or sampling_logprob == 0):
        return logprob.new_zeros(())
    if loss_fn == "cross_entropy":
        return -weight * logprob
    if loss_fn == "dro":
        return -(logprob * weight - beta / 2 * (logprob - sampling_logprob) ** 2)
    log_ratio = logprob - sampling_logprob
    if loss_fn == "gspo":
        log_ratio = sequence_log_ratio + logprob - logprob.detach()
    ratio = log_ratio.exp()
    if loss_fn == "importance_sampling":
        return -ratio * weight
    if loss_fn == "cispo":
        return -ratio.detach().clamp(low, high) * logprob * weight
    if loss_fn in ("ppo", "gspo"):
        return -torch.minimum(ratio * weight, ratio.clamp(low, high) * weight)
    raise ValueError(f"no oracle for {loss_fn!r}")


def sequence_log_ratio(logprobs_T: Tensor, sampling_logprobs_T: Tensor, mask_T: Tensor) -> float:
    """The logarithm of the ratio that all tokens of a sequence share."""
    differences = logprobs_T.detach().double() - sampling_logprobs_T.double()
    return float(differences[mask_T != 0].mean())


def soft_target_loss(logits_TV: Tensor, targets: Sequence[Sequence[tuple[int, float]]]) -> Tensor:
    """Cross-entropy with any number of (target, weight) pairs a row; the sum over all rows."""
    logprobs_TV = logits_TV.double().log_softmax(1)
    terms = [
        -weight * logprobs_TV[row, target]
        for row, pairs in enumerate(targets)
        for target, weight in pairs
        if weight != 0
    ]
    return torch.stack(terms).sum() if terms else logits_TV.new_zeros(())


def capped(logits_TV: Tensor, softcap: float) -> Tensor:
    """Logits bent to stay within +-softcap; 0 is off."""
    logits_TV = logits_TV.double()
    return softcap * torch.tanh(logits_TV / softcap) if softcap else logits_TV


def target_logprobs(logits_TV: Tensor, targets_T: Tensor) -> Tensor:
    """Log-probability of each row's target token, [T]."""
    logprobs_TV = logits_TV.double().log_softmax(1)
    return logprobs_TV.gather(1, targets_T[:, None]).squeeze(1)


def causal_attention(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, scale: float) -> Tensor:
    """Attention of one sequence, each token to itself and those before it, [T, H, K].

    out[t, h] = sum_j softmax_j(scale q[t, h] k[j, g]) v[j, g]    for j = 0 .. t, g = h // (H / G)
    """
    repeats = q_THK.shape[1] // k_TGK.shape[1]
    rows = []
    for token, q_HK in enumerate(q_THK.double()):
        k_JGK, v_JGK = k_TGK[: token + 1].double(), v_TGK[: token + 1].double()
        heads = []
        for head, q_K in enumerate(q_HK):
            weights_J = (scale * (k_JGK[:, head // repeats] @ q_K)).softmax(0)
            heads.append(weights_J @ v_JGK[:, head // repeats])
        rows.append(torch.stack(heads))
    return torch.stack(rows) if rows else q_THK.double()


@dataclass
class AdamState:
    """One parameter tensor with its moments."""

    weight: Tensor
    moment1: Tensor
    moment2: Tensor
    step: int


def adamw(
    state: AdamState,
    gradient: Tensor,
    *,
    learning_rate: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    grad_clip_norm: float = 0.0,
) -> AdamState:
    """One step of Adam with decoupled weight decay, after clipping by the gradient's own norm.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2.
    """
    gradient = gradient.double()
    norm = float(gradient.norm())
    if 0 < grad_clip_norm < norm:
        gradient = gradient * (grad_clip_norm / norm)
    step = state.step + 1
    moment1 = beta1 * state.moment1.double() + (1 - beta1) * gradient
    moment2 = beta2 * state.moment2.double() + (1 - beta2) * gradient**2
    denominator = moment2.sqrt() / sqrt(1 - beta2**step) + eps
    weight = state.weight.double() * (1 - learning_rate * weight_decay)
    weight = weight - learning_rate / (1 - beta1**step) * moment1 / denominator
    return AdamState(weight, moment1, moment2, step)
