import dataclasses

import pytest

from weft.client.errors import BadRequest
from weft.engine.worker.memory import MemoryRequest, plan_memory

GB = 10**9
REQUEST = MemoryRequest(
    weights=2 * GB,
    adapter_parameter_bytes=4,
    activation_bytes_per_token=500_000,
    checkpointed_bytes_per_token=50_000,
    workspace=GB // 10,
    page_bytes=1_000_000,
    batch_tokens=2048,
    max_context=4096,
    page_size=16,
)


def test_the_shares_add_up_to_no_more_than_is_free() -> None:
    plan = plan_memory(16 * GB, REQUEST)
    shares = (
        (plan.weights + plan.adapter_state + plan.adapter_weights + plan.activations + plan.kv)
        + plan.adapter_workspace
        + plan.reserve
    )
    assert shares <= 16 * GB
    assert plan.batch_tokens == 2048
    assert plan.recompute_above_tokens >= 2048


def test_adapters_that_are_read_in_place_take_no_workspace_of_a_batch() -> None:
    gathered = plan_memory(16 * GB, REQUEST)
    in_place = plan_memory(16 * GB, dataclasses.replace(REQUEST, gathers_adapters=False))
    assert gathered.adapter_workspace > 0 == in_place.adapter_workspace
    assert in_place.adapter_state > gathered.adapter_state
    assert in_place.activations == gathered.activations


def test_activations_are_recomputed_when_the_batch_would_not_fit() -> None:
    plan = plan_memory(5 * GB, REQUEST)
    assert plan.recompute_above_tokens < 2048
    assert plan.batch_tokens == 2048


def test_the_batch_shrinks_when_even_recomputing_does_not_help() -> None:
    plan = plan_memory(5 * GB, dataclasses.replace(REQUEST, checkpointed_bytes_per_token=10**6))
    assert 1 <= plan.batch_tokens == plan.max_datum_tokens < 2048


def test_pages_hold_at_least_one_full_sequence() -> None:
    assert plan_memory(4 * GB, REQUEST).num_pages >= 4096 // 16


def test_a_model_that_does_not_fit_says_how_much_it_needs() -> None:
    with pytest.raises(BadRequest, match=r"model needs 16\.\d GB and 11\.0 are free") as caught:
        plan_memory(11 * GB, dataclasses.replace(REQUEST, weights=14 * GB + 400_000_000))
    assert caught.value.code == "out_of_memory"
