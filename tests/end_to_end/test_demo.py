"""The demo on a real engine, a few steps of it, and what it does when a tenant fails."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from weft.client import TrainingClient
from weft.engine import Engine
from weft.engine.demo.arms import Arm, standard_arms
from weft.engine.demo.recipes import Supervised
from weft.engine.demo.run import DemoConfig, run_demo
from weft.engine.trace import EngineStats

CONFIG = DemoConfig(max_steps=2, num_eval=8)


@pytest.fixture(scope="module")
def tiny_engine() -> Iterator[Engine]:
    with Engine("weft/tiny", memory_bytes=1 << 30) as running:
        yield running


@pytest.fixture(scope="module")
def arms() -> list[Arm]:
    return standard_arms(CONFIG.num_eval)


@dataclass(kw_only=True)
class Failing(Supervised):
    """A tenant whose own code has a bug."""

    def prepare(self, training: TrainingClient) -> None:
        raise RuntimeError("the tenant's own bug")


def test_all_tenants_train_and_the_report_is_complete(tiny_engine: Engine, arms: list[Arm]) -> None:
    out = io.StringIO()
    stats = iter(
        EngineStats(wall_s=wall_s, busy_s=wall_s / 2, batches_by_tenants={6: int(wall_s)})
        for wall_s in (1.0, 5.0)
    )
    report = run_demo(tiny_engine.client, CONFIG, out, arms=arms, read_stats=lambda: next(stats))
    assert [arm.steps for arm in report.arms] == [2] * 6
    assert all(len(arm.before.values) == len(arm.after.values) > 0 for arm in report.arms)
    assert report.stats == EngineStats(wall_s=4.0, busy_s=2.0, batches_by_tenants={6: 4})
    still = next(arm for arm in report.arms if arm.learning_rate == 0)
    assert not any(still.change.values)
    lines = next(arm for arm in report.arms if arm.name == "docstrings")
    assert lines.gain_sigmas > 0
    assert len(str(report).splitlines()) > 18


def test_a_tenants_failure_ends_the_demo_with_its_own_error(
    tiny_engine: Engine, arms: list[Arm]
) -> None:
    recipe = arms[2].recipe
    assert isinstance(recipe, Supervised)
    bad = Failing(items=recipe.items, batch_size=1, learning_rate=1e-3)
    with pytest.raises(RuntimeError, match="the tenant's own bug"):
        run_demo(
            tiny_engine.client, CONFIG, io.StringIO(), arms=[arms[1], replace(arms[2], recipe=bad)]
        )
