"""Sampling through the official SDK: every option, stops, seeds, scores of the prompt."""

from typing import Any

import numpy as np
import pytest
from serving import Server
from talking import EOS, SERVED_ALONE, VERSION, assert_close, prompt, settled, since, text
from tinker import ServiceClient, types

WORDS = "the red fox sees the "


@pytest.fixture
def sampler(service: ServiceClient) -> Any:
    """The base model."""
    return settled(service.create_sampling_client(base_model="weft/tiny"))


def draw(sampler: Any, num_samples: int = 1, words: str = WORDS, **params: Any) -> list[list[int]]:
    """Tokens of samples; a seed unless it is given."""
    asked = types.SamplingParams(**{"max_tokens": 12, "seed": 5, "stop": [], **params})
    return [
        list(sequence.tokens)
        for sequence in sampler.sample(prompt(words), num_samples, asked).result().sequences
    ]


def test_a_seed_repeats_its_samples_and_another_does_not(sampler: Any) -> None:
    first = draw(sampler, 3)
    assert draw(sampler, 3) == first
    assert draw(sampler, 3, seed=6) != first
    assert len({tuple(tokens) for tokens in first}) == 3  # each has a stream of its own


def test_samples_without_a_seed_differ(sampler: Any) -> None:
    assert draw(sampler, 2, seed=None, max_tokens=24) != draw(sampler, 2, seed=None, max_tokens=24)


def test_max_tokens_is_the_length(sampler: Any) -> None:
    params = types.SamplingParams(max_tokens=7, seed=1, stop=[])
    (sequence,) = sampler.sample(prompt(WORDS), 1, params).result().sequences
    assert len(sequence.tokens) == 7
    assert len(sequence.logprobs) == 7
    assert sequence.stop_reason == "length"


def test_temperature_zero_takes_the_likeliest(sampler: Any) -> None:
    assert draw(sampler, temperature=0) == draw(sampler, temperature=0, seed=9)
    assert draw(sampler, temperature=0) == draw(sampler, top_k=1)
    assert draw(sampler, temperature=0) == draw(sampler, top_p=1e-6)
    assert draw(sampler, 8, temperature=3.0) != draw(sampler, 8, temperature=0.5)


@pytest.mark.parametrize("as_list", [False, True])
def test_a_string_ends_a_sample_and_is_part_of_it(sampler: Any, as_list: bool) -> None:
    (free,) = draw(sampler, temperature=0)
    stop = bytes(free[3:5]).decode()
    params = types.SamplingParams(
        max_tokens=12, temperature=0, stop=[stop, "~~"] if as_list else stop
    )
    (sequence,) = sampler.sample(prompt(WORDS), 1, params).result().sequences
    assert sequence.stop_reason == "stop"
    words = bytes(sequence.tokens).decode()
    assert words.endswith(stop)
    assert words == bytes(free).decode()[: len(words)]


def test_a_token_ends_a_sample(sampler: Any) -> None:
    (free,) = draw(sampler, temperature=0)
    (stopped,) = draw(sampler, temperature=0, stop=[free[4]])
    assert stopped == free[: free.index(free[4]) + 1]


def test_without_stops_given_the_end_of_text_is_one_and_with_none_at_all_it_is_not(
    sampler: Any,
) -> None:
    """A model that is all but sure of the end of text, by its prompt."""
    ends = "so it is.\n\n"
    params = {"max_tokens": 64, "temperature": 1.5, "seed": 3}
    usual = draw(sampler, 8, ends, stop=None, **params)
    endless = draw(sampler, 8, ends, stop=[], **params)
    assert any(EOS in tokens for tokens in usual)
    assert all(EOS not in tokens[:-1] for tokens in usual)
    assert {len(tokens) for tokens in endless} == {64}


def test_logprobs_are_those_that_training_finds(service: ServiceClient, sampler: Any) -> None:
    params = types.SamplingParams(max_tokens=8, seed=2, stop=[])
    (sequence,) = sampler.sample(prompt(WORDS), 1, params).result().sequences
    whole = types.ModelInput.from_ints(text(WORDS) + list(sequence.tokens))
    found = sampler.compute_logprobs(whole).result()
    assert found[0] is None
    assert_close(found[-8:], sequence.logprobs, SERVED_ALONE)


def test_prompts_are_scored_on_request(sampler: Any) -> None:
    params = types.SamplingParams(max_tokens=1, seed=2)
    plain = sampler.sample(prompt(WORDS), 1, params).result()
    scored = sampler.sample(prompt(WORDS), 1, params, include_prompt_logprobs=True).result()
    assert plain.prompt_logprobs is None
    assert len(scored.prompt_logprobs) == len(WORDS)
    assert_close(scored.prompt_logprobs[1:], sampler.compute_logprobs(prompt(WORDS)).result()[1:])


def test_the_likeliest_tokens_of_the_prompt(sampler: Any) -> None:
    params = types.SamplingParams(max_tokens=1, seed=2)
    answer = sampler.sample(
        prompt(WORDS), 1, params, include_prompt_logprobs=True, topk_prompt_logprobs=100
    ).result()
    top = answer.topk_prompt_logprobs
    assert top[0] is None
    for token, logprob, likeliest in zip(
        text(WORDS)[1:], answer.prompt_logprobs[1:], top[1:], strict=True
    ):
        assert [pair[1] for pair in likeliest] == sorted(
            (pair[1] for pair in likeliest), reverse=True
        )
        found = dict(likeliest).get(token)
        assert found is None or found == pytest.approx(logprob, abs=1e-3)
    assert {len(likeliest) for likeliest in top[1:]} == {100}


@since(0, 30)
def test_the_likeliest_tokens_of_a_sample(sampler: Any) -> None:
    params = types.SamplingParams(max_tokens=6, temperature=0, stop=[])
    answer = sampler.sample(prompt(WORDS), 1, params, topk_sample_logprobs=3).result()
    (sequence,) = answer.sequences
    assert [likeliest[0][0] for likeliest in sequence.topk_logprobs] == list(sequence.tokens)
    assert {len(likeliest) for likeliest in sequence.topk_logprobs} == {3}


@since(0, 30)
@pytest.mark.parametrize("is_sparse", [False, True], ids=["dense", "csr"])
def test_chosen_tokens_are_scored_in_place_of_the_prompts(sampler: Any, is_sparse: bool) -> None:
    targets = np.full((len(WORDS) - 1, 2), -1, np.int64)
    targets[:, 0] = text(WORDS)[1:]
    targets[4, 1] = 32
    if is_sparse:
        data = types.TensorData(
            data=[targets[0, 0], targets[4, 0], 32],
            dtype="int64",
            shape=list(targets.shape),
            sparse_crow_indices=[0, 1, 1, 1, 1, *[3] * (len(WORDS) - 5)],
            sparse_col_indices=[0, 0, 1],
        )
    else:
        data = types.TensorData.from_numpy(targets)
    params = types.SamplingParams(max_tokens=1, seed=2)
    answer = sampler.sample(prompt(WORDS), 1, params, target_prompt_logprobs=data).result()
    exact = sampler.compute_logprobs(prompt(WORDS)).result()
    found = answer.target_prompt_logprobs
    assert list(found.shape) == list(targets.shape)
    if is_sparse:
        assert len(found.data) == 3
        assert_close(np.array(found.data)[:2], [exact[1], exact[5]])
    else:
        assert_close(found.to_numpy()[:, 0], exact[1:])


@since(0, 33)
def test_alternatives_are_drawn_along_the_prompt(sampler: Any) -> None:
    params = types.SamplingParams(max_tokens=1, seed=2, temperature=0.8)
    asked = [
        sampler.sample(prompt(WORDS), 1, params, prompt_alt_tokens_k=4).result() for _ in range(2)
    ]
    first, second = (answer.prompt_alt_tokens for answer in asked)
    tokens = first.tokens.to_numpy()
    assert tokens.shape in {(len(WORDS) - 1, 4), (len(WORDS), 4)}
    np.testing.assert_array_equal(tokens, second.tokens.to_numpy())
    assert len({tuple(row) for row in tokens}) > 1


@since(0, 33)
def test_only_the_last_tokens_are_scored(sampler: Any) -> None:
    whole = sampler.compute_logprobs(prompt(WORDS)).result()
    last = sampler.compute_logprobs(prompt(WORDS), prompt_logprobs_last_n=5).result()
    assert last[:-5] == [None] * (len(WORDS) - 5)
    assert_close(last[-5:], whole[-5:])


def test_many_samples_at_once(sampler: Any) -> None:
    params = types.SamplingParams(max_tokens=4, stop=[])
    asked = [sampler.sample(prompt(WORDS), 2, params) for _ in range(40)]
    assert {len(each.result().sequences) for each in asked} == {2}


def test_sequences_have_ids_of_their_own(sampler: Any) -> None:
    params = types.SamplingParams(max_tokens=2)
    sequences = sampler.sample(prompt(WORDS), 3, params).result().sequences
    assert len({sequence.sequence_id for sequence in sequences}) == 3


REFUSED = [
    pytest.param({"max_tokens": 5000}, "4096|context", id="context"),
    pytest.param({"max_tokens": 0}, "max_tokens", id="max_tokens"),
    pytest.param({"temperature": -1.0}, "temperature", id="temperature"),
    pytest.param({"top_p": 1.5}, "top_p", id="top_p"),
    pytest.param({"top_k": -7}, "top_k", id="top_k"),
    pytest.param({"stop": [99_999]}, "stop|99999", id="stop"),
]


@pytest.mark.parametrize(("params", "named"), REFUSED)
def test_an_impossible_option_is_refused_by_name(
    sampler: Any, params: dict[str, Any], named: str
) -> None:
    with pytest.raises(Exception, match=named):
        draw(sampler, **params)


def test_the_tokenizer_is_found_where_the_model_is(
    server: Server, sampler: Any, home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    assert sampler.get_tokenizer().decode(text(WORDS)) == WORDS
    if VERSION >= (0, 30):
        assert sampler.get_base_model() == "weft/tiny"
