"""A pytest plugin that writes down which Triton kernels the tests that passed have launched.

    pytest -p launched_kernels --launched-kernels FOLDER ...

Every process of pytest-xdist writes a file of its own to the folder.
"""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--launched-kernels", type=Path, help="write JSON files of kernel names")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--launched-kernels")
    if path is not None:
        worker = getattr(config, "workerinput", {"workerid": "main"})["workerid"]
        config.pluginmanager.register(Recorder(path / f"{worker}.json"))


class Recorder:
    """Counts a kernel when a test that launched it has passed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._passed: set[str] = set()
        self._current: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        from weft.kernels.gpu.variants import Variant

        self._current = current = set()
        launch = Variant.launch

        def recorded(variant: Variant, grid: tuple[int, ...], **arguments: Any) -> None:
            current.add(variant.kernel.fn.__name__)
            launch(variant, grid, **arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Variant, "launch", recorded)
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._passed |= self._current

    def pytest_sessionfinish(self) -> None:
        self._path.write_text(json.dumps(sorted(self._passed)), encoding="utf-8")
