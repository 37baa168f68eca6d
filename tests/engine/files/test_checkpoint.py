"""The record of a saved state."""

import dataclasses
import json

import pytest
from core_bench import RUN, checkpoint

from weft.engine.files.checkpoint import Checkpoint

PATH = f"weft://{RUN}/weights/a"


def test_a_record_survives_its_metadata() -> None:
    record = checkpoint("a", user_metadata={"k": "v"}, expires=5.0, has_optimizer=False)
    assert Checkpoint.from_metadata(record.to_metadata(), path=PATH, size_bytes=10) == record


def test_where_a_file_lies_decides_its_path() -> None:
    metadata = checkpoint("old").to_metadata()
    found = Checkpoint.from_metadata(metadata, path=PATH, size_bytes=77)
    assert (found.path, found.size_bytes) == (PATH, 77)


def test_a_record_of_before_there_were_public_ones_is_private() -> None:
    fields = json.loads(checkpoint("a", public=True).to_metadata()["weft"])
    del fields["public"]
    text = json.dumps(fields)
    assert not Checkpoint.from_metadata({"weft": text}, path=PATH, size_bytes=10).public


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("null", id="nothing"),
        pytest.param("[1]", id="list"),
        pytest.param("{", id="no JSON"),
        pytest.param(json.dumps({"rank": 1}), id="fields missing"),
        pytest.param(
            json.dumps({**dataclasses.asdict(checkpoint("a")), "more": 1}), id="unknown field"
        ),
    ],
)
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a checkpoint|Expecting"):
        Checkpoint.from_metadata({"weft": text}, path=PATH, size_bytes=0)


def test_an_owner_is_not_told_of_tenants() -> None:
    told = checkpoint("a").fields()
    assert "tenant" not in told
    assert (told["run_id"], told["kind"], told["name"]) == (RUN, "weights", "a")
