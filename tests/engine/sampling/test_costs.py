"""What requests take of pages and of states' bytes."""

import pytest

from weft.client.errors import BadRequest
from weft.engine.sampling.admission import Entry
from weft.engine.sampling.costs import PageCosts, StateCosts


def states(per_token: int = 10, max_context: int = 100) -> StateCosts:
    return StateCosts(lambda num_tokens: 1000 + per_token * num_tokens, max_context)


@pytest.mark.parametrize(
    ("entry", "pages"),
    [
        pytest.param(Entry("a", 6, 1, 1), (2, 0), id="only the prompt"),
        pytest.param(Entry("a", 6, 3, 1), (2, 0), id="room in the last page"),
        pytest.param(Entry("a", 6, 4, 1), (2, 1), id="one more page"),
        pytest.param(Entry("a", 6, 3, 2), (2, 1), id="a copy of the last page"),
        pytest.param(Entry("a", 8, 2, 2), (2, 1), id="full pages are shared"),
    ],
)
def test_samples_share_the_full_pages_of_their_prompt(entry: Entry, pages: tuple[int, int]) -> None:
    costs = PageCosts(4)
    assert (costs.prompt(entry), costs.sample(entry)) == pages


@pytest.mark.parametrize(
    ("entry", "sizes"),
    [
        pytest.param(Entry("a", 6, 1, 3), (1060, 0), id="only the prompt"),
        pytest.param(Entry("a", 6, 11, 1), (1060, 100), id="an only sample goes on with it"),
        pytest.param(Entry("a", 6, 11, 2), (1060, 1160), id="a state of its own"),
    ],
)
def test_samples_have_whole_states(entry: Entry, sizes: tuple[int, int]) -> None:
    assert (states().prompt(entry), states().sample(entry)) == sizes


def test_the_room_is_what_the_states_of_one_sample_leave() -> None:
    # The last token is never fed, so a state of 50 tokens serves 51.
    assert states().room(20, 1, 1500) == 51
    # Beside the prompt's 1200 bytes a state of 30 tokens fits.
    assert states().room(20, 2, 2500) == 31
    assert states().room(20, 1, 10**6) == 100


def test_a_state_that_does_not_grow_leaves_the_whole_context() -> None:
    assert states(per_token=0).room(20, 4, 2000) == 100
    assert states(per_token=0).room(20, 4, 1999) == 21


def test_a_prompt_that_can_never_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        BadRequest, match="20 tokens needs 1200 bytes of state, the sampler has 1199"
    ) as caught:
        states().room(20, 1, 1199)
    assert caught.value.code == "too_large"
