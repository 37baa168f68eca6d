"""Training through the official SDK: order, sums, chunks, targets of every form."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from internals import fetch, forward_backward, post
from talking import (
    SAME,
    assert_close,
    datum,
    logprobs_of,
    prompt,
    scores,
    settled,
    since,
    step,
    text,
)
from tinker import ServiceClient, types

ADAM = types.AdamParams(learning_rate=1e-2)
FOX = "the red fox sees"
OWL = "an owl by night"


def test_pipelined_steps_lower_the_loss(trainer: Any) -> None:
    passes = []
    for _ in range(4):
        passes.append(trainer.forward_backward([datum(FOX)], "cross_entropy"))
        last = trainer.optim_step(ADAM)
    last.result()
    losses = [made.result().metrics["loss:sum"] for made in passes]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]


def test_the_loss_is_the_weighted_sum_of_the_logprobs_returned(trainer: Any) -> None:
    weights = np.linspace(-1, 2, len(FOX) - 1)
    output = trainer.forward([datum(FOX, weights)], "cross_entropy").result()
    (logprobs,) = logprobs_of(output)
    assert logprobs.shape == (len(FOX) - 1,)
    np.testing.assert_allclose(output.metrics["loss:sum"], -(weights * logprobs).sum(), rtol=1e-4)


def test_passes_between_two_steps_add_up(service: ServiceClient) -> None:
    apart = settled(service.create_lora_training_client("weft/tiny", rank=4, seed=1))
    together = settled(service.create_lora_training_client("weft/tiny", rank=4, seed=1))
    apart.forward_backward([datum(FOX)], "cross_entropy")
    apart.forward_backward([datum(OWL)], "cross_entropy")
    together.forward_backward([datum(FOX), datum(OWL)], "cross_entropy")
    for trainer in (apart, together):
        trainer.optim_step(ADAM).result()
    assert_close(scores(apart), scores(together))


def test_a_forward_leaves_no_gradient(trainer: Any) -> None:
    before = scores(trainer)
    with pytest.raises(Exception, match="gradient"):
        trainer.optim_step(ADAM).result()
    np.testing.assert_array_equal(scores(trainer), before)


def test_a_call_of_several_posts_is_one_call(trainer: Any) -> None:
    """The SDK cuts at 1024 datums and posts the first part last."""
    words = [FOX[: 2 + index % 5] for index in range(1100)]
    output = trainer.forward_backward([datum(each) for each in words], "cross_entropy")
    trainer.optim_step(ADAM).result()
    logprobs = logprobs_of(output.result())
    assert [len(each) for each in logprobs] == [len(each) - 1 for each in words]
    total = -sum(float(each.sum()) for each in logprobs)
    np.testing.assert_allclose(output.result().metrics["loss:sum"], total, rtol=1e-4)
    expected = dict(zip(words, logprobs, strict=True))
    for each, found in zip(words, logprobs, strict=True):
        assert_close(found, expected[each])


def test_the_pieces_of_a_call_add_up(service: ServiceClient) -> None:
    data = [datum(FOX[: 2 + index % 5]) for index in range(1100)]
    whole = settled(service.create_lora_training_client("weft/tiny", rank=4, seed=1))
    halves = settled(service.create_lora_training_client("weft/tiny", rank=4, seed=1))
    whole.forward_backward(data, "cross_entropy")
    halves.forward_backward(data[:550], "cross_entropy")
    halves.forward_backward(data[550:], "cross_entropy")
    before = scores(whole)
    for trainer in (whole, halves):
        trainer.optim_step(types.AdamParams(learning_rate=1e-2, eps=1.0)).result()
    assert np.abs(scores(whole) - before).max() > 100 * SAME
    assert_close(scores(whole), scores(halves))


def _soft(targets: Any, weights: Any) -> types.Datum:
    return types.Datum(
        model_input=prompt(FOX[:-1]),
        loss_fn_inputs={"target_tokens": targets, "weights": weights},
    )


@pytest.mark.parametrize("is_sparse", [False, True], ids=["dense", "csr"])
def test_several_targets_at_a_position(trainer: Any, is_sparse: bool) -> None:
    hard = np.array(text(FOX)[1:])
    targets = np.stack([hard, np.full_like(hard, 101), np.full_like(hard, 32)], axis=1)
    weights = np.zeros(targets.shape, np.float32)
    weights[0] = [0.5, 0.25, -1.0]
    weights[7, 1] = 2.0
    if is_sparse:
        # A 2-D torch tensor goes as CSR where that is smaller.
        sent = _soft(torch.tensor(targets * (weights != 0)), torch.tensor(weights))
        assert sent.loss_fn_inputs["weights"].sparse_crow_indices is not None
    else:
        sent = _soft(targets, weights)
    output = trainer.forward_backward([sent], "cross_entropy").result()
    alone = [
        logprobs_of(
            trainer.forward([_soft(targets[:, k], weights[:, k])], "cross_entropy").result()
        )
        for k in range(3)
    ]
    loss = -sum(float((weights[:, k] * alone[k][0]).sum()) for k in range(3))
    np.testing.assert_allclose(output.metrics["loss:sum"], loss, rtol=1e-4)


def test_dense_targets_give_a_logprob_each(trainer: Any) -> None:
    hard = np.array(text(FOX)[1:])
    targets = np.stack([hard, np.full_like(hard, 101)], axis=1)
    output = trainer.forward([_soft(targets, np.ones(targets.shape, np.float32))], "cross_entropy")
    (logprobs,) = logprobs_of(output.result())
    assert logprobs.shape == targets.shape
    assert_close(logprobs[:, 0], scores(trainer, FOX))


def test_bodies_may_be_packed(trainer: Any) -> None:
    """With zstd, as the SDK does where a server's client/config asks for it."""
    data = [datum(FOX), datum(OWL)]
    model_id = trainer.get_info().model_id
    plain = forward_backward(trainer.holder, model_id, 1, data)
    packed = forward_backward(trainer.holder, model_id, 2, data, is_packed=True)
    for left, right in zip(logprobs_of(plain), logprobs_of(packed), strict=True):
        assert_close(left, right)


def test_a_number_that_came_early_is_held(trainer: Any) -> None:
    model_id, holder = trainer.get_info().model_id, trainer.holder
    with ThreadPoolExecutor() as pool:
        early = pool.submit(forward_backward, holder, model_id, 2, [datum(OWL)])
        with pytest.raises(TimeoutError):
            early.result(timeout=0.5)
        forward_backward(holder, model_id, 1, [datum(FOX)])
        assert len(logprobs_of(early.result(timeout=60))[0]) == len(OWL) - 1


def test_a_post_that_is_repeated_is_done_once(service: ServiceClient) -> None:
    once = settled(service.create_lora_training_client("weft/tiny", rank=4, seed=1))
    twice = settled(service.create_lora_training_client("weft/tiny", rank=4, seed=1))
    for trainer, times in ((once, 1), (twice, 2)):
        model_id, holder = trainer.get_info().model_id, trainer.holder
        for _ in range(times):
            forward_backward(holder, model_id, 1, [datum(FOX)])
        params = types.AdamParams(learning_rate=1e-2, eps=1.0)
        asked = types.OptimStepRequest(adam_params=params, model_id=model_id, seq_id=2)
        stepped = post(holder, "training", "optim_step", asked)
        fetch(holder, stepped, types.OptimStepResponse, "OptimStep")
    after = [
        forward_backward(each.holder, each.get_info().model_id, 3, [datum(FOX)])
        for each in (once, twice)
    ]
    assert_close(logprobs_of(after[0])[0], logprobs_of(after[1])[0])


def test_a_refused_pass_uses_its_number_up(trainer: Any) -> None:
    """Later calls would wait for it for ever otherwise."""
    wrong = types.Datum(
        model_input=types.ModelInput.from_ints([70_000]),
        loss_fn_inputs={"target_tokens": np.array([1]), "weights": np.ones(1, np.float32)},
    )
    with pytest.raises(Exception, match="70000"):
        trainer.forward_backward([wrong], "cross_entropy").result()
    step(trainer)


def test_results_can_be_read_in_any_order_and_again(trainer: Any) -> None:
    first = trainer.forward_backward([datum(FOX)], "cross_entropy")
    second = trainer.forward_backward([datum(OWL)], "cross_entropy")
    assert len(logprobs_of(second.result())[0]) == len(OWL) - 1
    assert len(logprobs_of(first.result())[0]) == len(FOX) - 1
    assert first.result() is first.result()


@since(0, 36)
def test_calls_can_be_awaited(trainer: Any) -> None:
    import asyncio

    async def loop() -> float:
        passed = trainer.forward_backward([datum(FOX)], "cross_entropy")
        stepped = trainer.optim_step(ADAM)
        loss = (await passed).metrics["loss:sum"]
        return float(loss) + len((await stepped).metrics or {})

    assert asyncio.run(loop()) > 0


def _negative_likelihood(
    data: list[types.Datum], logprobs: list[torch.Tensor]
) -> tuple[torch.Tensor, dict[str, float]]:
    loss = -sum((each.sum() for each in logprobs), start=torch.zeros(()))
    return loss, {"count": float(len(data))}


def test_a_custom_loss_trains_as_its_formula_does(service: ServiceClient) -> None:
    """The SDK differentiates it itself, and sends the gradients as weights."""
    custom = settled(service.create_lora_training_client("weft/tiny", rank=4, seed=1))
    built_in = settled(service.create_lora_training_client("weft/tiny", rank=4, seed=1))
    data = [datum(FOX), datum(OWL)]
    own = custom.forward_backward_custom(data, _negative_likelihood)
    custom.optim_step(ADAM).result()
    usual = built_in.forward_backward(data, "cross_entropy").result()
    built_in.optim_step(ADAM).result()
    metrics = own.result().metrics
    np.testing.assert_allclose(metrics["loss:sum"], usual.metrics["loss:sum"], rtol=1e-4)
    assert metrics["count"] == 2
    assert_close(scores(custom), scores(built_in))
