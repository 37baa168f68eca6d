"""The page about the local twin shows what the sample project runs."""

from pathlib import Path

import pytest
from docs_pages import DOCS, ROOT, snippets

PROJECT = ROOT / "examples" / "local_twin"
PAGE = DOCS / "local_twin.md"


def test_the_page_shows_parts_of_the_sample_project() -> None:
    tests = (PROJECT / "tests" / "test_loop.py").read_text(encoding="utf-8")
    shown = [snippet.text for snippet in snippets(PAGE, "py")]
    assert len(shown) == 2
    assert [text for text in shown if text not in tests] == []


def test_the_page_names_every_fixture_and_option() -> None:
    plugin = (ROOT / "engine" / "testing" / "plugin.py").read_text(encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    names = [
        line.split("(")[0][4:] for line in plugin.splitlines() if line.startswith("def tinker_")
    ]
    assert sorted(names) == ["tinker_cwd", "tinker_env", "tinker_server"]
    for name in [*names, "--weft-model", "weft_model", "weft_start_timeout"]:
        assert f"`{name}" in page


@pytest.mark.parametrize("path", sorted(PROJECT.rglob("*.py")), ids=lambda path: path.name)
def test_the_loop_knows_nothing_of_weft(path: Path) -> None:
    is_test = path.parent.name == "tests"
    assert ("weft" in path.read_text(encoding="utf-8")) == is_test
