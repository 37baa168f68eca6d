"""What requests ask about tokens beside those drawn, through whole generators, against all logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hosted_models import save_family
from hosted_steps import make_store
from sampling_helpers import Bench, V, hf_logits, prompt_of, request, run
from sequential_models import SequentialBench, random_hybrid
from transformers import AutoModelForCausalLM

from weft.client.errors import BadRequest
from weft.engine.adapters.store import WeightsVersion
from weft.engine.hosted.load import load_hosted
from weft.engine.sampling import sample_head
from weft.engine.sampling.base_generator import BaseGenerator
from weft.engine.sampling.generate import Generator
from weft.engine.sampling.kv_cache import KVCache
from weft.engine.sampling.prompt_targets import PromptTargets
from weft.engine.sampling.requests import SampleDone, SampleRequest

Versions = list[WeightsVersion | None]
Arrays = dict[str, np.ndarray]

# float32 in another order of summation; a recurrence carries the rounding of its chunks along
CLOSE = 1e-4


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench.random(tmp_path_factory.mktemp("model"), vocab_size=V, max_context=128)


@pytest.fixture(scope="module")
def versions(bench: Bench) -> Versions:
    """Base model and adapters, with and without the unembedding."""
    return [None, bench.adapter(4, 1), bench.adapter(16, 2, unembed=False)]


def targets_of(num_rows: int, seed: int = 0) -> PromptTargets:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, num_rows)
    return PromptTargets(counts, rng.integers(0, V, counts.sum()))


def ask(key: object, length: int = 20, **options: Any) -> SampleRequest:
    """A request that asks everything."""
    asked: dict[str, Any] = {
        "prompt_logprobs": True,
        "topk_prompt_logprobs": 5,
        "topk_sample_logprobs": 3,
        "prompt_targets": targets_of(length - 1),
        "prompt_alt_tokens_k": 4,
        "temperature": 0.8,
    }
    return request(key, prompt_of(length), **(asked | options))


def answers(generator: BaseGenerator, *requests: SampleRequest) -> dict[Any, Arrays]:
    outcomes = run(generator, *requests)
    found = {}
    for key, outcome in outcomes.items():
        assert isinstance(outcome, SampleDone), outcome
        found[key] = outcome.arrays()
    return found


def assert_true(arrays: Arrays, each: SampleRequest, hf: Any) -> None:
    """Compare with all logits of the prompt and its only sample."""
    prompt = each.tokens.tolist()
    rows, whole = len(prompt) - 1, [*prompt, *arrays["tokens"].tolist()]
    logits = hf_logits(hf, whole).double()
    plain, tempered = logits.log_softmax(-1).numpy(), (logits / each.temperature).log_softmax(-1)
    every = np.arange(rows)[:, None]
    own = arrays["prompt_logprobs"]
    assert np.isnan(own[0])
    np.testing.assert_allclose(own[1:], plain[np.arange(rows), prompt[1:]], atol=CLOSE)
    np.testing.assert_allclose(
        arrays["topk_prompt_logprobs"], plain[every, arrays["topk_prompt_tokens"]], atol=CLOSE
    )
    np.testing.assert_allclose(
        arrays["topk_prompt_logprobs"], -np.sort(-plain[:rows])[:, :5], atol=CLOSE
    )
    np.testing.assert_allclose(
        arrays["prompt_alt_logprobs"], plain[every, arrays["prompt_alt_tokens"]], atol=CLOSE
    )
    targets = each.prompt_targets
    assert targets is not None
    target_rows = np.repeat(np.arange(rows), targets.counts)
    np.testing.assert_allclose(
        arrays["target_prompt_logprobs"], plain[target_rows, targets.tokens], atol=CLOSE
    )
    sampled = tempered[rows:-1].sort(-1, descending=True).values[:, :3]
    np.testing.assert_allclose(arrays["topk_sample_logprobs"], sampled, atol=CLOSE)


def assert_same(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("chunk_rows", [7, 64])
def test_all_answers_are_those_of_the_full_logits(
    bench: Bench, versions: Versions, chunk_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_head, "CHUNK_ROWS", chunk_rows)
    requests = [ask(number, 20 + number, version=each) for number, each in enumerate(versions)]
    found = answers(bench.generator(), *requests, request("plain", prompt_of(9)))
    for each in requests:
        assert_true(found[each.key], each, bench.merged(each.version))
    assert found["plain"].keys() == {"tokens", "lengths", "logprobs"}


@pytest.mark.parametrize("chunk_tokens", [6, 64])
def test_a_sequential_model_answers_the_same_in_any_chunks(
    chunk_tokens: int, tmp_path: Path
) -> None:
    hybrid = SequentialBench.hosting(random_hybrid(), tmp_path)
    each = ask("a", version=hybrid.adapter(4, 1))
    found = answers(hybrid.sequential(chunk_tokens=chunk_tokens), each)
    assert_true(found["a"], each, hybrid.merged(each.version))


def test_a_hosted_model_answers_the_same(tmp_path: Path) -> None:
    save_family(tmp_path, "gemma3_text")
    model, hf = load_hosted(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    cache = KVCache(model.config, 64, 4, dtype=torch.float32)
    each = ask("a")
    found = answers(Generator(model, make_store(model), cache), each)
    assert_true(found["a"], each, hf)


@pytest.mark.parametrize(
    ("has_unembed", "names"), [(False, ("",)), (True, ("prompt_", "topk_prompt_", "target_"))]
)
def test_deterministic_mode_gives_the_bits_of_a_request_alone(
    has_unembed: bool, names: tuple[str, ...], tmp_path: Path
) -> None:
    bench = Bench.random(tmp_path, vocab_size=V, row_tile=16)
    versions = [None, *(bench.adapter(4 * rank, rank, unembed=has_unembed) for rank in range(1, 5))]
    requests = [
        ask(
            number,
            62 + number,  # about a chunk, so that neighbours would move its bounds
            version=version,
            topk_prompt_logprobs=20 - number,
            prompt_alt_tokens_k=1 + number,
            seed=number,
        )
        for number, version in enumerate(versions)
    ]
    together = answers(bench.generator(is_deterministic=True), *requests)
    for each in requests:
        alone = answers(bench.generator(is_deterministic=True), each)[each.key]
        chosen = {name: values for name, values in alone.items() if name.startswith(names)}
        assert len(chosen) >= 6
        assert_same({name: together[each.key][name] for name in chosen}, chosen)


def test_questions_change_no_sample(bench: Bench) -> None:
    plain = answers(bench.generator(), request("a", prompt_of(20), temperature=0.8))["a"]
    asking = answers(bench.generator(), ask("a"))["a"]
    assert_same({name: asking[name] for name in plain}, plain)


def test_alternatives_differ_by_seed_and_position_and_repeat(bench: Bench) -> None:
    def alternatives(seed: int, prompt: list[int]) -> list[list[int]]:
        each = request("a", prompt, seed=seed, temperature=50.0, prompt_alt_tokens_k=8)
        found: list[list[int]] = answers(bench.generator(), each)["a"]["prompt_alt_tokens"].tolist()
        return found

    prompt = prompt_of(20)
    first = alternatives(3, prompt)
    assert len({tuple(row) for row in first}) == 19
    assert all(len(set(row)) > 1 for row in first)
    assert alternatives(3, prompt) == first
    assert alternatives(4, prompt) != first
    assert alternatives(3, prompt[:11]) == first[:10]


def test_the_last_tokens_alone_are_scored(bench: Bench) -> None:
    whole = answers(bench.generator(), ask("a"))["a"]
    last = answers(bench.generator(), ask("a", prompt_logprobs_last_n=4))["a"]
    assert np.isnan(last["prompt_logprobs"][:16]).all()
    np.testing.assert_allclose(
        last["prompt_logprobs"][16:], whole["prompt_logprobs"][16:], atol=CLOSE
    )
    assert last["topk_prompt_tokens"].tolist() == whole["topk_prompt_tokens"][-4:].tolist()
    for name in ("target_prompt_logprobs", "prompt_alt_tokens"):
        assert last[name].shape == whole[name].shape


def test_a_prompt_of_one_token_has_nothing_to_ask_about(bench: Bench) -> None:
    each = ask("a", 1, prompt_targets=None)
    found = answers(bench.generator(), each)["a"]
    shapes = {name: list(found[name].shape) for name in ("topk_prompt_tokens", "prompt_alt_tokens")}
    assert shapes == {"topk_prompt_tokens": [0, 5], "prompt_alt_tokens": [0, 4]}
    assert found["prompt_logprobs"].shape == (1,)


def test_more_likeliest_tokens_than_the_vocabulary_are_padding(bench: Bench) -> None:
    each = request("a", prompt_of(3), topk_prompt_logprobs=V + 2, topk_sample_logprobs=V + 2)
    found = answers(bench.generator(), each)["a"]
    for name in ("topk_prompt", "topk_sample"):
        assert (found[f"{name}_tokens"][:, V:] == 0).all()
        assert (found[f"{name}_logprobs"][:, V:] == -99999.0).all()
        assert (found[f"{name}_logprobs"][:, :V] > -99999.0).all()


def test_logits_that_are_not_finite_fail_the_request_that_asks_alone(bench: Bench) -> None:
    broken = bench.adapter(4, 9)
    bench.store.version_flat(broken)[5] = torch.nan
    outcomes = run(bench.generator(), ask("bad", version=broken), ask("good"))
    assert outcomes["bad"].code == "non_finite"  # type: ignore[union-attr]
    assert isinstance(outcomes["good"], SampleDone)
    bench.store.release(broken)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk_prompt_logprobs": -1}, "topk_prompt_logprobs is -1"),
        ({"prompt_alt_tokens_k": -1}, "prompt_alt_tokens_k is -1"),
        ({"prompt_logprobs_last_n": 20}, "prompt_logprobs_last_n is 20 of a prompt of 20"),
        ({"prompt_targets": targets_of(20)}, r"target_counts has shape \[20\], not \[19\]"),
        (
            {"prompt_targets": PromptTargets(np.ones(19, int), np.zeros(18, int))},
            r"target_tokens has shape \[18\], target_counts add up to 19",
        ),
        (
            {"prompt_targets": PromptTargets(np.full(19, -1), np.zeros(0, int))},
            "target_counts holds -1",
        ),
        (
            {"prompt_targets": PromptTargets(np.ones(19, int), np.full(19, V))},
            f"target token {V} is outside",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(
    bench: Bench, options: dict[str, Any], message: str
) -> None:
    generator = bench.generator()
    with pytest.raises(BadRequest, match=message):
        generator.submit(ask("a", **options))
    assert not generator.has_work
