"""What goes wrong in generation stays with the request that is to blame."""

import random

import pytest
import torch
from sampling_helpers import Bench, V, Watched, drain, prompt_of, request, run, tokens_of

from weft.engine.adapters.store import WeightsVersion
from weft.engine.sampling.requests import SampleDone, SampleFailed


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
