"""A pytest plugin: fixtures that give tests of loops a local twin of a Tinker server.

It costs a run that uses none of them a few small imports.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .local import START_S, LocalServer, local_server

DEFAULT_MODEL = "weft/tiny"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The settings of the server."""
    group = parser.getgroup("weft", "local twin of a Tinker server")
    group.addoption(
        "--weft-model",
        metavar="DIR",
        default=None,
        help=f"model of the local twin, a directory in Hugging Face layout ({DEFAULT_MODEL})",
    )
    parser.addini(
        "weft_model", "the same; a directory is relative to this file", default=DEFAULT_MODEL
    )
    parser.addini(
        "weft_start_timeout",
        "seconds that the local twin may take to start",
        default=f"{START_S:g}",
    )


@pytest.fixture(scope="session")
def tinker_server(pytestconfig: pytest.Config) -> Iterator[LocalServer]:
    """A server of a small model for all tests of the run; with pytest-xdist, of each worker."""
    from ...client.errors import WeftError

    with ExitStack() as stack:
        try:
            timeout_s = timeout_of(pytestconfig)
            serving = local_server(model_of(pytestconfig), start_timeout_s=timeout_s)
            server = stack.enter_context(serving)
        except WeftError as error:
            pytest.fail(f"weft: {error}", pytrace=False)
        yield server


@pytest.fixture
def tinker_env(tinker_server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> LocalServer:
    """`tinker_server`, and for this test the environment variables with which the SDK finds it."""
    usual, wanted = dict(os.environ), tinker_server.environment(os.environ)
    for name in usual.keys() - wanted.keys():
        monkeypatch.delenv(name)
    for name in [name for name in wanted if wanted[name] != usual.get(name)]:
        monkeypatch.setenv(name, wanted[name])
    return tinker_server


@pytest.fixture
def tinker_cwd(
    tinker_server: LocalServer,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """An empty folder, for this test the current one, in which the model's name is a tokenizer."""
    folder = tmp_path_factory.mktemp("tinker")
    tinker_server.link_tokenizer(folder)
    monkeypatch.chdir(folder)
    return folder


def model_of(config: pytest.Config) -> str:
    """The model that the command line names, or else the ini file; a folder by its whole path."""
    name, base = config.getoption("--weft-model"), config.invocation_params.dir
    if name is None:
        name = config.getini("weft_model")
        base = config.inipath.parent if config.inipath else config.rootpath
    folder = base / name
    return str(folder) if name != DEFAULT_MODEL and folder.is_dir() else str(name)


def timeout_of(config: pytest.Config) -> float:
    """How long a start may take, in seconds; BadRequest for what is no such number."""
    from ...client.errors import BadRequest

    written = str(config.getini("weft_start_timeout"))
    try:
        seconds = float(written)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise BadRequest(f"weft_start_timeout is {written!r}, not a number of seconds")
    return seconds
