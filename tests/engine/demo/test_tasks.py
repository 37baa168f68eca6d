"""What the demo's tenants learn, and how answers are judged."""

import random
from pathlib import Path

import pytest

from weft.engine.demo import tasks as demo_tasks
from weft.engine.demo import tiny_text
from weft.engine.demo.tasks import Item

MODULE = '''
"""The module's own line is not an item."""

def plain(x):
    """Give x back as it is."""

class Thing:
    """A thing that is documented.

    At length.
    """

    def method(self):
        """Do what things do."""

    def _private(self):
        """Not shown at all."""

def silent():
    pass

def long():
    """A line that is so long that it would take up most of a batch by itself, and is left out."""
'''


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "stuff.py").write_text(MODULE)
    return tmp_path


def prompt_text(item: Item) -> str:
    return tiny_text.decode(list(item.prompt))


def answer_text(item: Item) -> str:
    return tiny_text.decode(list(item.answer))


def test_documented_names_are_public_and_have_their_first_line(library: Path) -> None:
    assert demo_tasks.documented_names(library) == (
        ("stuff.plain", "Give x back as it is."),
        ("stuff.Thing", "A thing that is documented."),
        ("stuff.Thing.method", "Do what things do."),
    )


def test_docstrings_split_without_a_common_line(library: Path) -> None:
    learned = demo_tasks.docstrings(held_out=False, directory=library)
    asked = demo_tasks.docstrings(held_out=True, directory=library)
    assert len(learned) + len(asked) == 3
    assert not {item.answer for item in learned} & {item.answer for item in asked}


def test_the_standard_library_gives_enough_to_learn_from() -> None:
    learned = demo_tasks.docstrings(held_out=False)
    asked = demo_tasks.docstrings(held_out=True)
    assert len(learned) > 500
    assert len(asked) > 60
    assert not {item.answer for item in learned} & {item.answer for item in asked}


def test_sums_split_by_pair_and_are_complete() -> None:
    learned, asked = demo_tasks.sums(held_out=False), demo_tasks.sums(held_out=True)
    assert len(learned) + len(asked) == 90 * 90
    assert not {item.prompt for item in learned} & {item.prompt for item in asked}
    assert prompt_text(learned[0]) == "10+10="
    assert learned[0].answer == (*b"20", tiny_text.END_OF_TEXT)


def test_descending_lists_are_distinct_and_sorted_downwards() -> None:
    items = demo_tasks.descending(50, held_out=True)
    assert len({item.prompt for item in items}) == 50
    for item in items:
        listed = prompt_text(item).removeprefix("sort down ").removesuffix(" -> ")
        assert tiny_text.is_held_out_text(listed)
        assert answer_text(item).split() == sorted(listed.split(), reverse=True)


def test_preferences_want_the_sentence_and_both_answers_are_right() -> None:
    pair = demo_tasks.sentences(held_out=True)[0]
    number = tiny_text.decode(list(pair.rejected))
    assert tiny_text.decode(list(pair.chosen)) == f"The answer is {number}."
    assert demo_tasks.is_sentence(pair.chosen)
    assert not demo_tasks.is_sentence(pair.rejected)


def test_an_answer_is_right_only_with_its_end() -> None:
    item = demo_tasks.sums(held_out=False)[0]
    assert demo_tasks.is_right(item, list(item.answer))
    assert not demo_tasks.is_right(item, list(item.answer[:-1]))
    assert not demo_tasks.is_right(item, [*item.answer[:-1], 48, item.answer[-1]])


def test_advantages_are_centred_within_their_group() -> None:
    assert demo_tasks.group_advantages([[1.0, 0.0], [1.0, 1.0]]) == [[0.5, -0.5], [0.0, 0.0]]


def test_shuffled_rewards_are_the_same_numbers_in_the_same_groups() -> None:
    rewards = [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    dealt = demo_tasks.shuffled(rewards, random.Random(1))
    assert [len(group) for group in dealt] == [3, 3]
    assert sorted(r for group in dealt for r in group) == [0, 0, 1, 1, 1, 1]
    assert dealt != rewards
