"""What goes wrong in sequential generation stays with the request that is to blame."""

import random

import pytest
import torch
from sampling_helpers import V, drain, prompt_of, request, run, tokens_of
from sequential_models import SequentialBench, random_hybrid

from weft.engine.adapters.store import WeightsVersion
from weft.engine.sampling.requests import SampleDone, SampleFailed


@pytest.fixture(scope="module")
def bench() -> SequentialBench:
    return SequentialBench.wrapping(random_hybrid())


@pytest.fixture(scope="module")
def versions(bench: SequentialBench) -> list[WeightsVersion | None]:
    return [None, bench.adapter(4, 1), bench.adapter(16, 2, mlp=False)]


@pytest.fixture(autouse=True)
def _unharmed(bench: SequentialBench) -> None:
    bench.model.poison, bench.model.max_tokens, bench.model.max_copies = -1, 10**9, 10**9


def test_a_version_lives_as_long_as_its_requests(bench: SequentialBench) -> None:
    version = bench.adapter(4, 9)
    generator = bench.sequential()
    generator.submit(request("a", prompt_of(5), max_tokens=3, version=version))
    generator.submit(request("b", prompt_of(5), max_tokens=9, version=version))
    assert version.references == 3
    generator.cancel("b")
    assert version.references == 2
    drain(generator)
    assert version.references == 1
    bench.store.release(version)


def test_a_cancelled_request_frees_its_states_at_once(bench: SequentialBench) -> None:
    generator = bench.sequential(chunk_tokens=8)
    generator.submit(request("running", prompt_of(8), num_samples=3))
    generator.submit(request("in prefill", prompt_of(40)))
    generator.submit(request("stays", prompt_of(8)))
    generator.step()
    generator.step()
    assert len(generator._states) == 5
    for key in ("running", "in prefill"):
        assert generator.cancel(key)
        assert not generator.cancel(key)
        generator.check_integrity()
    assert len(generator._states) == 1
    assert generator._admission.num_reserved > 0
    assert sorted(drain(generator)) == ["stays"]
    assert len(generator._states) == 0


def test_a_request_that_makes_a_pass_fail_fails_alone(bench: SequentialBench) -> None:
    requests = [request(key, prompt_of(4 + key), num_samples=2, max_tokens=6) for key in range(4)]
    expected = run(bench.sequential(), *requests)
    bench.model.poison = 96
    guilty = request("guilty", [1, 96, 2], num_samples=3)
    outcomes = run(bench.sequential(), *requests[:2], guilty, *requests[2:])
    assert outcomes.pop("guilty") == SampleFailed(
        "guilty", "internal", "a step failed: RuntimeError: a kernel failed"
    )
    innocent = 0
    for each in requests:
        fed = [*each.tokens, *(t for tokens in tokens_of(expected[each.key]) for t in tokens[:-1])]
        if 96 not in fed:
            innocent += 1
            assert tokens_of(outcomes[each.key]) == tokens_of(expected[each.key])
    assert innocent >= 2


def test_a_failing_sample_ends_its_whole_request(bench: SequentialBench) -> None:
    prompt = prompt_of(6)
    free = tokens_of(run(bench.sequential(), request("a", prompt, num_samples=4))["a"])
    bench.model.poison = next(token for token in free[1][1:-1] if token not in prompt)
    generator = bench.sequential()
    outcomes = run(generator, request("a", prompt, num_samples=4))
    assert isinstance(outcomes["a"], SampleFailed)
    assert len(generator._states) == 0


def test_a_request_too_large_for_memory_says_so(bench: SequentialBench) -> None:
    bench.model.max_tokens = 12
    outcomes = run(bench.sequential(), request("large", prompt_of(13)), request("b", prompt_of(12)))
    large = outcomes["large"]
    assert isinstance(large, SampleFailed)
    assert large.code == "out_of_memory"
    assert isinstance(outcomes["b"], SampleDone)


def test_a_state_that_cannot_be_copied_fails_its_own_request(bench: SequentialBench) -> None:
    generator = bench.sequential()
    bench.model.max_copies = 2
    outcomes = run(generator, request("a", prompt_of(9)), request("b", prompt_of(9), num_samples=4))
    assert isinstance(outcomes["a"], SampleDone)
    failed = outcomes["b"]
    assert isinstance(failed, SampleFailed)
    assert failed.code == "out_of_memory"
    assert len(generator._states) == 0


def test_weights_that_are_not_finite_fail_their_own_requests(
    bench: SequentialBench, versions: list[WeightsVersion | None]
) -> None:
    broken = bench.adapter(4, 9)
    bench.store.version_flat(broken)[5] = torch.nan
    requests = [request(key, prompt_of(6), version=version) for key, version in enumerate(versions)]
    expected = run(bench.sequential(), *requests)
    bad = request("bad", prompt_of(20), version=broken, prompt_logprobs=True)
    outcomes = run(bench.sequential(chunk_tokens=8), *requests[:2], bad, *requests[2:])
    failed = outcomes["bad"]
    assert isinstance(failed, SampleFailed)
    assert failed.code == "non_finite"
    for each in requests:
        assert tokens_of(outcomes[each.key]) == tokens_of(expected[each.key])
    bench.store.release(broken)


def test_a_tokenizer_that_raises_fails_its_own_request(bench: SequentialBench) -> None:
    def decode(tokens: list[int]) -> str:
        raise KeyError(tokens[0])

    outcomes = run(
        bench.sequential(decode=decode),
        request("a", prompt_of(6), num_samples=2, stop_strings=("x",)),
        request("b", prompt_of(6)),
    )
    assert isinstance(outcomes["a"], SampleFailed)
    assert isinstance(outcomes["b"], SampleDone)


@pytest.mark.parametrize("seed", range(3))
def test_random_histories_leave_no_state_and_no_version_behind(
    bench: SequentialBench, versions: list[WeightsVersion | None], seed: int
) -> None:
    rng = random.Random(seed)
    generator = bench.sequential(
        state_bytes=9000, max_sequences=4, chunk_tokens=8, step_tokens=rng.choice((32, 128))
    )
    answered: list[object] = []
    cancelled = 0
    for number in range(20):
        generator.submit(
            request(
                number,
                prompt_of(rng.randint(1, 40), number),
                num_samples=rng.randint(1, 5),
                max_tokens=rng.randint(1, 12),
                stop_tokens=frozenset(rng.sample(range(V), 10)),
                version=rng.choice(versions),
                prompt_logprobs=rng.random() < 0.3,
            )
        )
        bench.model.poison = rng.choice((-1, -1, 11))
        bench.model.max_copies = bench.model.copies + rng.choice((1, 10**9))
        for _ in range(rng.randint(0, 12)):
            answered += [outcome.key for outcome in generator.step()]
            generator.check_integrity()
        if rng.random() < 0.2:
            cancelled += generator.cancel(rng.randint(0, number))
            generator.check_integrity()
    bench.model.poison, bench.model.max_copies = -1, 10**9
    answered += drain(generator)
    assert len(set(answered)) == len(answered) == 20 - cancelled
    assert len(generator._states) == 0
    assert all(version is None or version.references == 1 for version in versions)
