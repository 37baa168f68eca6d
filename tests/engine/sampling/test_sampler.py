"""Drawing tokens: distributions, cuts, streams and logprobs."""

from dataclasses import astuple

import numpy as np
import pytest
import torch
from torch import Tensor

from weft.engine.sampling.sampler import (
    ALTERNATIVES,
    Drawn,
    Settings,
    draw,
    stream_of,
    uniforms,
)

V = 300


def random_logits(rows: int, vocabulary: int = V, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def draw_row(
    logits_V: Tensor, count: int, temperature: float = 1.0, top_k: int = -1, top_p: float = 1.0
) -> Drawn:
    """Draw many times from one distribution, at evenly spread places of the stream."""
    places = (np.arange(count) + 0.5) / count
    pieces = [
        draw(
            logits_V.repeat(len(part), 1),
            Settings.of([(temperature, top_k, top_p)] * len(part)),
            part,
        )
        for part in np.array_split(places, -(-count // 500))
    ]
    return Drawn(*(np.concatenate(arrays) for arrays in zip(*map(astuple, pieces), strict=True)))


def share(drawn: Drawn, vocabulary: int = V) -> np.ndarray:
    return np.bincount(drawn.tokens, minlength=vocabulary) / len(drawn.tokens)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("vocabulary", [5, 128, 300])
def test_tokens_come_as_often_as_the_tempered_softmax_says(
    temperature: float, vocabulary: int
) -> None:
    (logits,) = random_logits(1, vocabulary)
    expected = (logits.double() / temperature).softmax(-1).numpy()
    drawn = draw_row(logits, 4000, temperature)
    # Evenly spread places miss every share by less than one place on either side.
    assert np.abs(share(drawn, vocabulary) - expected).max() < 2 / 4000


def test_temperature_zero_takes_the_likeliest_with_its_logprob_at_one() -> None:
    logits = random_logits(4)
    drawn = draw(logits.clone(), Settings.of([(0.0, 5, 0.3)] * 4), np.full(4, 0.99))
    assert drawn.tokens.tolist() == logits.argmax(-1).tolist()
    expected = logits.double().log_softmax(-1).amax(-1)
    np.testing.assert_allclose(drawn.logprobs, expected, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_logprobs_are_of_the_tempered_distribution_before_the_cuts(temperature: float) -> None:
    (logits,) = random_logits(1)
    drawn = draw_row(logits, 50, temperature, top_k=20, top_p=0.9)
    expected = (logits.double() / temperature).log_softmax(-1).numpy()[drawn.tokens]
    np.testing.assert_allclose(drawn.logprobs, expected, atol=1e-5)


def test_top_k_keeps_the_likeliest_in_proportion() -> None:
    (logits,) = random_logits(1)
    best = logits.topk(3)
    found = share(draw_row(logits, 4000, top_k=3))
    expected = np.zeros(V)
    expected[best.indices.numpy()] = best.values.double().softmax(-1).numpy()
    assert np.abs(found - expected).max() < 2 / 4000


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.9, 0.999])
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p: float) -> None:
    logits = random_logits(1)[0] / 3  # flat enough for more than the first candidates
    order = logits.argsort(descending=True)
    p = logits.double().softmax(-1)[order].numpy()
    num_kept = int(np.searchsorted(np.cumsum(p), top_p)) + 1
    expected = np.zeros(V)
    expected[order[:num_kept].numpy()] = p[:num_kept] / p[:num_kept].sum()
    assert np.abs(share(draw_row(logits, 400, top_p=top_p)) - expected).max() < 2 / 400


@pytest.mark.parametrize("top_p", [0.2, 0.9, 0.99999, 1 - 1e-12])
def test_a_wide_share_of_a_large_vocabulary_is_found_exactly(top_p: float) -> None:
    logits = random_logits(3, 5000) / 3
    p = logits.softmax(-1)
    settings = Settings.of([(1.0, -1, top_p)] * 3)
    drawn = draw(logits, settings, np.full(3, 1 - 2.0**-53))
    for row in range(3):
        order = p[row].argsort(descending=True)
        num_kept = int((p[row][order].double().cumsum(0) < top_p).sum()) + 1
        # The end of the stream draws the last token of the vocabulary that is kept.
        assert drawn.tokens[row] == order[:num_kept].max()


def test_top_p_keeps_the_same_tokens_whatever_top_k_a_neighbour_has() -> None:
    logits = random_logits(20, seed=1).div_(3).sort(-1, descending=True).values
    logits[:, 60:] -= 20  # so small that float64 cannot hold their sums with the others
    # Shares that are reached exactly by 70 tokens and more, if summed from the largest one on.
    shares = logits.softmax(-1).double().cumsum(-1)[:, 70:120:5]
    rows = logits.repeat_interleave(10, 0)
    settings = [(1.0, -1, top_p) for top_p in shares.flatten().tolist()]
    ends = np.full(201, 1 - 2.0**-53)
    expected = draw(rows.clone(), Settings.of(settings), ends[1:])
    beside = Settings.of([*settings, (1.0, 280, 0.5)])
    found = draw(torch.cat([rows, rows[:1]]), beside, ends)
    assert found.tokens[:-1].tolist() == expected.tokens.tolist()


def test_top_p_counts_from_what_top_k_left() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    kept = set(draw_row(logits, 1000, top_k=2, top_p=0.57).tokens.tolist())
    assert kept == {0}  # 0.4 of 0.7 is 0.571


def test_tokens_as_likely_as_the_last_one_kept_stay() -> None:
    logits = torch.tensor([0.0, 1.0, 1.0, 1.0, -1.0])
    assert set(draw_row(logits, 100, top_k=2).tokens.tolist()) == {1, 2, 3}


@pytest.mark.parametrize("place", [0.0, 0.5, 1 - 2.0**-53])
def test_what_has_no_probability_is_never_drawn(place: float) -> None:
    logits = torch.full((1, V), -torch.inf)
    logits[0, [130, 131, 290]] = torch.tensor([1.0, 0.0, -1.0])
    drawn = draw(logits, Settings.of([(1.0, -1, 1.0)]), np.array([place]))
    assert drawn.tokens[0] in (130, 131, 290)


def test_a_row_draws_the_same_in_any_company() -> None:
    settings = [(1.0, -1, 1.0), (0.0, -1, 1.0), (0.8, 40, 1.0), (1.3, -1, 0.95), (0.6, 7, 0.5)]
    logits, places = random_logits(5), uniforms(np.arange(5, dtype=np.uint64), np.arange(5))
    together = draw(logits.clone(), Settings.of(settings), places)
    for row in range(5):
        alone = draw(
            logits[row : row + 1].clone(),
            Settings.of(settings[row : row + 1]),
            places[row : row + 1],
        )
        assert alone.tokens[0] == together.tokens[row]
        assert alone.logprobs[0] == together.logprobs[row]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_show_in_their_own_logprob_only(bad: float) -> None:
    logits = random_logits(3)
    clean = draw(logits.clone(), Settings.of([(1.0, 5, 0.9)] * 3), np.full(3, 0.4))
    logits[1, 17] = bad
    drawn = draw(logits, Settings.of([(1.0, 5, 0.9)] * 3), np.full(3, 0.4))
    assert not np.isfinite(drawn.logprobs[1])
    assert drawn.tokens[[0, 2]].tolist() == clean.tokens[[0, 2]].tolist()
    assert 0 <= drawn.tokens[1] < V


def test_streams_differ_by_seed_and_by_sample() -> None:
    states = [stream_of(seed, sample) for seed in (-1, 0, 1, 2**63) for sample in range(50)]
    assert len(set(states)) == 200
    numbers = uniforms(np.array(states, np.uint64)[:, None], np.arange(20)[None])
    assert len(np.unique(numbers)) == 4000


def test_numbers_of_streams_are_even_and_uncorrelated() -> None:
    states = np.array([stream_of(5, sample) for sample in range(300)], np.uint64)
    numbers = uniforms(states[:, None], np.arange(300)[None])
    # Six standard deviations of 90,000 draws of a uniform number.
    assert abs(numbers.mean() - 0.5) < 6 * 12**-0.5 / 300
    for left, right in ((numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1])):
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 6 / 300


def test_the_first_numbers_are_those_of_splitmix64() -> None:
    # First outputs for state 1234567 of the public reference implementation.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    numbers = uniforms(np.full(3, 1234567, np.uint64), np.arange(3))
    assert numbers.tolist() == [(value >> 11) * 2.0**-53 for value in expected]


# --- what is reported beside a draw


@pytest.mark.parametrize(
    "settings", [(1.0, -1, 1.0), (0.5, 3, 0.2), (0.0, -1, 1.0)], ids=["plain", "cut", "greedy"]
)
def test_the_likeliest_are_of_the_tempered_distribution_before_the_cuts(
    settings: tuple[float, int, float],
) -> None:
    logits = random_logits(2)
    drawn = draw(logits.clone(), Settings.of([settings] * 2), np.full(2, 0.5), np.array([9, 4]))
    expected = (logits.double() / (settings[0] or 1.0)).log_softmax(-1).sort(-1, descending=True)
    for row, part in ((0, slice(0, 9)), (1, slice(9, 13))):
        count = part.stop - part.start
        assert drawn.top_tokens[part].tolist() == expected.indices[row, :count].tolist()
        # float32 of numbers up to 20
        found = drawn.top_logprobs[part]
        np.testing.assert_allclose(found, expected.values[row, :count], atol=1e-5)


def test_a_drawn_token_has_the_same_logprob_among_the_likeliest() -> None:
    logits = random_logits(20)
    drawn = draw(
        logits, Settings.of([(0.7, -1, 1.0)] * 20), np.linspace(0, 0.99, 20), np.full(20, V)
    )
    tokens, logprobs = drawn.top_tokens.reshape(20, V), drawn.top_logprobs.reshape(20, V)
    assert logprobs[tokens == drawn.tokens[:, None]].tolist() == drawn.logprobs.tolist()


def test_the_likeliest_are_found_where_a_float_cannot_hold_their_share() -> None:
    logits = random_logits(1)
    drawn = draw(logits.clone(), Settings.of([(0.01, -1, 1.0)]), np.full(1, 0.5), np.array([50]))
    expected = (logits.double() / 0.01).log_softmax(-1).topk(50).values[0]
    assert float(expected[-1]) < -200  # exp of it is below every float32
    # float32 of numbers up to 1000
    np.testing.assert_allclose(drawn.top_logprobs, expected, rtol=1e-5)


def test_what_is_reported_changes_no_draw() -> None:
    logits, settings = random_logits(8), Settings.of([(0.7, -1, 1.0)] * 8)
    places = np.linspace(0, 0.99, 8)
    plain = draw(logits.clone(), settings, places)
    reporting = draw(logits.clone(), settings, places, np.arange(8))
    assert reporting.tokens.tolist() == plain.tokens.tolist()
    assert reporting.logprobs.tolist() == plain.logprobs.tolist()
    assert (len(plain.top_tokens), len(reporting.top_tokens)) == (0, sum(range(8)))


def test_the_stream_of_alternatives_is_that_of_no_sample() -> None:
    streams = {stream_of(3, sample) for sample in (ALTERNATIVES, *range(4096))}
    assert len(streams) == 4097
