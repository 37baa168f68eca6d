"""Generation end to end on a small random model, against transformers, and its failures."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sampling_helpers import Bench, hf_greedy, hf_logits
from torch import Tensor

from weft.client.errors import BadRequest
from weft.engine.adapters import WeightsVersion
from weft.engine.attention import PackedAttention
from weft.engine.generate import (
    Generator,
    SampleDone,
    SampledSequence,
    SampleFailed,
    SampleRequest,
)
from weft.engine.head import Head
from weft.engine.lora import LoraLinears
from weft.engine.losses import LossBatch

V = 97


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


def prompt_of(length: int, seed: int = 0) -> list[int]:
    tokens: list[int] = np.random.default_rng([seed, length]).integers(0, V, length).tolist()
    return tokens


def request(key: object, prompt: Sequence[int], **fields: Any) -> SampleRequest:
    values: dict[str, Any] = {"num_samples": 1, "max_tokens": 8, "temperature": 1.0, "seed": 0}
    return SampleRequest(key=key, tokens=np.array(prompt), **(values | fields))


def run(generator: Generator, *requests: SampleRequest) -> dict[Any, SampleDone | SampleFailed]:
    """Submit all, step until nothing is left; pages are checked after every step."""
    for each in requests:
        generator.submit(each)
    return drain(generator)


def drain(generator: Generator) -> dict[Any, SampleDone | SampleFailed]:
    outcomes: dict[Any, SampleDone | SampleFailed] = {}
    for _ in range(2000):
        if not generator.has_work:
            break
        for outcome in generator.step():
            assert outcome.key not in outcomes
            outcomes[outcome.key] = outcome
        generator.check_integrity()
    assert not generator.has_work
    assert generator._pool.num_free == generator._pool.num_pages
    assert generator._admission.num_reserved == 0
    return outcomes


def sequences(outcome: SampleDone | SampleFailed) -> tuple[SampledSequence, ...]:
    assert isinstance(outcome, SampleDone), outcome
    return outcome.sequences


def tokens_of(outcome: SampleDone | SampleFailed) -> list[list[int]]:
    return [sequence.tokens.tolist() for sequence in sequences(outcome)]


class Watched:
    """The model with a look at every forward pass, which may raise."""

    def __init__(self, bench: Bench) -> None:
        self.config, self.sites, self.head = (
            bench.model.config,
            bench.model.sites,
            bench.model.head,
        )
        self._model = bench.model
        self.rows: list[int] = []
        self.max_rows = 10**9
        self.poison = -1

    def forward(self, tokens_T: Tensor, *args: Any) -> Tensor:
        self.rows.append(len(tokens_T))
        if len(tokens_T) > self.max_rows:
            raise torch.OutOfMemoryError("out of memory")
        hidden_TD = self._model.forward(tokens_T, *args)
        if (tokens_T == self.poison).any():
            raise RuntimeError("a kernel failed")
        return hidden_TD


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
        logprobs_T, _ = Head(bench.model.head, len(bench.model.sites) - 1).forward(
            hidden_TD, losses, linears
        )
    rows = zip(torch.split(logprobs_T, counts), answers, strict=True)
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
        assert outcome.prompt_logprobs is not None
        prompt = each.tokens.tolist()
        logprobs = hf_logits(bench.merged(each.version), prompt).log_softmax(-1).numpy()
        expected = logprobs[np.arange(len(prompt) - 1), prompt[1:]]
        assert np.isnan(outcome.prompt_logprobs[0])
        np.testing.assert_allclose(outcome.prompt_logprobs[1:], expected, atol=1e-5)
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


def test_samples_of_a_prompt_share_one_prefill(bench: Bench) -> None:
    model = Watched(bench)
    run(bench.generator(model=model), request("a", prompt_of(30), num_samples=6, max_tokens=4))
    assert model.rows == [30, 6, 6, 6]


def test_samples_of_a_prompt_share_its_full_pages(bench: Bench) -> None:
    generator = bench.generator()
    generator.submit(request("a", prompt_of(30), num_samples=6, max_tokens=4))
    generator.step()
    # 7 full pages once, and the last two tokens of the prompt in a page of each sample's own
    assert generator._pool.num_pages - generator._pool.num_free == 7 + 6
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


# --- failures


def test_a_version_lives_as_long_as_its_requests(bench: Bench) -> None:
    version = bench.adapter(4, 9)
    generator = bench.generator()
    generator.submit(request("a", prompt_of(5), max_tokens=3, version=version))
    generator.submit(request("b", prompt_of(5), max_tokens=9, version=version))
    assert version.references == 3
    generator.cancel("b")
    assert version.references == 2
    drain(generator)
    assert version.references == 1


def test_cancelled_requests_leave_nothing(bench: Bench) -> None:
    generator = bench.generator(max_sequences=4)
    for key in range(4):
        generator.submit(request(key, prompt_of(10), num_samples=2))
    generator.step()
    generator.step()
    assert [generator.cancel(key) for key in (0, 3, 3, 7)] == [True, True, False, False]
    generator.check_integrity()
    assert sorted(drain(generator)) == [1, 2]


def test_a_request_that_makes_a_step_fail_fails_alone(bench: Bench) -> None:
    model = Watched(bench)
    requests = [request(key, prompt_of(4 + key), num_samples=2, max_tokens=6) for key in range(6)]
    expected = run(bench.generator(), *requests)
    model.poison = 96
    guilty = request("guilty", [1, 96, 2])
    outcomes = run(bench.generator(model=model), *requests[:3], guilty, *requests[3:])
    assert outcomes.pop("guilty") == SampleFailed(
        "guilty", "internal", "a step failed: RuntimeError: a kernel failed"
    )
    innocent = [each for each in requests if 96 not in [*each.tokens, *_all(expected[each.key])]]
    assert len(innocent) >= 3
    for each in innocent:
        assert tokens_of(outcomes[each.key]) == tokens_of(expected[each.key])


def _all(outcome: SampleDone | SampleFailed) -> list[int]:
    return [token for tokens in tokens_of(outcome) for token in tokens]


def test_a_step_too_large_for_memory_is_computed_in_parts(bench: Bench) -> None:
    model = Watched(bench)
    model.max_rows = 12
    requests = [request(key, prompt_of(10), num_samples=5, seed=key) for key in range(4)]
    outcomes = run(bench.generator(model=model), *requests)
    expected = run(bench.generator(), *requests)
    for each in requests:
        assert tokens_of(outcomes[each.key]) == tokens_of(expected[each.key])


def test_a_request_too_large_for_memory_even_alone_says_so(bench: Bench) -> None:
    model = Watched(bench)
    model.max_rows = 12
    outcomes = run(
        bench.generator(model=model),
        request("large", prompt_of(13)),
        request("small", prompt_of(12)),
    )
    large = outcomes["large"]
    assert isinstance(large, SampleFailed)
    assert large.code == "out_of_memory"
    assert isinstance(outcomes["small"], SampleDone)


def test_weights_that_are_not_finite_fail_their_own_requests(
    bench: Bench, versions: list[WeightsVersion | None]
) -> None:
    broken = bench.adapter(4, 9)
    bench.store.version_flat(broken)[5] = torch.nan
    requests = [request(key, prompt_of(6), version=version) for key, version in enumerate(versions)]
    expected = run(bench.generator(), *requests)
    outcomes = run(
        bench.generator(),
        *requests[:2],
        request("bad", prompt_of(6), version=broken),
        *requests[2:],
    )
    bad = outcomes["bad"]
    assert isinstance(bad, SampleFailed)
    assert bad.code == "non_finite"
    for each in requests:
        assert tokens_of(outcomes[each.key]) == tokens_of(expected[each.key])
    bench.store.release(broken)


def test_a_tokenizer_that_raises_fails_its_own_request(bench: Bench) -> None:
    def decode(tokens: list[int]) -> str:
        raise KeyError(tokens[0])

    outcomes = run(
        bench.generator(decode=decode),
        request("a", prompt_of(6), num_samples=2, stop_strings=("x",)),
        request("b", prompt_of(6)),
    )
    assert isinstance(outcomes["a"], SampleFailed)
    assert isinstance(outcomes["b"], SampleDone)


@pytest.mark.parametrize("seed", range(4))
def test_random_histories_leave_no_page_and_no_version_behind(
    bench: Bench, versions: list[WeightsVersion | None], seed: int
) -> None:
    rng = random.Random(seed)
    model = Watched(bench)
    generator = bench.generator(num_pages=40, max_sequences=6, step_tokens=48, model=model)
    answered: list[object] = []
    cancelled = 0
    for number in range(25):
        generator.submit(
            request(
                number,
                prompt_of(rng.randint(1, 40), number),
                num_samples=rng.randint(1, 5),
                max_tokens=rng.randint(1, 20),
                stop_tokens=frozenset(rng.sample(range(V), 10)),
                version=rng.choice(versions),
                prompt_logprobs=rng.random() < 0.3,
            )
        )
        model.max_rows = rng.choice((30, 10**9))
        model.poison = rng.choice((-1, -1, 11))
        for _ in range(rng.randint(0, 6)):
            answered += [outcome.key for outcome in generator.step()]
            generator.check_integrity()
        if rng.random() < 0.2:
            cancelled += generator.cancel(rng.randint(0, number))
            generator.check_integrity()
    model.max_rows, model.poison = 10**9, -1
    answered += drain(generator)
    assert len(set(answered)) == len(answered) == 25 - cancelled
    assert all(version is None or version.references == 1 for version in versions)
