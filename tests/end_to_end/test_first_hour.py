"""The errors everybody meets first say what to do; docs/first_hour.md is the table."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import free_port, serving

from weft.client import Disconnected, NotFound, ServiceClient


def weft(*arguments: str) -> tuple[int, str]:
    """Run the command line; returns status and stderr."""
    command = [sys.executable, "-P", "-m", "weft.engine", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    return done.returncode, done.stderr


def test_an_absent_server_is_named_within_ten_seconds() -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    start = time.monotonic()
    with (
        ServiceClient(base_url=address) as service,
        pytest.raises(Disconnected, match=f"{address}.*weft serve"),
    ):
        service.get_server_capabilities()
    assert time.monotonic() - start < 10


def test_a_taken_port_and_an_unknown_model_are_named(model_path: str, tmp_path: Path) -> None:
    with serving(model_path, tmp_path, "--memory-bytes", "1000000000") as served:
        status, err = weft("serve", model_path, "--listen", served.address)
        assert status == 1
        assert served.address in err
        assert "is taken" in err
        with (
            ServiceClient(base_url=served.address) as service,
            pytest.raises(NotFound, match="no/such") as caught,
        ):
            service.create_lora_training_client("no/such")
        assert model_path in str(caught.value)
        status, err = weft("status", "--address", served.address)
        assert status == 0, err


def test_an_address_beyond_loopback_needs_insecure(model_path: str) -> None:
    status, err = weft("serve", model_path, "--listen", f"tcp://0.0.0.0:{free_port()}")
    assert status == 1
    assert "--insecure" in err


def test_a_model_that_does_not_fit_says_how_much_it_needs(model_path: str) -> None:
    listen = f"tcp://127.0.0.1:{free_port()}"
    status, err = weft("serve", model_path, "--listen", listen, "--memory-bytes", "100000")
    assert status == 1
    assert "model needs" in err
    assert "are free" in err


def test_a_missing_directory_and_missing_files_are_named(tmp_path: Path) -> None:
    status, err = weft(
        "serve", str(tmp_path / "none"), "--listen", f"tcp://127.0.0.1:{free_port()}"
    )
    assert status == 1
    assert f"no model directory '{tmp_path / 'none'}'" in err
    status, err = weft("serve", str(tmp_path), "--listen", f"tcp://127.0.0.1:{free_port()}")
    assert status == 1
    assert "lacks config.json and *.safetensors" in err


def test_triton_kernels_without_a_device_are_named(
    model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # with it, a CPU will do
    listen = f"tcp://127.0.0.1:{free_port()}"
    options = ("--device", "cpu", "--kernels", "triton", "--listen", listen)
    status, err = weft("serve", model_path, *options)
    assert status == 1
    assert "weft: kernels triton was asked for, which need a CUDA device, not cpu" in err


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_cuda_without_cuda_is_named(model_path: str) -> None:
    listen = f"tcp://127.0.0.1:{free_port()}"
    status, err = weft("serve", model_path, "--device", "cuda", "--listen", listen)
    assert status == 1
    assert "device cuda was asked for, but this torch is built without CUDA" in err


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'torch' else find(name, *rest)\n"
        "from weft.engine.__main__ import main; sys.exit(main(['demo']))"
    )
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "torch not installed: the engine needs pip install 'weft[engine]'" in done.stderr
