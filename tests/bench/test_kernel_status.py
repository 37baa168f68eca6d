"""The status of the kernels in the documents is that of the tests and of what was measured."""

from typing import Any

import kernel_status
import pytest
from kernel_status import PAGE, compiled_cell, covering_tests, run_cell, status_table
from kernel_variants import all_variants

KERNEL = "_adamw_kernel"
NAMES = [key.variant for key in all_variants() if key.kernel == KERNEL]


def record(**kernel: Any) -> dict[str, Any]:
    """A result of the gate, of one kernel."""
    found = {"architectures": [80, 90], "unfit": [], "variants": dict.fromkeys(NAMES, ""), **kernel}
    return {
        "commit": "abc123",
        "time": "2030-01-02T03:04:05+00:00",
        "hardware": {"device": "H"},
        "result": {"triton": "9.9.0", "kernels": {KERNEL: found}},
    }


def test_the_table_of_the_page_is_that_of_today() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert f"\n{status_table()}\n" in page, "python bench/kernel_status.py writes it"


def test_every_kernel_has_tests() -> None:
    modules = {key.module for key in all_variants()}
    assert {module for module in modules if not covering_tests(module)} == set()


def test_a_compiled_kernel_is_shown_with_compiler_and_commit() -> None:
    cell = compiled_cell(KERNEL, [record()])
    assert cell == f"{len(NAMES)} of {len(NAMES)}: Triton 9.9.0, sm_80 sm_90, 2030-01-02, abc123"


@pytest.mark.parametrize(
    "kernel",
    [
        pytest.param({"unfit": NAMES[:1]}, id="not fit"),
        pytest.param({"variants": dict.fromkeys(["of old", *NAMES[1:]], "")}, id="new since then"),
    ],
)
def test_variants_that_are_not_fit_or_new_do_not_count(kernel: dict[str, Any]) -> None:
    count = f"{len(NAMES) - 1} of {len(NAMES)}: "
    assert compiled_cell(KERNEL, [record(**kernel)]).startswith(count)


def test_without_a_record_nothing_was_compiled_or_run() -> None:
    assert compiled_cell(KERNEL, []) == "*not compiled*"
    assert run_cell(KERNEL, []) == "*not run*"


def test_a_kernel_that_ran_is_shown_with_its_device() -> None:
    assert run_cell(KERNEL, [record()]) == "H (2030-01-02, abc123)"
    assert run_cell("_norms_kernel", [record()]) == "*not run*"


def test_rewriting_the_page_changes_the_table_alone(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "kernels.md"
    page.write_text(f"before\n\n{kernel_status.HEAD}\n| --- |\n| old |\n\nafter\n")
    monkeypatch.setattr(kernel_status, "PAGE", page)
    kernel_status.write()
    assert page.read_text() == f"before\n\n{status_table()}\nafter\n"
