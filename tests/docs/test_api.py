"""The API reference is that of the code, and names everything a user can import."""

import inspect

import api_pages
import pytest
from api_contents import PAGES

import weft.client
from weft.client import errors

NOT_LISTED = {  # modules, and names of types that have no docstring of their own
    "CheckpointType",
    "LossFnType",
    "ModelID",
    "ModelInputChunk",
    "StopReason",
    "errors",
    "schedules",
    "types",
}


def test_the_pages_are_those_of_the_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    status = api_pages.main(["--check"])
    assert (status, capsys.readouterr().out) == (0, ""), "python tests/helpers/api_pages.py"


def test_every_public_name_has_a_place_in_the_reference() -> None:
    listed = {name for page in PAGES.values() for part in page.parts for name in part.names}
    functions = {"lora_learning_rate"}
    aliases = {
        name
        for name in weft.client.__all__
        if inspect.isclass(value := getattr(weft.client, name)) and value.__name__ != name
    }
    assert {name for name in aliases if not hasattr(errors, name)} <= {"ModelInputChunk", "ModelID"}
    missing = set(weft.client.__all__) - listed - functions - aliases - NOT_LISTED
    assert missing == set()
