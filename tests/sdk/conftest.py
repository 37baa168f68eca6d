"""One server for all tests, started by Weft's own environment, and the official SDK's clients."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Server, start
from talking import rest_of, settled
from tinker import ServiceClient
from tinker.cli.__main__ import main as tinker_main

# A client that is told no address must not look for the hosted service.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TINKER_BASE_URL="http://127.0.0.1:9")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the model's name is also the path of its tokenizer."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "weft").mkdir()
    (folder / "weft" / "tiny").symlink_to(Path(__file__).parents[2] / "engine" / "tiny")
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of weft/tiny; any key is its one local tenant."""
    with start(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def service(server: Server) -> Iterator[ServiceClient]:
    """A session of its own, finished afterwards, for which no test waits."""
    client = ServiceClient(base_url=server.url, api_key=server.key)
    yield client
    client.close("success")


@pytest.fixture
def trainer(service: ServiceClient) -> Any:
    """A new adapter of rank 4, the same in every test."""
    return settled(service.create_lora_training_client("weft/tiny", rank=4, seed=1))


@pytest.fixture
def rest(service: ServiceClient) -> Any:
    """The REST client of the session's key."""
    return rest_of(service)


@pytest.fixture
def tinker_command(
    server: Server, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run the SDK's command line, in this process for speed; gives what it said."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("TINKER_BASE_URL", server.url)
    monkeypatch.setenv("TINKER_API_KEY", server.key)

    def run(*arguments: str, fails: bool = False) -> str:
        monkeypatch.setattr("sys.argv", ["tinker", *arguments])
        status: Any = 0
        try:
            tinker_main()
        except SystemExit as end:
            status = end.code or 0
        said = capsys.readouterr()
        assert (status != 0) == fails, said
        return said.err if fails else said.out

    return run
