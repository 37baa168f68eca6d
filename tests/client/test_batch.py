"""A call is validated as a whole and cut into parts that decode to what was given."""

import numpy as np
import pytest
from fake_broker import CARD

from weft.client.arrays import unpack_arrays
from weft.client.batch import build_parts, check_prompt, pack_prompt
from weft.client.errors import BadRequest
from weft.client.limits import limit
from weft.client.messages import ModelCard
from weft.client.prompt_targets import read_prompt_targets
from weft.client.tensor_data import TensorData
from weft.client.types import Datum, ModelInput

WIDE = ModelCard(name="wide", vocab_size=1 << 20, max_context=1 << 20, max_rank=256)


def floats(values: object) -> np.ndarray:
    return np.asarray(values, np.float32)


def datum(tokens: object = (1, 2, 3), **inputs: object) -> Datum:
    given = {"target_tokens": np.array([2, 3, 4]), **inputs}
    kept = {name: value for name, value in given.items() if value is not None}
    return Datum(ModelInput.from_ints(np.array(tokens)), kept)  # type: ignore[arg-type]


def policy_datum(**inputs: object) -> Datum:
    given = {"logprobs": [-1.0, -2.0, -3.0], "advantages": [1.0, 1.0, 1.0], **inputs}
    return datum(**given)


def decode_all(data: list[Datum], loss_fn: str, card: ModelCard = CARD) -> dict[str, np.ndarray]:
    parts = build_parts(data, loss_fn, card)
    decoded = [unpack_arrays(part.arrays, part.frames) for part in parts]
    return {name: np.concatenate([one[name] for one in decoded]) for name in decoded[0]}


def random_data(generator: np.random.Generator, number: int, longest: int) -> list[Datum]:
    data = []
    for _ in range(number):
        length = int(generator.integers(1, longest))
        tokens = generator.integers(0, 1000, length + 1).astype(np.int32)
        advantages = np.full(length, generator.normal(), np.float32)
        advantages[: int(generator.integers(0, length + 1))] = 0
        inputs = {
            "target_tokens": tokens[1:],
            "advantages": advantages,
            "logprobs": -generator.random(length).astype(np.float32),
        }
        data.append(Datum(ModelInput.from_ints(tokens[:-1]), inputs))
    return data


@pytest.mark.parametrize("seed", range(4))
def test_columns_hold_the_datums_in_order_and_parts_keep_their_limit(seed: int) -> None:
    data = random_data(np.random.default_rng(seed), number=300, longest=4000)
    parts = build_parts(data, "ppo", WIDE)
    columns = decode_all(data, "ppo", WIDE)
    assert len(parts) > 2
    assert max(sum(map(len, part.frames)) for part in parts) <= limit("part_bytes")
    expected = [datum.model_input.to_numpy() for datum in data]
    assert columns["tokens"].tolist() == np.concatenate(expected).tolist()
    assert columns["lengths"].tolist() == [len(tokens) for tokens in expected]
    for name in ("target_tokens", "advantages", "logprobs"):
        arrays = [datum.loss_fn_inputs[name].array for datum in data]
        assert columns[name].tobytes() == np.concatenate(arrays).tobytes()


def test_parts_are_nearly_full() -> None:
    parts = build_parts(
        random_data(np.random.default_rng(0), 500, 2000), "importance_sampling", WIDE
    )
    sizes = [sum(map(len, part.frames)) for part in parts[:-1]]
    assert min(sizes) > 0.95 * limit("part_bytes")


def test_many_tiny_datums_keep_the_limit_of_a_part() -> None:
    seven = [datum([1], target_tokens=[2], weights=[float(i)]) for i in range(7)]
    data = [seven[i * i % 7] for i in range(200_000)]
    parts = build_parts(data, "cross_entropy", CARD)
    assert max(sum(map(len, part.frames)) for part in parts) <= limit("part_bytes")
    assert sum(len(part.lengths) for part in parts) == 200_000


def test_supervised_data_takes_four_bytes_a_token() -> None:
    generator = np.random.default_rng(0)
    data = []
    for _ in range(50):
        tokens = generator.integers(0, 1000, 401)
        weights = np.repeat(floats([0, 1]), [100, 300])
        data.append(
            Datum(
                ModelInput.from_ints(tokens[:-1]),
                {"target_tokens": tokens[1:], "weights": weights},
            )
        )
    (part,) = build_parts(data, "cross_entropy", WIDE)
    assert sum(map(len, part.frames)) / part.num_tokens < 4.1


def test_weights_are_one_when_they_are_missing() -> None:
    columns = decode_all([datum(), datum(weights=[0.0, 0.5, 2.0])], "cross_entropy")
    assert columns["weights"].tolist() == [1, 1, 1, 0, 0.5, 2]


def test_arrays_are_copied() -> None:
    tokens = np.array([1, 2, 3], np.int32)
    (part,) = build_parts([datum(tokens)], "cross_entropy", CARD)
    tokens[:] = 50
    assert unpack_arrays(part.arrays, part.frames)["tokens"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("data", "loss_fn", "message", "code"),
    [
        pytest.param([], "cross_entropy", "no datum", "bad_request", id="no datum"),
        pytest.param([7], "cross_entropy", "datum 0 is a int", "bad_request", id="no Datum"),
        pytest.param(
            [datum(), datum([], target_tokens=[])],
            "cross_entropy",
            "datum 1 is empty",
            "bad_request",
            id="empty",
        ),
        pytest.param([datum()], "dpo", "unknown loss_fn 'dpo'", "bad_request", id="loss"),
        pytest.param(
            [datum(), datum(target_tokens=[1])],
            "cross_entropy",
            r"datum 1: target_tokens has shape \[1\], model_input has 3 tokens",
            "bad_request",
            id="lengths differ",
        ),
        pytest.param(
            [policy_datum(target_tokens=np.zeros((3, 2), np.int64))],
            "ppo",
            r"shape \[3, 2\]",
            "bad_request",
            id="two dimensions",
        ),
        pytest.param(
            [datum(), datum([1, 100, 3])],
            "cross_entropy",
            "datum 1, position 1: token 100 is not in the vocabulary of 100",
            "bad_request",
            id="token too large",
        ),
        pytest.param(
            [datum([1, 2, -1])],
            "cross_entropy",
            "position 2: token -1",
            "bad_request",
            id="negative",
        ),
        pytest.param(
            [datum([1, 2**33, 3])], "cross_entropy", "token 8589934592", "bad_request", id="33 bits"
        ),
        pytest.param(
            [datum(target_tokens=[1, -100, 2])],
            "cross_entropy",
            "target_tokens -100",
            "bad_request",
            id="target",
        ),
        pytest.param(
            [datum(target_tokens=floats([1, 2, 3]))],
            "cross_entropy",
            "holds floats",
            "bad_request",
            id="float targets",
        ),
        pytest.param(
            [datum(weights=[1.0, float("nan"), 1.0])],
            "cross_entropy",
            "datum 0, position 1: weights is nan",
            "non_finite",
            id="nan",
        ),
        pytest.param(
            [policy_datum(), policy_datum(advantages=np.array([1, 1, 1e300]))],
            "ppo",
            "datum 1, position 2: advantages is inf",
            "non_finite",
            id="too large for float32",
        ),
        pytest.param(
            [datum(weights=[1, 1, 1], mask=np.ones(3))],
            "cross_entropy",
            "no input 'mask'",
            "bad_request",
            id="unknown input",
        ),
        pytest.param(
            [policy_datum(), policy_datum(advantages=None)],
            "ppo",
            "datum 1: ppo needs the input 'advantages'",
            "bad_request",
            id="missing input",
        ),
        pytest.param(
            [datum(np.ones(65, np.int32), target_tokens=np.ones(65, np.int32))],
            "cross_entropy",
            "datum 0 has 65 tokens, the context of tiny is 64",
            "too_large",
            id="context",
        ),
    ],
)
def test_a_bad_call_is_refused(data: list[Datum], loss_fn: str, message: str, code: str) -> None:
    with pytest.raises(BadRequest, match=message) as caught:
        build_parts(data, loss_fn, CARD)
    assert caught.value.code == code


def sequence_datum(**inputs: object) -> Datum:
    return policy_datum(**{"sequence_ratio_mask": [0.0, 1.0, 1.0], **inputs})


def test_bounds_of_a_token_replace_those_of_the_call() -> None:
    data = [sequence_datum(), sequence_datum(clip_high_threshold=[2.0, 3.0, 4.0])]
    config = {"clip_low_threshold": 0.5, "clip_high_threshold": 1.5}
    (part,) = build_parts(data, "gspo", CARD, config)
    columns = unpack_arrays(part.arrays, part.frames)
    assert columns["clip_low_threshold"].tolist() == [0.5] * 6
    assert columns["clip_high_threshold"].tolist() == [1.5, 1.5, 1.5, 2.0, 3.0, 4.0]


def test_bounds_that_nobody_gives_take_no_bytes() -> None:
    (part,) = build_parts([sequence_datum()], "gspo", CARD)
    encodings = {array.name: array.encoding for array in part.arrays}
    assert encodings["clip_low_threshold"] == encodings["clip_high_threshold"] == "constant"


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        pytest.param(
            {"sequence_ratio_mask": [0.0, 0.0, 0.0]},
            "datum 1 has an advantage, and its sequence_ratio_mask is 0 everywhere",
            id="no ratio",
        ),
        pytest.param(
            {"clip_high_threshold": [2.0, 0.5, 2.0]},
            "datum 1, position 1: clip_low_threshold 0.9997 and clip_high_threshold 0.5 are not",
            id="crossed",
        ),
        pytest.param(
            {"clip_low_threshold": [0.5, 0.5, -1.0]},
            "position 2: clip_low_threshold -1",
            id="below",
        ),
        pytest.param({"sequence_ratio_mask": None}, "needs the input 'sequence_r", id="missing"),
    ],
)
def test_a_sequence_without_a_ratio_or_with_crossed_bounds_is_refused(
    inputs: dict[str, object], message: str
) -> None:
    with pytest.raises(BadRequest, match=message):
        build_parts([sequence_datum(), sequence_datum(**inputs)], "gspo", CARD)


def test_a_datum_without_advantages_needs_no_ratio() -> None:
    data = [sequence_datum(advantages=[0.0] * 3, sequence_ratio_mask=[0.0] * 3), sequence_datum()]
    assert decode_all(data, "gspo")["sequence_ratio_mask"].tolist() == [0, 0, 0, 0, 1, 1]


def test_extreme_but_finite_inputs_are_accepted() -> None:
    columns = decode_all([policy_datum(logprobs=[-1e4, 0.0, 1e30])], "ppo")
    assert columns["logprobs"].tolist() == floats([-1e4, 0.0, 1e30]).tolist()


def test_a_datum_that_fits_no_part_is_refused_with_its_size() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, 1000, 300_001)
    large = Datum(ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]})
    with pytest.raises(BadRequest, match="datum 0 of 300000 tokens takes 12000") as caught:
        build_parts([large], "cross_entropy", WIDE)
    assert caught.value.code == "too_large"


@pytest.mark.parametrize(
    ("length", "message"),
    [
        pytest.param(0, "empty", id="empty"),
        pytest.param(60, "60 tokens and max_tokens 5 exceed the context of 64", id="long"),
    ],
)
def test_a_prompt_of_a_bad_length_is_refused(length: int, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        check_prompt(length, CARD, room=5)


def test_a_prompt_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(BadRequest, match="position 1: prompt token 100"):
        pack_prompt(np.array([1, 100]), CARD)


def test_targets_that_repeat_take_little_room() -> None:
    targets = read_prompt_targets(TensorData(np.full((49, 1), 7)), 50, CARD.vocab_size)
    arrays, frames = pack_prompt(np.arange(50), CARD, targets)
    assert [array.encoding for array in arrays] == ["raw", "constant", "constant"]
    assert len(frames) == 1
    assert unpack_arrays(arrays, frames)["target_tokens"].tolist() == [7] * 49


def test_a_prompt_and_targets_over_one_part_are_refused() -> None:
    rng = np.random.default_rng(0)
    tokens, cells = rng.integers(0, 10**6, 150_000), rng.integers(0, 10**6, (149_999, 1))
    targets = read_prompt_targets(TensorData(cells), 150_000, WIDE.vocab_size)
    message = "prompt and target_prompt_logprobs of 1199996 bytes, at most 1000000"
    with pytest.raises(BadRequest, match=message) as caught:
        pack_prompt(tokens, WIDE, targets)
    assert caught.value.code == "too_large"


@pytest.mark.parametrize("dtype", ["int32", "int64", "uint16"])
def test_integers_of_any_width_give_the_same_columns(dtype: str) -> None:
    made = datum(np.array([1, 2, 3], dtype), target_tokens=np.array([2, 3, 4], dtype))
    columns = decode_all([made, datum()], "cross_entropy")
    assert columns["tokens"].tolist() == [1, 2, 3, 1, 2, 3]
    assert columns["target_tokens"].dtype == np.int32
