"""The three pictures: one synchronous RL tenant, one pipelined SFT tenant, many RL tenants.

    python bench/pictures.py [--seconds 20] [--quick]

Every tenant is a session of its own behind a link of 200 ms round trip (`delay_proxy.py`). The base
is a random Qwen3 of at least 64 M parameters with vocabulary 151,936. An RL step is: sample four
answers, one forward_backward on them, optim_step, snapshot; strictly one after the other, as online
RL is. Reported for 1, 2, 4, 8, 16 such tenants:

    goodput   sampled and trained tokens per second inside the window
    busy      share of the window in which the compute thread was inside a step, from its trace
    saturated the goodput of 16 tenants without the link: what the engine gives when never waiting
    unfused   the same tenants with one run a step
"""

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from delay_proxy import DelayProxy
from harness import Table, save_random_qwen3, write_result

from weft.client import (
    AdamParams,
    Datum,
    ModelInput,
    SamplingParams,
    ServiceClient,
    TrainingClient,
)
from weft.engine import Engine
from weft.engine.trace import STEPS, read_trace

ROUND_TRIP_S = 0.2
VOCAB_SIZE = 151_936
PROMPT_TOKENS, NEW_TOKENS, NUM_SAMPLES = 16, 16, 4
SFT_TOKENS, SFT_DATUMS, SFT_DEPTH = 128, 2, 4
PICTURES = Path(__file__).resolve().parents[1] / "docs" / "pictures"


@dataclass
class Phase:
    """A stretch in which a tenant waited for an answer. Seconds since the epoch."""

    name: str  # "sample" or "train"
    start: float
    end: float


@dataclass
class Tenant:
    """What one tenant did."""

    lane: str = ""
    phases: list[Phase] = field(default_factory=list)
    tokens: list[tuple[float, int]] = field(default_factory=list)  # (time, tokens) of each answer


@dataclass
class Outcome:
    """One scenario inside its window."""

    name: str
    start: float
    end: float
    tenants: list[Tenant]
    spans: list[dict[str, Any]]

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def goodput(self) -> float:
        """Tokens per second."""
        done = sum(n for t in self.tenants for at, n in t.tokens if self.start <= at < self.end)
        return done / self.seconds

    @property
    def busy(self) -> float:
        """Share of the window inside steps of the compute thread."""
        inside = 0.0
        for first, last in self.steps():
            inside += max(0.0, min(last, self.end) - max(first, self.start))
        return inside / self.seconds

    @property
    def tenants_per_batch(self) -> float:
        """Mean over train steps."""
        counts = [s["args"]["tenants"] for s in self.spans if s["name"] == "train_step"]
        return float(np.mean(counts)) if counts else 0.0

    def steps(self, lane: str = "") -> list[tuple[float, float]]:
        """(start, end) of each step, of one tenant or all; seconds since the epoch."""
        return [
            (span["ts"] / 1e6, (span["ts"] + span["dur"]) / 1e6)
            for span in self.spans
            if span["name"] in STEPS and (not lane or lane in _lanes(span))
        ]


def _lanes(span: dict[str, Any]) -> list[str]:
    lanes: list[str] = span["args"].get("lanes") or [span["args"].get("lane", "")]
    return lanes


def save_model(path: Path) -> int:
    """Write the random base model; returns its number of parameters."""
    return save_random_qwen3(
        path,
        width=512,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=1536,
        max_position_embeddings=4096,
        vocab_size=VOCAB_SIZE,
        num_hidden_layers=4,
    )


def rl_tenant(run: TrainingClient, tenant: Tenant, deadline: float, seed: int) -> None:
    """Online RL: every call waits for the one before."""
    generator = np.random.default_rng(seed)
    prompt = ModelInput.from_ints(generator.integers(0, VOCAB_SIZE, PROMPT_TOKENS).tolist())
    params = SamplingParams(max_tokens=NEW_TOKENS, stop=[], seed=seed)
    sampler = run.save_weights_and_get_sampling_client()
    while time.time() < deadline:
        start = time.time()
        answers = sampler.sample(prompt, NUM_SAMPLES, params).result(300).sequences
        middle = time.time()
        tenant.phases.append(Phase("sample", start, middle))
        tenant.tokens.append((middle, NUM_SAMPLES * NEW_TOKENS))
        advantages = generator.standard_normal(NUM_SAMPLES)
        data = []
        for answer, advantage in zip(answers, advantages, strict=True):
            tokens = prompt.to_ints() + list(answer.tokens)
            zeros = np.zeros(PROMPT_TOKENS - 1, np.float32)
            told = np.array(answer.logprobs, np.float32)
            data.append(
                Datum(
                    ModelInput.from_ints(tokens[:-1]),
                    {
                        "target_tokens": np.array(tokens[1:]),
                        "logprobs": np.concatenate([zeros, told]),
                        "advantages": np.concatenate([zeros, np.full(NEW_TOKENS, advantage)]),
                    },
                )
            )
        passed = run.forward_backward(data, "importance_sampling")
        run.optim_step(AdamParams(learning_rate=1e-5))
        sampler = run.save_weights_and_get_sampling_client()
        passed.result(300)
        end = time.time()
        tenant.phases.append(Phase("train", middle, end))
        tenant.tokens.append((end, sum(datum.model_input.length for datum in data)))


def sft_tenant(run: TrainingClient, tenant: Tenant, deadline: float, seed: int) -> None:
    """Supervised fine-tuning with several batches under way."""
    generator = np.random.default_rng(seed)
    pending: list[tuple[float, Any]] = []
    while time.time() < deadline or pending:
        while time.time() < deadline and len(pending) < SFT_DEPTH:
            data = []
            for _ in range(SFT_DATUMS):
                tokens = generator.integers(0, VOCAB_SIZE, SFT_TOKENS + 1)
                data.append(
                    Datum(ModelInput.from_ints(tokens[:-1].tolist()), {"target_tokens": tokens[1:]})
                )
            pending.append((time.time(), run.forward_backward(data, "cross_entropy")))
            run.optim_step(AdamParams(learning_rate=1e-5))
        start, passed = pending.pop(0)
        passed.result(300)
        tenant.phases.append(Phase("train", start, time.time()))
        tenant.tokens.append((time.time(), SFT_DATUMS * SFT_TOKENS))


Work = Callable[[TrainingClient, Tenant, float, int], None]


class Server:
    """A spawned engine with its trace and a slow link to it."""

    def __init__(self, model: Path, folder: Path, is_fused: bool) -> None:
        self.trace = folder / f"trace-{'fused' if is_fused else 'unfused'}.json"
        port = _free_port()
        self.model = str(model)
        self.near = f"tcp://127.0.0.1:{port}"
        self._engine = Engine(
            self.model,
            isolate=True,
            listen=[self.near],
            trace=str(self.trace),
            is_fused=is_fused,
        )
        self._proxy = DelayProxy(port, ROUND_TRIP_S / 2)
        self.far = f"tcp://127.0.0.1:{self._proxy.port}"

    def scenario(self, name: str, number: int, work: Work, seconds: float, address: str) -> Outcome:
        """Let tenants work; the window opens when all have done their first step."""
        tenants = [Tenant() for _ in range(number)]
        deadline = [time.time() + 3600]
        errors: list[BaseException] = []

        def live(place: int) -> None:
            try:
                with ServiceClient(base_url=address) as service:
                    run = service.create_lora_training_client(self.model, rank=16, seed=place)
                    tenants[place].lane = f"local/{run.model_id.split(':')[0]}"
                    first = Tenant()
                    work(run, first, time.time() + 0.01, place)
                    ready.wait(300)
                    while time.time() < deadline[0]:
                        work(run, tenants[place], deadline[0], place)
            except BaseException as error:
                errors.append(error)
                ready.abort()

        def open_window() -> None:
            deadline[0] = time.time() + seconds + 2.0

        ready = threading.Barrier(number, action=open_window)
        threads = [threading.Thread(target=live, args=(place,)) for place in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        end = deadline[0] - 1.0
        return Outcome(name, end - seconds, end, tenants, [])

    def close(self, outcomes: list[Outcome]) -> None:
        """Stop, and hand every scenario its part of the trace."""
        self._proxy.close()
        self._engine.close()
        spans = read_trace(self.trace)
        for outcome in outcomes:
            outcome.spans = [
                span for span in spans if outcome.start - 5 < span["ts"] / 1e6 < outcome.end + 5
            ]


@contextmanager
def serving(model: Path, folder: Path, is_fused: bool) -> Iterator[tuple[Server, list[Outcome]]]:
    """A server whose outcomes get their traces at the end."""
    server, outcomes = Server(model, folder, is_fused), []  # type: tuple[Server, list[Outcome]]
    try:
        yield server, outcomes
    finally:
        server.close(outcomes)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Measure all scenarios, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="window of each scenario")
    parser.add_argument("--quick", action="store_true", help="1 and 8 tenants, no drawing")
    arguments = parser.parse_args()
    seconds = 8.0 if arguments.quick else arguments.seconds
    numbers = (1, 8) if arguments.quick else (1, 2, 4, 8, 16)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        parameters = save_model(folder / "model")
        print(f"random Qwen3 of {parameters / 1e6:.0f} M parameters, vocabulary {VOCAB_SIZE}")
        with serving(folder / "model", folder, is_fused=True) as (server, outcomes):
            local_one = server.scenario("local", 1, rl_tenant, seconds, server.near)
            saturated = server.scenario("saturated", 16, rl_tenant, seconds, server.near)
            sft = server.scenario("SFT", 1, sft_tenant, seconds, server.far)
            remote = {
                number: server.scenario(f"{number} RL", number, rl_tenant, seconds, server.far)
                for number in numbers
            }
            outcomes += [local_one, saturated, sft, *remote.values()]
        with serving(folder / "model", folder, is_fused=False) as (server, outcomes):
            unfused = {
                number: server.scenario(f"{number} RL", number, rl_tenant, seconds, server.far)
                for number in numbers
                if number in (1, 8, 16)
            }
            outcomes += unfused.values()
    step_s = _step_seconds(local_one)
    table = Table("scenario", "goodput tok/s", "of saturated", "busy", "tenants/batch", "load")
    rows = []
    fused_step_s = _step_seconds(saturated) / 16
    gap_s = _step_seconds(remote[1]) - step_s
    for name, outcome in [
        ("1 RL, no link", local_one),
        ("16 RL, no link (saturated)", saturated),
        ("1 SFT pipelined", sft),
        *((f"{number} RL", outcome) for number, outcome in remote.items()),
        *((f"{number} RL, unfused", outcome) for number, outcome in unfused.items()),
    ]:
        number = len(outcome.tenants)
        load = number * fused_step_s / (gap_s + fused_step_s)
        row = {
            "scenario": name,
            "tenants": number,
            "goodput": outcome.goodput,
            "of_saturated": outcome.goodput / saturated.goodput,
            "busy": outcome.busy,
            "tenants_per_batch": outcome.tenants_per_batch,
            "offered_load": load,
        }
        rows.append(row)
        table.row(
            name,
            f"{outcome.goodput:.0f}",
            f"{row['of_saturated']:.2f}",
            f"{outcome.busy:.1%}",
            f"{outcome.tenants_per_batch:.1f}",
            f"{load:.2f}",
        )
    print(f"one tenant's compute per step {step_s * 1e3:.0f} ms, gaps {gap_s * 1e3:.0f} ms")
    print("goals where load >= 1.2 (or 8 tenants): of saturated >= 0.9, busy >= 95 %")
    write_result(
        "pictures_quick" if arguments.quick else "pictures",
        {"parameters": parameters, "step_s": step_s, "gap_s": gap_s, "rows": rows},
    )
    if not arguments.quick:
        from draw_pictures import draw

        draw(remote, sft, unfused, saturated, PICTURES)


def _step_seconds(outcome: Outcome) -> float:
    """Median seconds from one step of a tenant to its next."""
    starts = [
        [phase.start for phase in tenant.phases if phase.name == "sample"]
        for tenant in outcome.tenants
    ]
    return float(np.median(np.concatenate([np.diff(times) for times in starts])))


if __name__ == "__main__":
    main()
