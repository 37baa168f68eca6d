"""Checkpoints as files: kept, changed, sent and taken by a real server."""

import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import make_adapter
from processes import free_port
from raw_client import RawClient
from safetensors.numpy import load
from tenants import logprobs, train

from weft.client import ModelInput, SamplingParams, ServiceClient, TrainingClient, transfers
from weft.client.arrays import pack_arrays
from weft.client.errors import BadRequest, Conflict, NotFound
from weft.client.file_messages import OpenUpload, WritePart
from weft.client.limits import limit
from weft.client.messages import Event, Failure, Reply, Watch
from weft.engine.embedded import Engine

PROMPT = ModelInput.from_ints([5, 17, 3])
GREEDY = SamplingParams(max_tokens=4, temperature=0.0, stop=[])


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def keeper(model_path: str, state: Path) -> Iterator[Engine]:
    """An engine whose directory of states is known, with an address for other processes."""
    listen = [f"tcp://127.0.0.1:{free_port()}"]
    with Engine(model_path, memory_bytes=1 << 30, state_dir=str(state), listen=listen) as running:
        yield running


@pytest.fixture
def client(keeper: Engine) -> Iterator[ServiceClient]:
    with keeper.client() as client:
        yield client


@pytest.fixture
def run(client: ServiceClient, model_path: str) -> TrainingClient:
    run = client.create_lora_training_client(model_path, rank=4, seed=3)
    train(run, 0, 2)
    return run


def files(state: Path, run: TrainingClient) -> list[str]:
    folder = state / run.model_id.replace(":", "_")
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_state_is_saved_with_or_without_its_optimizer(
    client: ServiceClient, run: TrainingClient
) -> None:
    whole = run.save_state("whole").result(60)
    light = run.save_state("light", include_optimizer=False).result(60)
    assert 2.5 < (whole.size_bytes or 0) / (light.size_bytes or 1) < 3.1
    rest = client.create_rest_client()
    found = rest.list_checkpoints(run.model_id).result(60).checkpoints
    assert {one.checkpoint_id: one.has_optimizer for one in found} == {
        "weights/whole": True,
        "weights/light": False,
    }
    with pytest.raises(NotFound, match="holds no optimizer state"):
        run.load_state_with_optimizer(light.path).result(60)
    before = logprobs(run)
    train(run, 7, 1)
    run.load_state(light.path).result(60)
    assert logprobs(run).tobytes() == before.tobytes()


def test_weights_keep_what_is_said_of_them_and_are_never_replaced(
    client: ServiceClient, run: TrainingClient
) -> None:
    saved = run.save_weights_for_sampler("w", user_metadata={"step": "2"}).result(60)
    rest = client.create_rest_client()
    (found,) = rest.list_checkpoints(run.model_id).result(60).checkpoints
    assert (found.user_metadata, found.expires_at) == ({"step": "2"}, None)
    with pytest.raises(Conflict, match="exists"):
        run.save_weights_for_sampler("w").result(60)
    info = rest.get_weights_info_by_tinker_path(saved.path or "").result(60)
    assert (info.lora_rank, info.train_unembed, info.has_optimizer) == (4, True, False)


def test_a_deleted_checkpoint_in_use_stays_in_use(
    client: ServiceClient, run: TrainingClient, state: Path
) -> None:
    path = run.save_weights_for_sampler("w").result(60).path or ""
    sampler = client.create_sampling_client(path)
    before = sampler.sample(PROMPT, 1, GREEDY).result(60).sequences[0].tokens
    rest = client.create_rest_client()
    rest.delete_checkpoint(run.model_id, "sampler_weights/w").result(60)
    assert files(state, run) == []
    assert sampler.sample(PROMPT, 1, GREEDY).result(60).sequences[0].tokens == before
    with pytest.raises(NotFound):
        client.create_sampling_client(path)
    with pytest.raises(NotFound):
        rest.delete_checkpoint_from_tinker_path(path).result(60)


def test_a_renamed_state_is_loaded_by_its_new_path(
    client: ServiceClient, run: TrainingClient, state: Path
) -> None:
    old = run.save_state("old").result(60).path
    rest = client.create_rest_client()
    new = rest.rename_checkpoint(old, "new").result(60)
    assert new == f"weft://{run.model_id}/weights/new"
    assert files(state, run) == ["weights/new.safetensors"]
    assert run.load_state_with_optimizer(new).result(60).path == new
    with pytest.raises(NotFound):
        run.load_state(old).result(60)
    run.save_state("old").result(60)
    with pytest.raises(Conflict, match="exists"):
        rest.rename_checkpoint(new, "old").result(60)


def test_what_has_lived_its_time_is_deleted(
    client: ServiceClient, run: TrainingClient, keeper: Engine, state: Path
) -> None:
    watcher = RawClient(keeper._context, keeper.address)
    watcher.send(Watch(request_id=1, enabled=True))
    watcher.answers(1)
    short = run.save_state("short", ttl_seconds=1).result(60).path
    kept = run.save_state("kept", ttl_seconds=2).result(60).path
    rest = client.create_rest_client()
    rest.set_checkpoint_ttl_from_tinker_path(kept, None).result(60)
    while not (isinstance(seen := watcher.receive(), Event) and seen.name == "checkpoint_expired"):
        pass
    watcher.socket.close()
    assert seen.fields == {"path": short}
    # A rename is done by the same thread, after the deletion.
    rest.rename_checkpoint(kept, "still").result(60)
    assert files(state, run) == ["weights/still.safetensors"]


def test_an_archive_has_the_whole_state(
    run: TrainingClient, client: ServiceClient, tmp_path: Path
) -> None:
    path = run.save_state("s").result(60).path
    rest = client.create_rest_client()
    target = rest.download_checkpoint(path, tmp_path / "s.tar", form="state")
    with tarfile.open(target) as archive:
        (member,) = archive.getmembers()
        file = archive.extractfile(member)
        assert file is not None
        tensors = load(file.read())
    assert member.name == "state.safetensors"
    assert len(tensors) == 3 * 2 * (2 * 7 + 1)
    assert any(name.startswith("moment2.lm_head") for name in tensors)
    with pytest.raises(BadRequest, match="exists"):
        rest.download_checkpoint(path, target)
    rest.download_checkpoint(path, target, unembed="separate", overwrite=True)
    with tarfile.open(target) as archive:
        assert len(archive.getnames()) == 4


def test_more_parts_than_may_be_on_their_way_arrive_whole(
    client: ServiceClient, tmp_path: Path, model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfers, "IN_FLIGHT", 2)
    run = client.create_lora_training_client(model_path, rank=256, seed=1)
    path = run.save_state("large").result(60).path
    target = client.create_rest_client().download_checkpoint(path, tmp_path / "a.tar", form="state")
    assert target.stat().st_size > 3 * limit("part_bytes")
    folder = client.create_rest_client().export_peft(path, tmp_path / "a")
    again = client.create_training_client_from_peft(folder, model_path)
    assert logprobs(again).tobytes() == logprobs(run).tobytes()


UPLOAD_AND_HANG = """
import sys
from weft.client import ServiceClient
from weft.client.file_messages import OpenUpload
from weft.client.transfers import Upload

client = ServiceClient(base_url=sys.argv[1])
session = client._session
path = f"weft://{session.new_run_id()}/weights/half"
sizes = {"adapter_model.safetensors": 9_000_000, "adapter_config.json": 700}
upload = Upload(session, lambda number: OpenUpload(
    request_id=number, path=path, base_model=sys.argv[2], sizes=sizes))
for part in range(3):
    upload._write(part, bytes(upload.part_bytes)).result()
print("half", flush=True)
sys.stdin.read()
"""


def test_a_client_killed_in_the_middle_of_an_upload_leaves_nothing(
    keeper: Engine, model_path: str, state: Path, client: ServiceClient
) -> None:
    before = {path for path in state.rglob("*") if path.is_file()}
    command = [sys.executable, "-P", "-c", UPLOAD_AND_HANG, keeper.addresses[0], model_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.kill()
    assert {path for path in state.rglob("*") if path.is_file()} == before
    kept = client.create_rest_client().list_user_checkpoints(1000).result(60).checkpoints
    assert "weights/half" not in [one.checkpoint_id for one in kept]


def test_a_part_that_was_damaged_on_its_way_is_refused(keeper: Engine, model_path: str) -> None:
    raw = RawClient(keeper._context, keeper.address)
    adapter = make_adapter()
    sizes = {name: len(data) for name, data in adapter.items()}
    path = f"weft://{raw.run_id}/weights/a"
    raw.send(OpenUpload(request_id=1, path=path, base_model=model_path, sizes=sizes))
    opened = raw.answers(1)[1]
    assert isinstance(opened, Reply)
    data = adapter["adapter_model.safetensors"] + adapter["adapter_config.json"]
    arrays, frames = pack_arrays({"data": np.frombuffer(data, np.uint8)})
    header = WritePart(
        request_id=2,
        transfer_id=opened.result["transfer_id"],
        part=0,
        digest=bytes(16),
        arrays=arrays,
    )
    raw.send(header, frames)
    answer = raw.answers(1)[2]
    raw.socket.close()
    assert isinstance(answer, Failure)
    assert (answer.code, "digest" in answer.detail) == ("bad_request", True)


def test_a_restart_finds_what_is_durable_and_removes_the_rest(
    model_path: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"memory_bytes": 1 << 30, "state_dir": str(tmp_path)}
    with Engine(model_path, **settings) as engine, engine.client() as client:
        run = client.create_lora_training_client(model_path, rank=2)
        saved = run.save_state("s", ttl_seconds=10**6, include_optimizer=False).result(60)
        before = logprobs(run)
    rest = tmp_path / run.model_id.replace(":", "_") / "weights" / ".t.safetensors.1.part"
    rest.write_bytes(b"half")
    with Engine(model_path, **settings) as engine, engine.client() as client:
        assert not rest.exists()
        (found,) = client.create_rest_client().list_user_checkpoints().result(60).checkpoints
        assert (found.tinker_path, found.has_optimizer) == (saved.path, False)
        assert abs((found.expires_at or 0) - found.time - 10**6) < 1e-3
        again = client.create_training_client_from_state(saved.path)
        assert logprobs(again).tobytes() == before.tobytes()
