"""The demo's datums and its preference loss."""

import math

import pytest
import torch

from weft.engine.demo.recipes import DPO_BETA, answer_datum, dpo_loss, sampled_datum
from weft.engine.demo.tasks import Preference

PAIR = Preference(prompt=(1, 2), chosen=(3, 4), rejected=(5,))


def test_only_the_answer_has_weight() -> None:
    datum = answer_datum((1, 2, 3), (4, 5), 0.25)
    assert datum.model_input.to_ints() == [1, 2, 3, 4]
    assert datum.loss_fn_inputs["target_tokens"].tolist() == [2, 3, 4, 5]
    assert datum.loss_fn_inputs["weights"].tolist() == [0, 0, 0.25, 0.25]


def test_only_sampled_tokens_have_an_advantage_and_a_logprob() -> None:
    datum = sampled_datum((1, 2), [7, 8], [-0.5, -1.5], -2.0)
    assert datum.model_input.to_ints() == [1, 2, 7]
    assert datum.loss_fn_inputs["target_tokens"].tolist() == [2, 7, 8]
    assert datum.loss_fn_inputs["logprobs"].tolist() == [0, -0.5, -1.5]
    assert datum.loss_fn_inputs["advantages"].tolist() == [0, -2, -2]


def test_the_preference_loss_starts_at_log_two() -> None:
    logprobs = [torch.tensor([-9.0, -1.0, -2.0]), torch.tensor([-9.0, -4.0])]
    loss, metrics = dpo_loss([PAIR], [(-3.0, -4.0)], logprobs)
    assert loss.item() == pytest.approx(math.log(2))
    assert metrics == {"preferred:mean": 0.0}


def test_the_preference_gradient_raises_the_chosen_answer_only() -> None:
    logprobs = [torch.tensor([-9.0, -1.0, -2.0]), torch.tensor([-9.0, -4.0])]
    for values in logprobs:
        values.requires_grad_()
    loss, _ = dpo_loss([PAIR], [(-3.0, -4.0)], logprobs)
    chosen, rejected = torch.autograd.grad(loss, logprobs)
    half = DPO_BETA / 2
    assert chosen.tolist() == pytest.approx([0, -half, -half])
    assert rejected.tolist() == pytest.approx([0, half])
