"""Rule 2: the loss is a sum over tokens, however it is cut into calls."""

import numpy as np
import pytest
from tenants import grad_norm, logprobs, make_data

from weft.client import ServiceClient

# float32 sums of some hundred terms in another order.
ROUNDING = 1e-5


def test_many_calls_equal_one_call_with_all_the_make_data(
    service: ServiceClient, model_path: str
) -> None:
    one, many = (service.create_lora_training_client(model_path, rank=7, seed=3) for _ in range(2))
    whole = one.forward_backward(
        make_data(1) + make_data(2) + make_data(3), "cross_entropy"
    ).result(60)
    parts = [many.forward_backward(make_data(seed), "cross_entropy") for seed in (1, 2, 3)]
    losses = [part.result(60).metrics["loss:sum"] for part in parts]
    assert sum(losses) == pytest.approx(whole.metrics["loss:sum"], rel=ROUNDING)
    assert grad_norm(many) == pytest.approx(grad_norm(one), rel=ROUNDING)
    np.testing.assert_allclose(logprobs(many), logprobs(one), rtol=0, atol=1e-4)


def test_many_calls_equal_one_call_to_the_bit_where_the_units_are_the_same(
    exact_service: ServiceClient, model_path: str
) -> None:
    one, many = (
        exact_service.create_lora_training_client(model_path, rank=7, seed=3) for _ in range(2)
    )
    sizes = (40, 24)  # exactly one unit of 64 tokens
    one.forward_backward(
        make_data(1, sizes) + make_data(2, sizes) + make_data(3, sizes), "cross_entropy"
    ).result()
    for seed in (1, 2, 3):
        many.forward_backward(make_data(seed, sizes), "cross_entropy").result(60)
    assert grad_norm(many) == grad_norm(one)
    np.testing.assert_array_equal(logprobs(many), logprobs(one))


def test_a_datum_of_zero_weight_changes_nothing(
    exact_service: ServiceClient, model_path: str
) -> None:
    plain, padded = (
        exact_service.create_lora_training_client(model_path, rank=7, seed=3) for _ in range(2)
    )
    sizes = (40, 24)
    zero = make_data(5, sizes, weight=0.0)
    first = plain.forward_backward(make_data(1, sizes), "cross_entropy").result(60)
    second = padded.forward_backward(make_data(1, sizes) + zero, "cross_entropy").result(60)
    assert second.metrics["loss:sum"] == first.metrics["loss:sum"]
    assert grad_norm(padded) == grad_norm(plain)
    np.testing.assert_array_equal(logprobs(padded), logprobs(plain))
