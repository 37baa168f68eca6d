"""Whose turn it is when sequences are computed one at a time."""

import pytest

from weft.engine.sampling.rotation import Rotation, Turn


def rotation(chunk_tokens: int = 8, step_tokens: int = 24, pass_tokens: int = 4) -> Rotation:
    return Rotation(chunk_tokens=chunk_tokens, step_tokens=step_tokens, pass_tokens=pass_tokens)


def test_a_long_sequence_goes_in_chunks() -> None:
    turns = rotation()
    turns.add("a", 20)
    assert [turns.next_step() for _ in range(4)] == [
        [Turn("a", 0, 8)],
        [Turn("a", 8, 16)],
        [Turn("a", 16, 20)],
        [],
    ]


def test_a_sequence_has_one_turn_a_step_and_then_stands_behind_the_others() -> None:
    turns = rotation(step_tokens=12)
    turns.add("long", 20)
    turns.add("b", 1)
    turns.add("c", 1)
    assert turns.next_step() == [Turn("long", 0, 8), Turn("b", 0, 1)]
    turns.add("b", 1)
    assert turns.next_step() == [Turn("c", 0, 1), Turn("long", 8, 16)]
    assert turns.next_step() == [Turn("b", 0, 1), Turn("long", 16, 20)]
    assert len(turns) == 0


def test_a_pass_of_one_token_counts_as_more() -> None:
    turns = rotation(step_tokens=12)
    for name in "abcde":
        turns.add(name, 1)
    assert [turn.name for turn in turns.next_step()] == ["a", "b", "c"]


def test_a_turn_larger_than_a_step_is_taken_alone() -> None:
    turns = rotation(chunk_tokens=100)
    turns.add("a", 90)
    turns.add("b", 1)
    assert turns.next_step() == [Turn("a", 0, 90)]
    assert turns.next_step() == [Turn("b", 0, 1)]


def test_chunks_do_not_depend_on_the_others() -> None:
    turns = rotation()
    for name in "abcd":
        turns.add(name, 19)
    taken = [turn for _ in range(20) for turn in turns.next_step()]
    for name in "abcd":
        bounds = [(turn.first, turn.last) for turn in taken if turn.name == name]
        assert bounds == [(0, 8), (8, 16), (16, 19)]


def test_a_removed_sequence_has_no_turn() -> None:
    turns = rotation()
    turns.add("a", 20)
    turns.add("b", 1)
    turns.next_step()
    turns.remove("a")
    turns.remove("unknown")
    assert turns.next_step() == []


def test_the_rows_ahead_are_those_of_the_largest_turn() -> None:
    turns = rotation()
    assert turns.num_rows_ahead == 0
    turns.add("a", 1)
    assert turns.num_rows_ahead == 1
    turns.add("b", 20)
    assert turns.num_rows_ahead == 8


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="8, 0, 4 must be at least 1"):
        rotation(step_tokens=0)
