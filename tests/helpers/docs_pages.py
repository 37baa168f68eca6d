"""The Markdown pages of the project: their code, their links, their headings."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Snippet:
    """A block of code in a page."""

    language: str
    text: str
    line: int  # of its first line in the page, from 1


def pages() -> list[Path]:
    """Every page under docs/, and those of the root."""
    return sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])


def snippets(path: Path, *languages: str) -> list[Snippet]:
    """The blocks of code of a page in these languages, in order."""
    text = path.read_text(encoding="utf-8")
    return [
        Snippet(found[1], found[2], text.count("\n", 0, found.start(2)) + 1)
        for found in _FENCE.finditer(text)
        if found[1] in languages
    ]


def commands(path: Path, program: str) -> Iterator[tuple[int, list[str]]]:
    """The calls of a program that a page shows in sh and console blocks: line, and arguments."""
    for snippet in snippets(path, "sh", "console"):
        for offset, line in enumerate(snippet.text.splitlines()):
            words = line.partition("  #")[0].removeprefix("$ ").split()
            if words and words[0].rpartition("/")[2] == program:
                yield snippet.line + offset, words[1:]


def links(path: Path) -> list[str]:
    """The targets of a page's links and pictures."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    return [found[1] or found[2] for found in _LINK.finditer(text)]


def anchors(path: Path) -> set[str]:
    """The names under which links reach a page's headings, as GitHub makes them."""
    text = _FENCE.sub("", path.read_text(encoding="utf-8"))
    return {
        re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")
        for heading in _HEADING.findall(text)
    }
