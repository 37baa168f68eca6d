from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from weft.client import wire
from weft.client.arrays import pack_arrays
from weft.client.errors import BadRequest
from weft.client.messages import ForwardBackward, OptimStep, Sample
from weft.client.worker_messages import Dispatch
from weft.engine.worker.assembler import Assembler
from weft.engine.worker.commands import CommandWork, ModelLimits, PassWork, SampleWork

RUN = "0" * 32 + ":train:0"
DISPATCH = Dispatch(dispatch_id=5, lease_epoch=1, lane="local/s")
LIMITS = ModelLimits(vocab_size=100, max_context=32, unit_tokens=8, max_datum_tokens=16)
ARRAYS: dict[str, np.ndarray] = {
    "tokens": np.arange(6, dtype=np.int32),
    "lengths": np.array([4, 2], np.int32),
    "target_tokens": np.arange(1, 7, dtype=np.int32),
    "weights": np.ones(6, np.float32),
}


def call(
    named: Mapping[str, np.ndarray] = ARRAYS, **fields: Any
) -> tuple[ForwardBackward, list[memoryview]]:
    arrays, frames = pack_arrays(named)
    header = ForwardBackward(
        **{
            "request_id": 1,
            "run_id": RUN,
            "seq": 1,
            "digest": b"",
            "part": 0,
            "num_parts": 1,
            "num_datums": 2,
            "num_tokens": 6,
            "loss_fn": "cross_entropy",
            "loss_fn_config": {},
            "forward_only": False,
            "arrays": arrays,
            **fields,
        }
    )
    return replace(header, digest=wire.digest(header, frames)), frames


def sample(tokens: list[int], max_tokens: int = 4) -> tuple[Sample, list[memoryview]]:
    arrays, frames = pack_arrays({"tokens": np.array(tokens, np.int32)})
    header = Sample(
        request_id=1,
        sampler_id="s",
        digest=b"",
        num_tokens=len(tokens),
        num_samples=1,
        max_tokens=max_tokens,
        temperature=1.0,
        top_k=-1,
        top_p=1.0,
        seed=0,
        stop_tokens=[],
        stop_strings=[],
        default_stop=True,
        prompt_logprobs=False,
        arrays=arrays,
    )
    return replace(header, digest=wire.digest(header, frames)), frames


def test_a_call_of_one_part_becomes_work_at_once() -> None:
    work = Assembler(LIMITS).add(DISPATCH, *call())
    assert isinstance(work, PassWork)
    assert work.lengths.tolist() == [4, 2]
    assert work.inputs["weights"].tolist() == [1.0] * 6
    assert [unit.num_tokens for unit in work.units] == [6]


def test_parts_are_joined_in_order_once_all_are_there() -> None:
    assembler = Assembler(LIMITS)
    assert assembler.add(DISPATCH, *call(num_parts=2)) is None
    second = {**ARRAYS, "tokens": np.arange(10, 16, dtype=np.int32)}
    work = assembler.add(DISPATCH, *call(second, num_parts=2, part=1))
    assert isinstance(work, PassWork)
    assert work.tokens.tolist() == [0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]
    assert work.part_outputs == (6, 6)


def test_a_bad_part_refuses_the_whole_call_at_its_end_and_leaves_nothing() -> None:
    assembler = Assembler(LIMITS)
    bad = {**ARRAYS, "tokens": np.full(6, 100, np.int32)}
    assert assembler.add(DISPATCH, *call(bad, num_parts=2)) is None
    with pytest.raises(BadRequest, match="tokens must lie in 0"):
        assembler.add(DISPATCH, *call(num_parts=2, part=1))
    assert isinstance(assembler.add(DISPATCH, *call()), PassWork)


def test_parts_that_differ_in_direction_are_refused() -> None:
    assembler = Assembler(LIMITS)
    assert assembler.add(DISPATCH, *call(num_parts=2)) is None
    with pytest.raises(BadRequest, match="differ in their loss"):
        assembler.add(DISPATCH, *call(num_parts=2, part=1, forward_only=True))


def test_a_changed_payload_is_noticed() -> None:
    header, _ = call()
    _, frames = call({**ARRAYS, "tokens": np.zeros(6, np.int32)})
    with pytest.raises(BadRequest, match="digest") as caught:
        Assembler(LIMITS).add(DISPATCH, header, frames)
    assert caught.value.code == "malformed"


@pytest.mark.parametrize(
    ("named", "fields", "message"),
    [
        pytest.param({"tokens": np.full(6, -1, np.int32)}, {}, "tokens must lie", id="negative id"),
        pytest.param(
            {"target_tokens": np.full(6, 100, np.int32)}, {}, "target_tokens must", id="big target"
        ),
        pytest.param({"lengths": np.array([6, 0], np.int32)}, {}, "empty", id="empty datum"),
        pytest.param({"lengths": np.array([4, 3], np.int32)}, {}, "add up", id="lengths"),
        pytest.param({"weights": np.ones(5, np.float32)}, {}, "weights has 5", id="short weights"),
        pytest.param(
            {"target_tokens": np.arange(5, dtype=np.int32)}, {}, "tokens has 5", id="short targets"
        ),
        pytest.param(
            {"target_tokens": np.ones(6, np.float32)},
            {},
            "one-dimensional int32",
            id="float targets",
        ),
        pytest.param(
            {"weights": np.ones(6, np.int32)}, {}, "one-dimensional float32", id="int weights"
        ),
        pytest.param(
            {"weights": np.ones((6, 1), np.float32)}, {}, "one-dimensional", id="flat weights"
        ),
        pytest.param(
            {"weights": np.full(6, np.nan, np.float32)}, {}, "not finite", id="nan weights"
        ),
        pytest.param({"rewards": np.ones(6, np.float32)}, {}, "rewards", id="unknown input"),
        pytest.param({}, {"loss_fn": "mse"}, "unknown loss_fn 'mse'", id="unknown loss"),
        pytest.param({}, {"loss_fn_config": {"x": 1.0}}, "no option 'x'", id="unknown option"),
        pytest.param({}, {"num_tokens": 7}, "declared counts", id="declared tokens"),
        pytest.param({}, {"part": 1}, "do not number", id="part number"),
    ],
)
def test_a_bad_call_is_refused_by_name(
    named: dict[str, np.ndarray], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        Assembler(LIMITS).add(DISPATCH, *call({**ARRAYS, **named}, **fields))


SEQUENCE: dict[str, np.ndarray] = {
    **{name: ARRAYS[name] for name in ("tokens", "lengths", "target_tokens")},
    "logprobs": np.full(6, -1, np.float32),
    "advantages": np.ones(6, np.float32),
    "sequence_ratio_mask": np.ones(6, np.float32),
    "clip_low_threshold": np.full(6, 0.9, np.float32),
    "clip_high_threshold": np.full(6, 1.1, np.float32),
}


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"sequence_ratio_mask": np.eye(6, dtype=np.float32)[0]}, "datum 1 has an advantage"),
        ({"clip_low_threshold": np.full(6, 1.2, np.float32)}, "datum 0, position 0: clip_low"),
    ],
)
def test_what_gspo_asks_is_asked_by_the_worker_too(
    named: dict[str, np.ndarray], message: str
) -> None:
    assert isinstance(Assembler(LIMITS).add(DISPATCH, *call(SEQUENCE, loss_fn="gspo")), PassWork)
    with pytest.raises(BadRequest, match=message):
        Assembler(LIMITS).add(DISPATCH, *call({**SEQUENCE, **named}, loss_fn="gspo"))


def test_an_input_that_the_client_should_have_filled_in_is_missed() -> None:
    named = {name: column for name, column in SEQUENCE.items() if name != "clip_low_threshold"}
    with pytest.raises(BadRequest, match="gspo lacks the input 'clip_low_threshold'"):
        Assembler(LIMITS).add(DISPATCH, *call(named, loss_fn="gspo"))


SOFT: dict[str, np.ndarray] = {
    "tokens": np.arange(3, dtype=np.int32),
    "lengths": np.array([2, 1], np.int32),
    "target_counts": np.array([2, 0, 1], np.int32),
    "target_tokens": np.array([5, 6, 7], np.int32),
    "weights": np.array([0.5, 0.25, 2.0], np.float32),
}


def soft_call(
    changes: Mapping[str, np.ndarray] | None = None, **fields: Any
) -> tuple[ForwardBackward, list[memoryview]]:
    return call({**SOFT, **(changes or {})}, **{"num_tokens": 3, **fields})


def test_tokens_may_have_any_number_of_targets() -> None:
    work = Assembler(LIMITS).add(DISPATCH, *soft_call())
    assert isinstance(work, PassWork)
    assert work.part_outputs == (3,)
    assert work.targets.tolist() == [0, 0, 7]
    assert work.inputs["weights"].tolist() == [0, 0, 2]
    assert work.soft is not None
    assert work.soft.targets.tolist() == [5, 6]
    assert work.outputs(slice(0, 2)) == slice(0, 2)
    assert work.outputs(slice(2, 3)) == slice(2, 3)


def test_further_targets_of_a_datum_may_come_in_a_part_of_their_own() -> None:
    assembler = Assembler(LIMITS)
    first = {"target_tokens": SOFT["target_tokens"][:1], "weights": SOFT["weights"][:1]}
    assert assembler.add(DISPATCH, *soft_call(first, num_parts=2)) is None
    rest = {name: column[1:] for name, column in SOFT.items() if name in first}
    rest |= {name: SOFT[name][:0] for name in ("tokens", "lengths", "target_counts")}
    more = soft_call(rest, num_parts=2, part=1, num_tokens=0, num_datums=0)
    work = assembler.add(DISPATCH, *more)
    assert isinstance(work, PassWork)
    assert work.part_outputs == (1, 2)
    assert work.soft is not None
    assert work.soft.weights.tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("changes", "fields", "message"),
    [
        pytest.param(
            {"target_counts": np.array([2, 1, 1], np.int32)}, {}, "tokens has 3 elements", id="few"
        ),
        pytest.param(
            {"target_counts": np.array([3, -1, 1], np.int32)}, {}, "lie in 0 .. 1024", id="negative"
        ),
        pytest.param(
            {"target_counts": np.array([2, 0, 1025], np.int32)}, {}, "not 0 .. 1025", id="wide"
        ),
        pytest.param(
            {"target_counts": np.array([2, 1], np.int32)}, {}, "not one int32 for each", id="short"
        ),
        pytest.param(
            {"target_counts": np.array([2, 0, 1], np.float32)}, {}, "not one int32", id="floats"
        ),
        pytest.param({"weights": np.ones(3, np.float32)[:2]}, {}, "weights has 2", id="weights"),
        pytest.param(
            {"target_tokens": np.array([5, 6, 100], np.int32)}, {}, "lie in 0 .. 99", id="token"
        ),
        pytest.param(
            {"weights": np.array([1, np.inf, 1], np.float32)}, {}, "not finite", id="infinite"
        ),
        pytest.param(
            {name: column[:0] for name, column in SOFT.items()},
            {"num_tokens": 0, "num_datums": 0},
            "a datum is empty",
            id="nothing",
        ),
    ],
)
def test_bad_targets_are_refused_by_name(
    changes: dict[str, np.ndarray], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        Assembler(LIMITS).add(DISPATCH, *soft_call(changes, **fields))


def test_a_part_whose_answer_would_be_too_large_is_refused() -> None:
    many = {
        "target_counts": np.full(3, 1000, np.int32),
        "target_tokens": np.ones(250_001, np.int32),
        "weights": np.ones(250_001, np.float32),
    }
    with pytest.raises(BadRequest, match="250001 targets, at most 250000") as caught:
        Assembler(LIMITS).add(DISPATCH, *soft_call(many))
    assert caught.value.code == "too_large"


def test_losses_other_than_cross_entropy_take_one_target() -> None:
    named = {**SEQUENCE, "target_counts": np.ones(6, np.int32)}
    with pytest.raises(BadRequest, match="gspo takes no input 'target_counts'"):
        Assembler(LIMITS).add(DISPATCH, *call(named, loss_fn="gspo"))


def test_a_datum_over_the_budget_is_refused_with_the_number() -> None:
    long = {
        "tokens": np.zeros(17, np.int32),
        "lengths": np.array([17], np.int32),
        "target_tokens": np.zeros(17, np.int32),
        "weights": np.ones(17, np.float32),
    }
    with pytest.raises(BadRequest, match="17 tokens, at most 16") as caught:
        Assembler(LIMITS).add(DISPATCH, *call(long, num_datums=1, num_tokens=17))
    assert caught.value.code == "too_large"


def test_a_prompt_over_the_context_is_refused_with_the_numbers() -> None:
    with pytest.raises(BadRequest, match="20 \\+ 20 > 32"):
        Assembler(LIMITS).add(DISPATCH, *sample([1] * 20, max_tokens=20))
    assert isinstance(Assembler(LIMITS).add(DISPATCH, *sample([1] * 20)), SampleWork)


def test_other_commands_pass_through() -> None:
    header = OptimStep(
        request_id=1,
        run_id=RUN,
        seq=2,
        digest=b"",
        learning_rate=1e-4,
        beta1=0.9,
        beta2=0.95,
        eps=1e-12,
        weight_decay=0.0,
        grad_clip_norm=0.0,
    )
    header = replace(header, digest=wire.digest(header, []))
    assert isinstance(Assembler(LIMITS).add(DISPATCH, header, []), CommandWork)
