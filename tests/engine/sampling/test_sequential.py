"""Generation one sequence at a time: the same answers as by the packed one, in turns, in bounds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sampling_helpers import (
    Bench,
    V,
    drain,
    hf_logits,
    prompt_of,
    request,
    run,
    sequences,
    tokens_of,
)
from sequential_models import STATE_BYTES, TOKEN_BYTES, SequentialBench, random_hybrid

from weft.client.errors import BadRequest
from weft.engine.adapters.store import WeightsVersion
from weft.engine.sampling.requests import SampleDone
from weft.engine.sampling.sequential import SequentialGenerator

Versions = list[WeightsVersion | None]


@pytest.fixture(scope="module")
def paged(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    path = tmp_path_factory.mktemp("model")
    return Bench.random(path, "llama", vocab_size=V, max_context=128)


@pytest.fixture(scope="module")
def paged_versions(paged: Bench) -> Versions:
    """Base model and adapters of different ranks and targets."""
    return [
        None,
        paged.adapter(4, 1),
        paged.adapter(16, 2, mlp=False, unembed=False),
        paged.adapter(7, 3, attn=False),
    ]


@pytest.fixture(scope="module")
def llama(paged: Bench) -> SequentialBench:
    return SequentialBench.wrapping(paged.hf)


@pytest.fixture(scope="module")
def llama_versions(llama: SequentialBench, paged: Bench, paged_versions: Versions) -> Versions:
    return llama.adopt(paged, paged_versions)


@pytest.fixture(scope="module")
def hybrid() -> SequentialBench:
    return SequentialBench.wrapping(random_hybrid())


@pytest.fixture(scope="module")
def versions(hybrid: SequentialBench) -> Versions:
    return [None, hybrid.adapter(4, 1), hybrid.adapter(16, 2, mlp=False)]


# --- numbers


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"temperature": 0.0}, id="greedy"),
        pytest.param({"seed": 5}, id="seeded"),
        pytest.param({"num_samples": 4, "temperature": 0.7}, id="samples"),
        pytest.param({"top_k": 5, "top_p": 0.8, "seed": 3}, id="cut"),
        pytest.param({"stop_tokens": frozenset(range(0, V, 5)), "num_samples": 3}, id="stop token"),
        pytest.param({"stop_strings": ("1><", "7>")}, id="stop string"),
        pytest.param({"max_tokens": 1, "num_samples": 3}, id="one token"),
        pytest.param({"max_tokens": -1}, id="to the end of the context"),
        pytest.param({"prompt_logprobs": True, "temperature": 0.5}, id="prompt logprobs"),
    ],
)
def test_a_request_is_answered_as_by_the_packed_generator(
    paged: Bench,
    llama: SequentialBench,
    paged_versions: Versions,
    llama_versions: Versions,
    fields: dict[str, Any],
) -> None:
    def decode(tokens: list[int]) -> str:
        return "".join(f"<{token}>" for token in tokens)

    def ask(generator: Any, versions: Versions) -> dict[Any, Any]:
        requests = [
            request(
                number, prompt_of(90 + number), **({"max_tokens": 12, "version": each} | fields)
            )
            for number, each in enumerate(versions)
        ]
        return run(generator, *requests)

    expected = ask(paged.generator(decode=decode), paged_versions)
    found = ask(llama.sequential(decode=decode, chunk_tokens=16), llama_versions)
    for key, outcome in expected.items():
        assert tokens_of(found[key]) == tokens_of(outcome)
        assert found[key].result() == outcome.result()
        assert found[key].arrays().keys() == outcome.arrays().keys()
        for name, values in outcome.arrays().items():
            # float32 in another order of summation
            np.testing.assert_allclose(found[key].arrays()[name], values, atol=1e-5)


@pytest.mark.parametrize("is_hosted", [False, True])
def test_a_hybrid_answers_as_a_full_recomputation_does(
    hybrid: SequentialBench, versions: Versions, is_hosted: bool, tmp_path: Path
) -> None:
    if is_hosted:
        hybrid = SequentialBench.hosting(hybrid.hf, tmp_path)
        versions = [None, hybrid.adapter(4, 1), hybrid.adapter(16, 2, mlp=False)]
    requests = [
        request(number, prompt_of(20), num_samples=2, prompt_logprobs=True, version=version)
        for number, version in enumerate(versions)
    ]
    generator = SequentialGenerator(hybrid.model, hybrid.store, state_bytes=1 << 20, chunk_tokens=8)
    outcomes = run(generator, *requests)
    for each in requests:
        hf, prompt, outcome = hybrid.merged(each.version), each.tokens.tolist(), outcomes[each.key]
        assert isinstance(outcome, SampleDone)
        for sequence in outcome.sequences:
            whole = [*prompt, *sequence.tokens.tolist()]
            logprobs = hf_logits(hf, whole).log_softmax(-1).numpy()[np.arange(27), whole[1:]]
            # float32: a recurrence carries the rounding of its chunks along, 2e-5 seen
            np.testing.assert_allclose(sequence.logprobs, logprobs[19:], atol=1e-4)
            assert np.isnan(outcome.prompt_arrays["prompt_logprobs"][0])
            np.testing.assert_allclose(
                outcome.prompt_arrays["prompt_logprobs"][1:], logprobs[:19], atol=1e-4
            )


def test_no_bit_depends_on_what_else_runs(hybrid: SequentialBench, versions: Versions) -> None:
    def generator() -> Any:
        return hybrid.sequential(chunk_tokens=8, step_tokens=40, max_sequences=5)

    requests = [
        request(
            number,
            prompt_of(3 + 7 * number),
            num_samples=1 + number % 3,
            top_p=(1.0, 0.9)[number % 2],
            prompt_logprobs=number % 2 == 0,
            version=versions[number % 3],
        )
        for number in range(6)
    ]
    together = run(generator(), *requests)
    for each in requests:
        (alone,) = run(generator(), each).values()
        assert isinstance(alone, SampleDone)
        for name, values in together[each.key].arrays().items():  # type: ignore[union-attr]
            np.testing.assert_array_equal(alone.arrays()[name], values)


def test_samples_differ_by_index_and_repeat_by_seed(hybrid: SequentialBench) -> None:
    def draw(num_samples: int, seed: int) -> list[list[int]]:
        each = request("a", prompt_of(5), num_samples=num_samples, seed=seed)
        return tokens_of(run(hybrid.sequential(), each)["a"])

    first = draw(6, 3)
    assert len({tuple(tokens) for tokens in first}) == 6
    assert draw(2, 3) == first[:2]
    assert draw(6, 4) != first


def test_logits_are_bent_by_the_softcap(hybrid: SequentialBench) -> None:
    each = request("a", prompt_of(9), max_tokens=1, num_samples=8, prompt_logprobs=True)
    hybrid.model.logit_softcap = 0.5
    outcome = run(hybrid.sequential(), each)["a"]
    hybrid.model.logit_softcap = 0.0
    logits = hf_logits(hybrid.hf, each.tokens.tolist())
    logprobs = (0.5 * torch.tanh(logits / 0.5)).log_softmax(-1).numpy()
    assert isinstance(outcome, SampleDone)
    # float32 in another order of summation
    np.testing.assert_allclose(
        outcome.prompt_arrays["prompt_logprobs"][1:],
        logprobs[np.arange(8), each.tokens[1:]],
        atol=1e-5,
    )
    for sequence in outcome.sequences:
        np.testing.assert_allclose(sequence.logprobs, logprobs[8, sequence.tokens], atol=1e-5)


# --- turns


def test_prompts_and_draws_are_counted_and_states_measured(hybrid: SequentialBench) -> None:
    generator = hybrid.sequential(chunk_tokens=8)
    generator.submit(request("a", prompt_of(20), num_samples=3, max_tokens=4))
    generator.step()
    used, capacity = generator.memory["sequence_state_bytes"]
    assert 0 < used <= capacity
    drain(generator)
    assert (generator.num_prefilled, generator.num_decoded) == (20, 12)
    assert generator.take_stepped() == {"a"}
    assert generator.memory["sequence_state_bytes"] == (0, capacity)


def test_samples_of_a_prompt_share_one_prefill_in_chunks(hybrid: SequentialBench) -> None:
    each = request("a", prompt_of(20), num_samples=3, max_tokens=4)
    run(hybrid.sequential(chunk_tokens=8), each)
    assert hybrid.model.passes == [8, 8, 4] + 9 * [1]
    assert hybrid.model.copies == 2


def test_a_model_that_takes_no_chunks_gets_its_prompt_whole(hybrid: SequentialBench) -> None:
    hybrid.model.continues_in_chunks = False
    run(hybrid.sequential(chunk_tokens=8), request("a", prompt_of(60), max_tokens=3))
    hybrid.model.continues_in_chunks = True
    assert hybrid.model.passes == [60, 1, 1]


def test_a_long_prompt_does_not_hold_up_a_running_sample(hybrid: SequentialBench) -> None:
    generator = hybrid.sequential(chunk_tokens=8, step_tokens=1)
    generator.submit(request("short", prompt_of(4), max_tokens=9))
    generator.step()
    generator.submit(request("long", prompt_of(32), max_tokens=1))
    for _ in range(9):
        generator.step()
    assert hybrid.model.passes == [4, 1, 8, 1, 8, 1, 8, 1, 8, 1]
    drain(generator)


def test_a_step_has_a_bounded_number_of_passes(hybrid: SequentialBench) -> None:
    generator = hybrid.sequential(chunk_tokens=8, step_tokens=64)
    generator.submit(request("a", prompt_of(5), num_samples=7, max_tokens=5))
    generator.step()
    assert generator.num_active == 7
    counts = []
    for _ in range(7):
        first = len(hybrid.model.passes)
        generator.step()
        counts.append(len(hybrid.model.passes) - first)
    assert counts == 7 * [2]
    drain(generator)


def test_the_rows_ahead_are_those_of_the_largest_pass(hybrid: SequentialBench) -> None:
    generator = hybrid.sequential(chunk_tokens=8)
    assert generator.num_rows_ahead == 0
    generator.submit(request("a", prompt_of(10)))
    ahead = []
    for _ in range(3):
        ahead.append(generator.num_rows_ahead)
        generator.step()
    assert ahead == [8, 2, 1]
    drain(generator)


# --- limits


def test_more_samples_than_may_run_do_so_one_after_the_other(hybrid: SequentialBench) -> None:
    each = request("a", prompt_of(20), num_samples=7, max_tokens=6)
    expected = run(hybrid.sequential(), each)["a"]
    few = hybrid.sequential(max_sequences=2)
    few.submit(each)
    most = 0
    while few.num_active or not most:
        few.step()
        most = max(most, few.num_active)
    assert most == 2
    (outcome,) = run(hybrid.sequential(max_sequences=2), each).values()
    assert tokens_of(outcome) == tokens_of(expected)


def test_requests_whose_states_do_not_fit_wait(hybrid: SequentialBench) -> None:
    one = STATE_BYTES + TOKEN_BYTES * 27
    generator = hybrid.sequential(state_bytes=3 * one - 1)
    for key in range(5):
        generator.submit(request(key, prompt_of(20), max_tokens=8))
    generator.step()
    assert generator.num_active == 2
    assert sorted(drain(generator)) == [0, 1, 2, 3, 4]


def test_samples_without_a_limit_fill_the_memory_for_states(hybrid: SequentialBench) -> None:
    generator = hybrid.sequential(state_bytes=STATE_BYTES + TOKEN_BYTES * 50)
    outcome = run(generator, request("a", prompt_of(20), max_tokens=-1))["a"]
    assert [len(tokens) for tokens in tokens_of(outcome)] == [31]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 99}, "30 \\+ 99 tokens, the context holds 128"),
        ({"tokens": prompt_of(120), "max_tokens": 1}, "needs 2200 bytes of state, the sampler has"),
        ({"num_samples": 2, "max_tokens": 60}, "30 \\+ 60 tokens, the context holds 71"),
        ({"tokens": [], "max_tokens": 1}, "the prompt is empty"),
        ({"stop_strings": ("x",)}, "stop strings need a tokenizer"),
    ],
)
def test_what_can_never_fit_is_refused_with_the_number(
    hybrid: SequentialBench, fields: dict[str, Any], message: str
) -> None:
    room = 10**6 if "128" in message else 2150 if "2200" in message else 3000
    generator = hybrid.sequential(state_bytes=room)
    values = {"tokens": prompt_of(30)} | fields
    with pytest.raises(BadRequest, match=message):
        generator.submit(request("a", values.pop("tokens"), **values))
    assert not generator.has_work


def test_several_adapters_run_at_once_and_each_gets_its_own(
    hybrid: SequentialBench, versions: Versions
) -> None:
    generator = hybrid.sequential()
    for number, version in enumerate(versions):
        generator.submit(request(number, prompt_of(9), temperature=0.0, version=version))
    generator.step()
    assert generator.num_active == 3
    outcomes = drain(generator)
    answers = [tokens_of(outcomes[number])[0] for number in range(3)]
    for version, answer in zip(versions, answers, strict=True):
        whole = prompt_of(9) + answer
        best = hf_logits(hybrid.merged(version), whole)[8:-1].argmax(-1).tolist()
        assert answer == best
    assert len({tuple(answer) for answer in answers}) == 3
    assert len(sequences(outcomes[0])) == 1
