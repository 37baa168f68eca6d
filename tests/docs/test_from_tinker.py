"""What the page for users of the official SDK says of each name is so."""

import inspect
import re

import pytest
from docs_pages import DOCS

import weft.client

_ROW = re.compile(r"^\| `(\w+)(?:\((\w+)\))?` \| (\w+) \|", re.MULTILINE)
_REFUSALS = re.compile(r"refuse_unserved\([^)]*\)")


def rows() -> list[tuple[str, str, str, str]]:
    """Class, method, argument or "", and what the page says."""
    page = (DOCS / "from_tinker.md").read_text(encoding="utf-8")
    found = []
    for section in page.split("\n## ")[1:]:
        class_name = section.split("\n", 1)[0]
        found += [(class_name, *row) for row in _ROW.findall(section)]
    return found


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]}.{row[1]}({row[2]})")
def test_a_name_is_there_or_not_as_the_page_says(row: tuple[str, str, str, str]) -> None:
    class_name, method, argument, word = row
    found = getattr(getattr(weft.client, class_name), method, None)
    assert word in ("same", "differs", "refused", "absent")
    if not argument:
        assert (found is None) == (word == "absent")
        return
    assert found is not None
    parameters = inspect.signature(found).parameters
    assert (argument in parameters) == (word != "absent")
    if word == "refused":
        assert not parameters[argument].default
        module = inspect.getsource(inspect.getmodule(found) or weft.client)
        assert f"{argument}={argument}" in "".join(_REFUSALS.findall(module))


def test_the_page_covers_the_classes_a_loop_uses() -> None:
    covered = {class_name for class_name, *_ in rows()}
    assert covered == {
        "APIFuture",
        "RestClient",
        "SamplingClient",
        "ServiceClient",
        "TrainingClient",
    }
