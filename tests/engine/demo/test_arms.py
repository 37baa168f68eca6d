"""The demo's line-up, and the proof that its evaluation prompts are unseen."""

from dataclasses import replace

import pytest

from weft.engine.demo import tiny_text
from weft.engine.demo.arms import COMMON_PROMPTS, Arm, check_held_out, standard_arms


@pytest.fixture(scope="module")
def arms() -> list[Arm]:
    return standard_arms(num_eval=24)


def test_four_learners_and_two_controls(arms: list[Arm]) -> None:
    learners = [arm for arm in arms if not arm.is_control]
    controls = [arm for arm in arms if arm.is_control]
    assert sorted(arm.method for arm in learners) == ["DPO", "RL", "SFT", "SFT"]
    assert [arm.learning_rate == 0 for arm in controls] == [True, False]
    assert len({(arm.rank, arm.learning_rate) for arm in learners}) == 4
    assert len({arm.label for arm in arms}) == 6


def test_controls_are_measured_on_the_prompts_of_what_they_control(arms: list[Arm]) -> None:
    by_name = {arm.name: arm for arm in arms}
    assert by_name["rate 0"].eval_prompts == by_name["sums"].eval_prompts
    assert by_name["shuffled rewards"].eval_prompts == by_name["sums"].eval_prompts


def test_evaluation_prompts_are_unseen(arms: list[Arm]) -> None:
    told = check_held_out(arms, num_documents=2000)
    assert told.startswith("none of the ")


def test_an_evaluation_prompt_that_is_trained_on_is_refused(arms: list[Arm]) -> None:
    learned = min(arms[1].recipe.prompts())
    cheat = replace(arms[1], eval_prompts=arms[1].eval_prompts | {learned})
    with pytest.raises(ValueError, match="also occurs in training"):
        check_held_out([cheat], num_documents=1)


def test_an_evaluation_prompt_of_pretraining_is_refused(arms: list[Arm]) -> None:
    first = next(tiny_text.documents(seed=0))
    cheat = replace(arms[0], eval_prompts=frozenset({first.tokens[: first.answer_start]}))
    with pytest.raises(ValueError, match="also occurs in pretraining"):
        check_held_out([cheat], num_documents=10)


def test_the_common_prompts_ask_for_one_held_out_sum() -> None:
    plain, question = COMMON_PROMPTS
    a, b = plain.removesuffix("=").split("+")
    assert question == f"What is {a}+{b}?"
    assert tiny_text.is_held_out(int(a), int(b))
