"""The SDK's `tinker` command: all of it but billing, login and the hub."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import Server, script, surroundings
from talking import since, step

Command = Callable[..., str]


@pytest.fixture
def paths(trainer: Any) -> dict[str, str]:
    """A run with one checkpoint of each kind."""
    step(trainer)
    return {
        "run": trainer.get_info().model_id,
        "state": trainer.save_state("one").result().path,
        "sampler": trainer.save_weights_for_sampler("two").result().path,
    }


def test_runs(tinker_command: Command, paths: dict[str, str]) -> None:
    listed = json.loads(tinker_command("--format", "json", "run", "list", "--limit", "1"))
    assert [run["training_run_id"] for run in listed["runs"]] == [paths["run"]]
    assert paths["run"] in tinker_command("--format", "json", "run", "info", paths["run"])


def test_lists_of_checkpoints(tinker_command: Command, paths: dict[str, str]) -> None:
    of_run = tinker_command("--format", "json", "checkpoint", "list", "--run-id", paths["run"])
    listed = {each["tinker_path"] for each in json.loads(of_run)["checkpoints"]}
    assert listed == {paths["state"], paths["sampler"]}
    newest = json.loads(tinker_command("--format", "json", "checkpoint", "list", "--limit", "2"))
    assert {each["tinker_path"] for each in newest["checkpoints"]} == listed


def test_a_checkpoint_is_changed(tinker_command: Command, paths: dict[str, str], rest: Any) -> None:
    def told() -> tuple[bool, bool]:
        said = json.loads(tinker_command("--format", "json", "checkpoint", "info", paths["state"]))
        assert (said["is_lora"], said["lora_rank"]) == (True, 4)
        return said["public"], said["expires_at"] is not None

    assert told() == (False, False)
    tinker_command("checkpoint", "publish", paths["state"])
    tinker_command("checkpoint", "set-ttl", paths["state"], "--ttl", "3600")
    assert told() == (True, True)
    tinker_command("checkpoint", "unpublish", paths["state"])
    tinker_command("checkpoint", "set-ttl", paths["state"], "--remove")
    assert told() == (False, False)


def test_checkpoints_are_deleted(tinker_command: Command, paths: dict[str, str], rest: Any) -> None:
    tinker_command("checkpoint", "delete", "--yes", paths["sampler"])
    tinker_command("checkpoint", "delete", "--yes", "--run-id", paths["run"])
    assert rest.list_checkpoints(paths["run"]).result().checkpoints == []
    said = tinker_command("--format", "json", "checkpoint", "delete", "--yes", paths["state"])
    assert json.loads(said)["deleted_count"] == 0


def test_a_checkpoint_is_downloaded(
    tinker_command: Command, paths: dict[str, str], rest: Any, tmp_path: Path
) -> None:
    tinker_command("checkpoint", "download", paths["state"], "--output", str(tmp_path))
    (folder,) = tmp_path.iterdir()
    config = json.loads(next(folder.rglob("adapter_config.json")).read_text())
    assert (config["r"], config["peft_type"]) == (4, "LORA")
    assert next(folder.rglob("adapter_model.safetensors")).stat().st_size > 10_000
    # The temporary export is gone again, and what was downloaded is not.
    newest = rest.list_user_checkpoints(limit=3).result().checkpoints
    assert not [each for each in newest if each.checkpoint_type == "external"]
    assert paths["state"] in [each.tinker_path for each in newest]


def test_who_may_use_it(server: Server) -> None:
    """In a process of its own, as a user would."""
    command = [script("tinker"), "auth", "status"]
    ran = subprocess.run(
        command, env=surroundings(server), capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert "accessible: yes" in ran.stdout


@since(0, 36)
def test_models(tinker_command: Command) -> None:
    assert "weft/tiny" in tinker_command("model", "list")


def test_what_is_not_served_is_refused_at_once(
    tinker_command: Command, paths: dict[str, str]
) -> None:
    session_id = paths["run"].split(":")[0]
    assert "trace" in tinker_command("session", "export-trace", session_id, fails=True)


def test_unknown_things_are_not_found(tinker_command: Command) -> None:
    assert "not found" in tinker_command("run", "info", "0" * 32 + ":train:0", fails=True).lower()


@since(0, 36)
def test_external_weights_are_downloaded(
    tinker_command: Command, trainer: Any, tmp_path: Path
) -> None:
    path = trainer.save_weights_external("out").result().path
    tinker_command("checkpoint", "download", path, "--output", str(tmp_path))
    assert len(list(tmp_path.rglob("adapter_*"))) == 2
