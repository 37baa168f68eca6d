"""The demo: several tenants train and sample at the same time on one engine, with controls."""

import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ...client.service import ServiceClient
from ...client.training import TrainingClient
from ..trace import EngineStats, read_stats
from .arms import COMMON_PROMPTS, Arm, check_held_out, common_answers, standard_arms
from .progress import Progress, Row
from .report import ArmResult, DemoReport

REDRAW_S = 0.5  # on a terminal
PRINT_S = 10.0  # elsewhere


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """How long the demo runs and how much it measures."""

    base_model: str = "weft/tiny"
    seconds: float = 120.0  # of training, all tenants together; a step under way is finished
    max_steps: int = 1000  # of each tenant
    num_eval: int = 256  # held-out prompts of each tenant, as far as there are so many
    seed: int = 0


def run_demo(
    connect: Callable[[], ServiceClient],
    config: DemoConfig,
    out: TextIO,
    *,
    arms: Sequence[Arm] | None = None,
    read_stats: Callable[[], EngineStats] | None = None,
) -> DemoReport:
    """Train all arms at once, each in a session of its own, and measure before and after.

    Args:
        connect: opens a session, such as `Engine.client`.
        out: where progress goes; redrawn in place when it is a terminal.
        arms: None runs the standard ones.
        read_stats: the engine's counters so far; without it the report has no such lines.

    Raises:
        ValueError: an evaluation prompt occurs in training or pretraining.
        WeftError: a tenant's call failed.
    """
    chosen = standard_arms(config.num_eval) if arms is None else arms
    checked = check_held_out(chosen)
    progress = Progress([Row(arm.label, arm.method, arm.progress) for arm in chosen])
    race = _Race(config, len(chosen), read_stats)
    with ThreadPoolExecutor(len(chosen), "demo") as pool:
        futures = [pool.submit(_run_arm, arm, connect, race, progress) for arm in chosen]
        shower = threading.Thread(target=_show, args=(progress, out))
        shower.start()
        try:
            results = _results(futures)
        finally:
            race.abort()
            progress.finish()
            shower.join()
    with connect() as service:
        sampler = service.create_sampling_client(base_model=config.base_model)
        base_samples = common_answers(sampler)
    return DemoReport(
        arms=results,
        seconds=race.seconds,
        prompts=COMMON_PROMPTS,
        base_samples=base_samples,
        stats=race.stats,
        checks=[checked],
    )


def main(*, is_quick: bool = False) -> int:
    """Run the demo on a worker of its own; returns the exit status."""
    from ..embedded import Engine

    config = DemoConfig(max_steps=2, num_eval=16) if is_quick else DemoConfig()
    started = time.monotonic()
    print("weft demo: one engine, one base model (weft/tiny, 1.0 M parameters), six tenants")
    with (
        tempfile.TemporaryDirectory() as folder,
        Engine(config.base_model, isolate=True, trace=f"{folder}/trace.json") as engine,
    ):
        print(f"engine ready after {time.monotonic() - started:.0f} s", flush=True)
        report = run_demo(
            engine.client,
            config,
            sys.stdout,
            read_stats=lambda: read_stats(Path(folder) / "trace.json"),
        )
    print(f"\n{report}\n\n{time.monotonic() - started:.0f} s in all")
    failures = [] if is_quick else report.failures()
    for failure in failures:
        print(f"not as expected: {failure}")
    return 1 if failures else 0


class _Race:
    """Holds the tenants until all have been measured, then gives them one common deadline."""

    def __init__(
        self, config: DemoConfig, num_arms: int, read_stats: Callable[[], EngineStats] | None
    ) -> None:
        self.config = config
        self._read_stats = read_stats
        self._gate = threading.Barrier(num_arms, self._mark)
        self._marks: list[tuple[float, EngineStats | None]] = []

    def wait(self) -> None:
        """Wait for all tenants: called by each before training, and again after."""
        self._gate.wait()

    def abort(self) -> None:
        """Let go of those that wait for a tenant that has failed."""
        self._gate.abort()

    def is_over(self, num_steps: int) -> bool:
        """Tell a tenant whether to stop; a failure of another one ends it for all."""
        is_late = time.monotonic() >= self._marks[0][0] + self.config.seconds
        return is_late or num_steps >= self.config.max_steps or self._gate.broken

    @property
    def seconds(self) -> float:
        return self._marks[1][0] - self._marks[0][0]

    @property
    def stats(self) -> EngineStats | None:
        before, after = self._marks[0][1], self._marks[1][1]
        return None if before is None or after is None else after.since(before)

    def _mark(self) -> None:
        stats = None if self._read_stats is None else self._read_stats()
        self._marks.append((time.monotonic(), stats))


def _results(futures: Sequence[Future[ArmResult]]) -> list[ArmResult]:
    """Wait for all tenants; raise the failure that the others ended for."""
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result() for future in futures]


def _run_arm(
    arm: Arm, connect: Callable[[], ServiceClient], race: _Race, progress: Progress
) -> ArmResult:
    try:
        with connect() as service:
            training = service.create_lora_training_client(
                race.config.base_model, rank=arm.rank, seed=race.config.seed
            ).result()
            return _train(arm, training, race, progress)
    except BaseException:
        race.abort()
        raise


def _train(arm: Arm, training: TrainingClient, race: _Race, progress: Progress) -> ArmResult:
    rng = random.Random(f"{race.config.seed} {arm.name}")
    progress.set_phase(arm.label, "measuring")
    before = arm.measure(training)
    arm.recipe.prepare(training)
    progress.set_phase(arm.label, "ready")
    race.wait()
    num_steps = 0
    while not race.is_over(num_steps):
        value = arm.recipe.step(training, rng)
        num_steps += 1
        progress.add_step(arm.label, value)
    progress.set_phase(arm.label, "trained")
    race.wait()
    progress.set_phase(arm.label, "measuring")
    after = arm.measure(training)
    samples = common_answers(training.save_weights_and_get_sampling_client())
    progress.set_phase(arm.label, "done")
    return ArmResult(
        name=arm.name,
        method=arm.method,
        rank=arm.rank,
        learning_rate=arm.learning_rate,
        steps=num_steps,
        metric=arm.metric,
        is_higher_better=arm.is_higher_better,
        is_control=arm.is_control,
        before=before,
        after=after,
        samples=samples,
    )


def _show(progress: Progress, out: TextIO) -> None:
    """Print the progress until it ends: a table drawn anew on a terminal, else a line at times."""
    started = time.monotonic()
    is_terminal = out.isatty()
    num_drawn = 0
    is_finished = False
    while not is_finished:
        is_finished = progress.wait(REDRAW_S if is_terminal else PRINT_S)
        seconds = time.monotonic() - started
        if is_terminal:
            lines = progress.table(seconds)
            out.write(f"\x1b[{num_drawn}F\x1b[J" if num_drawn else "")
            out.write("".join(f"{line}\n" for line in lines))
            num_drawn = len(lines)
        elif not is_finished:
            out.write(f"{progress.line(seconds)}\n")
        out.flush()
