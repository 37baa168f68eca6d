"""Generation end to end on a small random model, against transformers, and its failures."""

from typing import Any

import numpy as np
import pytest
import torch
from lora_helpers import CountOps
from sampling_helpers import (
    Bench,
    V,
    Watched,
    drain,
    hf_greedy,
    hf_logits,
    prompt_of,
    request,
    run,
    sequences,
    tokens_of,
)
from torch import Tensor

from weft.client.errors import BadRequest
from weft.engine.adapters.head import Head
from weft.engine.adapters.lora import LoraLinears
from weft.engine.adapters.losses import LossBatch
from weft.engine.adapters.store import WeightsVersion
from weft.engine.model.attention import PackedAttention
from weft.engine.sampling.requests import (
    SampleDone,
    SampleRequest,
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.random(tmp_path_factory.mktemp("model"), vocab_size=V, max_context=128)


@pytest.fixture(scope="module")
def versions(bench: Bench) -> list[WeightsVersion | None]:
    """Base model and adapters of different ranks and targets."""
    return [
        None,
        bench.adapter(4, 1),
        bench.adapter(16, 2, mlp=False, unembed=False),
        bench.adapter(7, 3, attn=False),
    ]


# --- numbers


def test_greedy_equals_transformers_with_and_without_adapters(
    bench: Bench, versions: list[WeightsVersion | None]
) -> None:
    requests = [
        request(
            (number, length), prompt_of(length), max_tokens=20, temperature=0.0, version=version
        )
        for number, version in enumerate(versions)
        for length in (1, 5, 16, 33)
    ]
    outcomes = run(bench.generator(), *requests)
    for each in requests:
        expected = hf_greedy(bench.merged(each.version), each.tokens.tolist(), 20)
        assert tokens_of(outcomes[each.key]) == [expected]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_full_recomputation(
    bench: Bench, versions: list[WeightsVersion | None], temperature: float
) -> None:
    requests = [
        request(number, prompt_of(9), num_samples=2, temperature=temperature, version=version)
        for number, version in enumerate(versions)
    ]
    outcomes = run(bench.generator(), *requests)
    for each in requests:
        hf = bench.merged(each.version)
        for sequence in sequences(outcomes[each.key]):
            logits = hf_logits(hf, [*each.tokens.tolist(), *sequence.tokens.tolist()])[8:-1]
            logprobs = (logits / temperature).log_softmax(-1).numpy()
            expected = logprobs[np.arange(8), sequence.tokens]
            # float32 in another order of summation
            np.testing.assert_allclose(sequence.logprobs, expected, atol=1e-5)


def trainer_logprobs(
    bench: Bench, requests: list[SampleRequest], answers: list[list[int]]
) -> Tensor:
    """The logprobs of the sampled tokens as a training forward pass over one batch finds them."""
    whole = [[*each.tokens.tolist(), *new] for each, new in zip(requests, answers, strict=True)]
    counts = [len(tokens) - 1 for tokens in whole]
    linears = LoraLinears(
        bench.store, [each.version for each in requests], [None] * len(requests), counts
    )
    losses = LossBatch.build(
        loss_fns=["cross_entropy"] * len(requests),
        configs=[{}] * len(requests),
        row_counts=np.array(counts),
        targets=np.concatenate([tokens[1:] for tokens in whole]),
        inputs={"weights": np.ones(sum(counts), np.float32)},
        device="cpu",
    )
    with torch.no_grad():
        hidden_TD = bench.model.forward(
            torch.tensor([token for tokens in whole for token in tokens[:-1]]),
            torch.cat([torch.arange(count) for count in counts]),
            PackedAttention(np.cumsum([0, *counts])),
            linears,
        )
        head = Head(bench.model.head, len(bench.model.sites) - 1)
        result = head.forward(hidden_TD, losses, linears)
    rows = zip(torch.split(result.logprobs_T, counts), answers, strict=True)
    return torch.cat([logprobs[-len(new) :] for logprobs, new in rows])


def test_logprobs_are_those_of_the_trainer(
    bench: Bench, versions: list[WeightsVersion | None]
) -> None:
    requests = [
        request(number, prompt_of(5 + 9 * number), max_tokens=20, version=version)
        for number, version in enumerate(versions)
    ]
    outcomes = run(bench.generator(), *requests)
    answers = [tokens_of(outcomes[each.key])[0] for each in requests]
    expected = trainer_logprobs(bench, requests, answers)
    found = np.concatenate([sequences(outcomes[each.key])[0].logprobs for each in requests])
    # float32 in another order of summation
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_prompt_logprobs_are_at_temperature_one(
    bench: Bench, versions: list[WeightsVersion | None]
) -> None:
    requests = [
        request(
            (number, length),
            prompt_of(length),
            max_tokens=1,
            temperature=0.3,
            prompt_logprobs=True,
            version=version,
        )
        for number, version in enumerate(versions)
        for length in (1, 2, 70)
    ]
    outcomes = run(bench.generator(), *requests, request("without", prompt_of(5)))
    for each in requests:
        outcome = outcomes[each.key]
        assert isinstance(outcome, SampleDone)
        prompt = each.tokens.tolist()
        logprobs = hf_logits(bench.merged(each.version), prompt).log_softmax(-1).numpy()
        expected = logprobs[np.arange(len(prompt) - 1), prompt[1:]]
        assert np.isnan(outcome.prompt_arrays["prompt_logprobs"][0])
        np.testing.assert_allclose(
            outcome.prompt_arrays["prompt_logprobs"][1:], expected, atol=1e-5
        )
    assert "prompt_logprobs" not in outcomes["without"].arrays()  # type: ignore[union-attr]


def test_tokens_do_not_depend_on_the_neighbours(
    bench: Bench, versions: list[WeightsVersion | None]
) -> None:
    requests = [
        request(
            number,
            prompt_of(3 + 5 * number),
            num_samples=3,
            max_tokens=12,
            seed=number,
            top_k=(-1, 20)[number % 2],
            top_p=(1.0, 0.9)[number // 2 % 2],
            version=versions[number % 4],
        )
        for number in range(8)
    ]
    together = run(bench.generator(max_sequences=7, step_tokens=40), *requests)
    for each in requests:
        alone = run(bench.generator(), each)
        assert tokens_of(alone[each.key]) == tokens_of(together[each.key])


def test_deterministic_mode_gives_the_bits_of_a_request_alone(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    bench = Bench.random(tmp_path_factory.mktemp("tiled"), vocab_size=V, row_tile=16)
    versions = [None, bench.adapter(4, 1), bench.adapter(16, 2)]
    requests = [
        request(number, prompt_of(5 + number), version=version, prompt_logprobs=True)
        for number, version in enumerate(versions)
    ]
    together = run(bench.generator(is_deterministic=True), *requests)
    for each in requests:
        (alone,) = run(bench.generator(is_deterministic=True), each).values()
        assert isinstance(alone, SampleDone)
        expected = together[each.key].arrays()  # type: ignore[union-attr]
        for name, values in alone.arrays().items():
            np.testing.assert_array_equal(values, expected[name])


def test_samples_differ_and_repeat_by_seed(bench: Bench) -> None:
    def draw(seed: int) -> list[list[int]]:
        return tokens_of(
            run(bench.generator(), request("a", prompt_of(5), num_samples=8, seed=seed))["a"]
        )

    first = draw(3)
    assert len({tuple(tokens) for tokens in first}) == 8
    assert draw(3) == first
    assert draw(4) != first


def test_a_sample_depends_on_its_index_and_not_on_how_many_there_are(bench: Bench) -> None:
    few = run(bench.generator(), request("a", prompt_of(5), num_samples=2))["a"]
    many = run(bench.generator(), request("a", prompt_of(5), num_samples=5))["a"]
    assert tokens_of(many)[:2] == tokens_of(few)


def test_bfloat16_samples_within_its_rounding(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    half = Bench.random(tmp_path_factory.mktemp("half"), vocab_size=V, run_dtype=torch.bfloat16)
    requests = [
        request(number, prompt_of(9), num_samples=2, version=version, prompt_logprobs=True)
        for number, version in enumerate((None, half.adapter(4, 1)))
    ]
    outcomes = run(half.generator(), *requests)
    for each in requests:
        hf = half.merged(each.version)
        for sequence in sequences(outcomes[each.key]):
            logits = hf_logits(hf, [*each.tokens.tolist(), *sequence.tokens.tolist()])[8:-1]
            expected = logits.log_softmax(-1).numpy()[np.arange(8), sequence.tokens]
            # 8 bits of mantissa through two layers
            np.testing.assert_allclose(sequence.logprobs, expected, atol=0.1)


# --- ends


def test_a_stop_token_ends_a_sample_and_belongs_to_it(bench: Bench) -> None:
    prompt = prompt_of(6)
    (free,) = tokens_of(run(bench.generator(), request("a", prompt, temperature=0.0))["a"])
    stop = free[4]
    stopped = run(
        bench.generator(),
        request("a", prompt, temperature=0.0, stop_tokens=frozenset({stop})),
    )["a"]
    (sequence,) = sequences(stopped)
    assert sequence.tokens.tolist() == free[: free.index(stop) + 1]
    assert sequence.stop_reason == "stop"


def test_a_stop_string_ends_a_sample(bench: Bench) -> None:
    def decode(tokens: list[int]) -> str:
        return "".join(f"<{token}>" for token in tokens)

    prompt = prompt_of(6)
    (free,) = tokens_of(run(bench.generator(), request("a", prompt, temperature=0.0))["a"])
    string = f"{free[2]}><{free[3]}"
    stopped = run(
        bench.generator(decode=decode),
        request("a", prompt, temperature=0.0, stop_strings=(string,)),
    )["a"]
    (sequence,) = sequences(stopped)
    assert (sequence.tokens.tolist(), sequence.stop_reason) == (free[:4], "stop")


def test_max_tokens_and_the_context_end_samples(bench: Bench) -> None:
    outcomes = run(
        bench.generator(),
        request("short", prompt_of(5), max_tokens=3),
        request("one", prompt_of(5), max_tokens=1, num_samples=3),
        request("context", prompt_of(100), max_tokens=-1),
    )
    for key, lengths in (("short", [3]), ("one", [1, 1, 1]), ("context", [28])):
        found = sequences(outcomes[key])
        assert [len(sequence.tokens) for sequence in found] == lengths
        assert {sequence.stop_reason for sequence in found} == {"length"}


def test_an_answer_has_the_arrays_of_the_wire(bench: Bench) -> None:
    stop = frozenset(range(0, V, 2))
    outcome = run(bench.generator(), request("a", prompt_of(5), num_samples=4, stop_tokens=stop))[
        "a"
    ]
    assert isinstance(outcome, SampleDone)
    arrays = outcome.arrays()
    assert arrays["tokens"].dtype == arrays["lengths"].dtype == np.int32
    assert arrays["logprobs"].dtype == np.float32
    assert arrays["lengths"].sum() == len(arrays["tokens"]) == outcome.num_new_tokens
    assert len(outcome.result()["stop_reasons"]) == 4


# --- sharing and limits


def test_operations_of_a_decode_step_do_not_grow_with_sequences_and_adapters(bench: Bench) -> None:
    versions = [bench.adapter(16, seed) for seed in range(8)]
    counts = []
    for num_adapters, per_adapter in ((2, 1), (2, 8), (8, 1), (8, 4)):
        generator = bench.generator()
        for number in range(num_adapters * per_adapter):
            version = versions[number % num_adapters]
            generator.submit(request(number, prompt_of(9), max_tokens=9, version=version))
        generator.step()
        generator.step()
        with CountOps() as counting:
            generator.step()
        counts.append(sum(counting.counts.values()))
        drain(generator)
    assert len(set(counts)) == 1, counts
    for version in versions:
        bench.store.release(version)


def test_samples_without_a_limit_fill_a_small_cache(bench: Bench) -> None:
    generator = bench.generator(num_pages=10)
    outcomes = run(generator, request("a", prompt_of(30), num_samples=2, max_tokens=-1))
    assert [len(tokens) for tokens in tokens_of(outcomes["a"])] == [6, 6]


def test_samples_of_a_prompt_share_one_prefill(bench: Bench) -> None:
    model = Watched(bench)
    run(bench.generator(model=model), request("a", prompt_of(30), num_samples=6, max_tokens=4))
    assert model.rows == [30, 6, 6, 6]


def test_samples_of_a_prompt_share_its_full_pages(bench: Bench) -> None:
    generator = bench.generator()
    generator.submit(request("a", prompt_of(30), num_samples=6, max_tokens=4))
    generator.step()
    # 7 full pages once, and the last two tokens of the prompt in a page of each sample's own
    assert generator._pages.pool.num_pages - generator._pages.pool.num_free == 7 + 6
    drain(generator)


def test_more_samples_than_fit_run_one_after_the_other(bench: Bench) -> None:
    few = bench.generator(num_pages=14, max_sequences=3)
    many = bench.generator()
    each = request("a", prompt_of(30), num_samples=10, max_tokens=9)
    assert tokens_of(run(few, each)["a"]) == tokens_of(run(many, each)["a"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": np.empty(0, np.int64)}, "the prompt is empty"),
        ({"tokens": np.array([3, V])}, f"token {V} is outside 0 .. {V - 1}"),
        ({"tokens": np.array([3, -1])}, "token -1 is outside"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 124}, "5 \\+ 124 tokens, the context holds 128"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 1e-9}, "temperature is 1e-09"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"stop_strings": ("",)}, "a stop string is empty"),
        ({"stop_strings": ("x",)}, "stop strings need a tokenizer"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    bench: Bench, fields: dict[str, Any], message: str
) -> None:
    generator = bench.generator()
    values: dict[str, Any] = {"key": "a", "tokens": np.arange(5), "num_samples": 1, "seed": 0}
    values |= {"max_tokens": 8, "temperature": 1.0}
    with pytest.raises(BadRequest, match=message):
        generator.submit(SampleRequest(**(values | fields)))
    assert not generator.has_work


def test_a_request_larger_than_the_cache_is_refused(bench: Bench) -> None:
    generator = bench.generator(num_pages=10)
    with pytest.raises(BadRequest, match="the context holds 40"):
        generator.submit(request("a", prompt_of(30), max_tokens=11))


# --- counters


def test_prompts_and_draws_are_counted_and_whose_they_were(bench: Bench) -> None:
    generator = bench.generator(num_pages=12)
    generator.submit(request("a", prompt_of(9), num_samples=2, max_tokens=4))
    generator.submit(request("later", prompt_of(30), max_tokens=4))  # there are no pages for it yet
    generator.step()
    assert generator.take_stepped() == {"a"}
    assert generator.take_stepped() == set()
    assert 0 < generator.memory["kv_pages"][0] <= generator.memory["kv_pages"][1] == 12
    outcomes = drain(generator)
    drawn = sum(len(tokens) for each in outcomes.values() for tokens in tokens_of(each))
    assert (generator.num_prefilled, generator.num_decoded) == (39, drawn)
    assert generator.take_stepped() == {"a", "later"}
    assert generator.memory["kv_pages"] == (0, 12)
    assert generator.num_failed_steps == 0


def test_a_step_that_fails_counts_no_token(bench: Bench) -> None:
    watched = Watched(bench)
    watched.poison = 7
    generator = bench.generator(model=watched)
    outcomes = run(generator, request("bad", [7], max_tokens=1), request("good", [3], max_tokens=1))
    assert isinstance(outcomes["good"], SampleDone)
    assert (generator.num_prefilled, generator.num_decoded) == (1, 1)
    assert generator.num_failed_steps == 2  # together, then the bad one alone
