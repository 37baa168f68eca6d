"""Programs by others: recipes of the tinker-cookbook, a few steps each."""

import importlib.resources
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from recipes import Recipe
from serving import Server

pytest.importorskip("tinker_cookbook", reason="only beside the newest SDK")
pytestmark = pytest.mark.timeout(300)

ARITHMETIC = {
    "env": "arithmetic",
    "group_size": 4,
    "groups_per_batch": 6,
    "learning_rate": 1e-3,
    "lora_rank": 8,
    "loss_fn": "importance_sampling",  # the recipe's own default is not served
    "max_tokens": 6,
    "max_steps": 3,
    "save_every": 2,
    "eval_every": 0,
}


GUESSING = {
    "group_size": 2,
    "batch_size": 1,
    "learning_rate": 1e-3,
    "max_tokens": 12,
    "max_steps": 2,
    "save_every": 0,
    "eval_every": 0,
}
CONVERSATIONS = {
    "learning_rate": 1e-3,
    "lora_rank": 8,
    "batch_size": 8,
    "max_length": 512,
    "max_steps": 8,
    "save_every": 2,
    "rolling_save_every": 1,
    "eval_every": 0,
}


@pytest.fixture(scope="module")
def started(
    server: Server, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Recipe]]:
    """Recipes that run at the same time, beside the one that is killed."""
    folder = tmp_path_factory.mktemp("recipes")
    start = partial(Recipe, server, home)
    running = {
        "arithmetic": start("math_rl.train", log_path=folder / "arithmetic", **ARITHMETIC),
        "off policy": start(
            "math_rl.train", log_path=folder / "off_policy", max_steps_off_policy=1, **ARITHMETIC
        ),
        "guessing": start(
            "multiplayer_rl.guess_number.train", log_path=folder / "guessing", **GUESSING
        ),
    }
    yield running
    for recipe in running.values():
        recipe.kill()


def test_conversations_are_learned_across_a_kill(
    started: dict[str, Recipe], server: Server, home: Path, tmp_path: Path
) -> None:
    fields = {**CONVERSATIONS, "dataset": _conversations(), "log_path": tmp_path / "log"}
    killed = Recipe(server, home, "chat_sl.train", **fields)
    killed.kill_when(lambda: any(row["name"] == "000004" for row in killed.checkpoints()))
    before = _losses(killed)
    assert max(before) < 7
    resumed = Recipe(server, home, "chat_sl.train", **fields, behavior_if_log_dir_exists="resume")
    resumed.finish()
    after = _losses(resumed)
    assert sorted(after) == list(range(8))
    assert all(after[step] == before[step] for step in range(4))
    # Weights that begin anew would be where the first step was.
    assert max(after[4], after[5]) < 0.9 * after[0]
    assert resumed.checkpoints()[-1]["name"] == "final"


def test_arithmetic_by_reinforcement(started: dict[str, Recipe]) -> None:
    recipe = started["arithmetic"]
    recipe.finish()
    steps = _steps(recipe)
    assert len(steps) == 3
    # Samples and training agree on what was sampled.
    assert all(abs(row["optim/kl_sample_train_v1"]) < 1e-2 for row in steps)
    assert [row["name"] for row in recipe.checkpoints()] == ["000002", "final"]


def test_arithmetic_off_policy(started: dict[str, Recipe]) -> None:
    """Sampling goes on from old weights while new ones are trained."""
    recipe = started["off policy"]
    recipe.finish()
    assert len(_steps(recipe)) == 3
    assert recipe.checkpoints()[-1]["name"] == "final"


def test_guessing_numbers_turn_by_turn(started: dict[str, Recipe]) -> None:
    recipe = started["guessing"]
    recipe.finish()
    turns = [row["env/all/turns_per_episode"] for row in _steps(recipe)]
    assert len(turns) == 2
    assert min(turns) > 1
    assert recipe.checkpoints()[-1]["name"] == "final"


def _steps(recipe: Recipe) -> list[dict[str, Any]]:
    return [row for row in recipe.metrics() if "optim/kl_sample_train_v1" in row]


def _losses(recipe: Recipe) -> dict[int, float]:
    return {row["step"]: row["train_mean_nll"] for row in recipe.metrics()}


def _conversations() -> Path:
    found = importlib.resources.files("tinker_cookbook") / "example_data" / "conversations.jsonl"
    return Path(str(found))
