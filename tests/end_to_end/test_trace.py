"""A trace tells where the time of a whole engine went, and whose it was."""

from pathlib import Path

from tenants import train

from weft.client import ModelInput, SamplingParams
from weft.engine import Engine
from weft.engine.trace import read_stats, read_trace


def test_a_trace_names_every_phase_and_its_tenants(model_path: str, tmp_path: Path) -> None:
    trace = tmp_path / "run.trace.json"
    with Engine(model_path, memory_bytes=1 << 30, trace=str(trace)) as engine:
        with engine.client() as service:
            run = service.create_lora_training_client(model_path, rank=4)
            train(run, 1, 2)
            sampler = run.save_weights_and_get_sampling_client()
            params = SamplingParams(max_tokens=3, stop=[])
            sampler.sample(ModelInput.from_ints([1, 2]), 1, params).result(60)
        stats = read_stats(trace)
    spans = read_trace(trace)
    names = {"decode", "plan", "forward", "head", "backward", "optimizer", "sample", "train_step"}
    assert names <= {span["name"] for span in spans}
    (first, *_) = (span["args"] for span in spans if span["name"] == "train_step")
    assert (first["tenants"], first["tokens"]) == (1, 49)
    assert first["lanes"] == [f"local/{run.model_id.split(':')[0]}"]
    assert stats.batches_by_tenants == {1: 2}
