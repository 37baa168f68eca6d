"""Samplers without a name: which are closed, and when."""

import pytest

from weft.client.errors import NotFound
from weft.engine.gateway.unnamed import Unnamed


def test_the_latest_samplers_of_each_run_are_kept() -> None:
    unnamed = Unnamed(kept=2)
    assert [unnamed.opened("a", name) for name in "123"] == [[], [], ["1"]]
    assert unnamed.opened("b", "4") == []


def test_a_sampler_that_is_sampled_from_is_not_the_oldest() -> None:
    unnamed = Unnamed(kept=2)
    for name in "12":
        unnamed.opened("a", name)
    unnamed.began("1")
    unnamed.ended("1")
    assert unnamed.opened("a", "3") == ["2"]


def test_a_sampler_with_a_sample_under_way_is_kept() -> None:
    unnamed = Unnamed(kept=1)
    unnamed.opened("a", "1")
    unnamed.began("1")
    unnamed.began("1")
    unnamed.ended("1")
    assert unnamed.opened("a", "2") == []
    unnamed.ended("1")
    assert unnamed.opened("a", "3") == ["1", "2"]


def test_a_closed_sampler_says_why() -> None:
    unnamed = Unnamed(kept=1)
    unnamed.opened("a", "1")
    unnamed.opened("a", "2")
    with pytest.raises(NotFound, match=r"1 was closed: .* the latest 1 of each run"):
        unnamed.began("1")


def test_a_late_repeat_opens_nothing_again() -> None:
    unnamed = Unnamed(kept=1)
    unnamed.opened("a", "1")
    unnamed.opened("a", "2")
    assert unnamed.opened("a", "1") == []
    assert unnamed.opened("a", "3") == ["2"]


def test_a_named_sampler_is_none_of_them() -> None:
    unnamed = Unnamed(kept=1)
    unnamed.opened("a", "1")
    unnamed.began("named")
    unnamed.ended("named")
    assert unnamed.opened("a", "2") == ["1"]
