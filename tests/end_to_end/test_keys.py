"""Keys of whole servers: what `weft serve` says of them, and tenants of an engine in process."""

import subprocess
import sys
from pathlib import Path

import pytest
from processes import serving

from weft.client import ServiceClient
from weft.client.errors import BadRequest, Unauthorized
from weft.engine import Engine
from weft.engine.broker.key_store import KeyStore

TIMEOUT_S = 60  # a hang guard


def runs_of(client: ServiceClient) -> list[str]:
    listed = client.create_rest_client().list_training_runs().result(TIMEOUT_S)
    return [run.training_run_id for run in listed.training_runs]


def test_a_serving_process_takes_a_key_made_beside_it(model_path: str, tmp_path: Path) -> None:
    store = KeyStore(tmp_path)
    with serving(model_path, tmp_path, "--memory-bytes", "1000000000") as served:
        assert served.process.stdout is not None
        assert (
            "no API keys: whoever connects is the tenant local" in served.process.stdout.readline()
        )
        _, secret = store.create("alice")
        with ServiceClient(base_url=served.address, api_key=secret) as client:
            client.create_lora_training_client(model_path, rank=4)
            assert len(runs_of(client)) == 1
        with (
            ServiceClient(base_url=served.address, api_key="") as client,
            pytest.raises(Unauthorized, match="the API key is missing"),
        ):
            client.get_status().result(TIMEOUT_S)


def test_an_engine_in_process_has_any_tenant(engine: Engine) -> None:
    with engine.client(tenant="blue") as blue, engine.client(tenant="green") as green:
        made = [
            client.create_lora_training_client(_model(client), rank=4) for client in (blue, green)
        ]
        assert [runs_of(blue), runs_of(green)] == [[run.model_id] for run in made]
    with pytest.raises(BadRequest, match="tenant"):
        engine.client(tenant="operator")


def _model(client: ServiceClient) -> str:
    return client.get_server_capabilities().supported_models[0].model_name or ""


def test_a_server_does_not_start_with_damaged_keys(tmp_path: Path) -> None:
    (tmp_path / "keys.sqlite").write_text("not a database")
    command = [sys.executable, "-P", "-m", "weft.engine", "serve", "--state", str(tmp_path)]
    command += ["--listen", f"ipc://{tmp_path}/weft"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 1
    assert f"weft: the file of API keys {tmp_path}/keys.sqlite is damaged" in done.stderr
