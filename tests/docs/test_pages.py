"""What the pages under docs/ show runs, and what they link to is there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docs_pages import DOCS, ROOT, anchors, commands, links, pages, snippets

from weft.engine import Engine
from weft.engine.__main__ import build_parser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    address = f"ipc://{folder}/weft"
    with Engine(
        "weft/tiny", memory_bytes=1 << 30, listen=[address], state_dir=str(folder / "state")
    ):
        yield address


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


# peft reads an attribute that transformers is about to rename.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "path", [path for path in sorted(DOCS.rglob("*.md")) if snippets(path, "python")], ids=name
)
def test_the_programs_of_a_page_run_one_after_the_other(
    path: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEFT_ADDRESS", address)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for snippet in snippets(path, "python"):
        program = "\n" * (snippet.line - 1) + snippet.text  # a traceback names the page's line
        exec(compile(program, name(path), "exec"), names)
    if "service" in names:
        names["service"].close()


@pytest.mark.parametrize(
    "path", [path for path in pages() if any(commands(path, "weft"))], ids=name
)
def test_every_command_that_a_page_shows_is_one(path: Path) -> None:
    for line, arguments in commands(path, "weft"):
        try:
            build_parser().parse_args(arguments)
        except SystemExit:
            pytest.fail(f"{name(path)}:{line}: weft {' '.join(arguments)}")


@pytest.mark.parametrize("path", pages(), ids=name)
def test_every_link_of_a_page_leads_somewhere(path: Path) -> None:
    for link in links(path):
        if link.startswith(("https://", "http://")):
            continue
        target, _, anchor = link.partition("#")
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), link
        assert found.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(found), link


def test_every_page_is_reached_from_the_index() -> None:
    reached = {DOCS / "index.md"}
    pending = list(reached)
    while pending:
        page = pending.pop()
        for link in links(page):
            target = (page.parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target not in reached and target.exists():
                reached.add(target)
                pending.append(target)
    assert {name(path) for path in set(DOCS.rglob("*.md")) - reached} == set()
