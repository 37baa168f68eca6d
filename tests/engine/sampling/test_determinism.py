"""In deterministic mode a request's answer has the same bits alone and in any company."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hosted_models import save_family
from sampling_helpers import Bench, prompt_of, request, run
from sequential_models import SequentialBench, random_hybrid
from thread_counts import threads
from transformers import AutoModelForCausalLM

from weft.engine.adapters.store import WeightsVersion
from weft.engine.hosted.load import load_hosted
from weft.engine.sampling.base_generator import BaseGenerator
from weft.engine.sampling.prompt_targets import PromptTargets
from weft.engine.sampling.requests import SampleDone, SampleRequest
from weft.engine.sampling.sequential import SequentialGenerator

LENGTHS = (1, 2, 3, 5, 8, 9, 11, 14, 17, 30, 60, 64, 65, 100)
RANKS = (1, 4, 8, 9, 16, 33, 64)
MANY_PAGES = 2048
Versions = Sequence[WeightsVersion | None]


def random_versions(bench: Bench, rng: np.random.Generator) -> Versions:
    """The base model and up to five adapters of random ranks, with the unembedding or without."""
    return [
        None,
        *(
            bench.adapter(int(rng.choice(RANKS)), seed, unembed=bool(rng.integers(2)))
            for seed in range(1, rng.integers(2, 7))
        ),
    ]


def random_request(
    key: int, vocab_size: int, versions: Versions, rng: np.random.Generator
) -> SampleRequest:
    """Any length, settings and weights, and in every other request all that can be asked."""
    length = int(rng.choice(LENGTHS))
    asked: dict[str, Any] = {"prompt_logprobs": bool(rng.integers(2))}
    if rng.integers(2) and length > 1:
        counts = rng.integers(0, 4, length - 1)
        asked = {
            "prompt_logprobs": True,
            "topk_prompt_logprobs": int(rng.integers(7)),
            "topk_sample_logprobs": int(rng.integers(7)),
            "prompt_targets": PromptTargets(counts, rng.integers(0, vocab_size, counts.sum())),
            "prompt_alt_tokens_k": int(rng.integers(4)),
        }
    return request(
        key,
        rng.integers(0, vocab_size, length).tolist(),
        version=versions[int(rng.integers(len(versions)))],
        num_samples=int(rng.choice([1, 1, 3])),
        max_tokens=int(rng.integers(1, 9)),
        temperature=float(rng.choice([0.0, 0.7, 1.0])),
        top_k=int(rng.choice([-1, -1, 5, 80])),
        top_p=float(rng.choice([1.0, 0.9, 0.5])),
        seed=key,
        **asked,
    )


def assert_company_changes_nothing(
    make_generator: Callable[[], BaseGenerator], requests: Sequence[SampleRequest]
) -> None:
    """Compare each answer with that of a generator which has no other request."""
    generator = make_generator()
    together = run(generator, *requests)
    assert not generator.num_failed_steps  # what is tried again is tried apart
    for each in requests:
        alone, among = run(make_generator(), each)[each.key], together[each.key]
        assert isinstance(alone, SampleDone)
        assert isinstance(among, SampleDone)
        found, expected = among.arrays(), alone.arrays()
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=f"{each.key} {name}")


def random_mix(
    vocab_size: int, versions: Versions, rng: np.random.Generator
) -> list[SampleRequest]:
    """Two to twelve requests in any order."""
    keys = rng.permutation(rng.integers(2, 13)).tolist()
    return [random_request(key, vocab_size, versions, rng) for key in keys]


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A model whose rows are all aligned."""
    return Bench.random(tmp_path_factory.mktemp("even"), vocab_size=112, row_tile=16)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A model with a vocabulary by which rows of logits start anywhere."""
    return Bench.random(tmp_path_factory.mktemp("odd"), vocab_size=97, row_tile=16)


def test_requests_of_one_adapter_do_not_change_each_other(even: Bench) -> None:
    versions = [even.adapter(rank, rank) for rank in (4, 8, 16)]
    requests = [
        request((place, length), prompt_of(length, place), version=version)
        for place, version in enumerate(versions)
        for length in (5, 8, 11, 14, 17)
    ]
    assert_company_changes_nothing(lambda: even.generator(1024, is_deterministic=True), requests)


def test_decode_with_adapters_on_the_unembedding_does_not_depend_on_how_many_there_are(
    odd: Bench,
) -> None:
    requests = [
        request(
            place,
            prompt_of(length),
            version=odd.adapter(64, place),
            topk_sample_logprobs=20,
        )
        for place, length in enumerate((64, 9, 30, 60, 10))
    ]
    assert_company_changes_nothing(lambda: odd.generator(is_deterministic=True), requests)


def test_decode_of_the_base_model_does_not_depend_on_the_thread_that_has_it(
    tmp_path: Path,
) -> None:
    bench = Bench.random(tmp_path, "llama", vocab_size=112, row_tile=16, num_kv_heads=4)
    requests = [request(place, prompt_of(9 + place)) for place in range(4)]
    with threads(2):
        assert_company_changes_nothing(lambda: bench.generator(is_deterministic=True), requests)


@pytest.mark.parametrize("seed", range(12))
def test_no_bit_of_an_answer_depends_on_the_mix_it_is_part_of(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    vocab_size = int(rng.choice([50, 96, 97, 101, 512]))
    bench = Bench.random(
        tmp_path,
        str(rng.choice(["qwen3", "qwen2", "llama"])),
        row_tile=int(rng.choice([16, 256])),
        run_dtype=torch.bfloat16 if seed % 4 == 3 else torch.float32,
        vocab_size=vocab_size,
        num_kv_heads=int(rng.choice([1, 2, 4])),
    )
    requests = random_mix(vocab_size, random_versions(bench, rng), rng)
    settings: dict[str, Any] = {
        "page_size": int(rng.choice([4, 16])),
        "max_sequences": int(rng.choice([5, 128])),
        "step_tokens": int(rng.choice([100, 2048])),
        "is_deterministic": True,
    }
    with threads(1 + seed % 3):
        assert_company_changes_nothing(lambda: bench.generator(MANY_PAGES, **settings), requests)


@pytest.mark.parametrize("seed", range(2))
def test_a_sequential_model_gives_the_same_bits_in_any_mix(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    bench = SequentialBench.hosting(random_hybrid(), tmp_path)
    requests = random_mix(bench.model.config.vocab_size, random_versions(bench, rng), rng)
    with threads(2 + seed):
        assert_company_changes_nothing(
            lambda: bench.sequential(1 << 24, chunk_tokens=32, step_tokens=64), requests
        )


def test_a_hosted_model_that_could_be_packed_gives_the_same_bits_in_any_mix(
    tmp_path: Path,
) -> None:
    save_family(tmp_path, "gemma3_text")
    model = load_hosted(tmp_path, is_deterministic=True)
    bench = SequentialBench.around(AutoModelForCausalLM.from_pretrained(tmp_path), model)
    rng = np.random.default_rng(0)
    requests = random_mix(model.config.vocab_size, random_versions(bench, rng), rng)

    def sequential() -> SequentialGenerator:
        return SequentialGenerator(model, bench.store, state_bytes=1 << 24)  # type: ignore[arg-type]

    assert model.runs_on == "sequential"
    with threads(2):
        assert_company_changes_nothing(sequential, requests)
