"""Names and paths: safe ones pass, the others are refused."""

import pytest

from weft.client.errors import BadRequest
from weft.client.paths import KINDS, CheckpointPath, check_name, format_run_id, parse_path

RUN = format_run_id("0" * 32, 3)


@pytest.mark.parametrize("name", ["a", "final", "step_0010", "v1.2-rc=3+x@y", "_", "a" * 128])
def test_a_safe_name_passes(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a..b",
        "a/b",
        "/a",
        "a\\b",
        ".hidden",
        "a b",
        "a\n",
        "a\0",
        "ä",
        "-x",
        "a" * 129,
    ],
)
def test_an_unsafe_name_is_refused(name: str) -> None:
    with pytest.raises(BadRequest):
        check_name(name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_path_survives_a_round_trip(kind: str) -> None:
    path = CheckpointPath(RUN, kind, "a")
    assert parse_path(str(path)) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "a",
        f"tinker://{RUN}/weights/a",
        f"weft://{RUN}/weights",
        f"weft://{RUN}/weights/a/b",
        f"weft://{RUN}/weights/..",
        f"weft://{RUN}/moments/a",
        "weft://../weights/a",
        "weft://run/weights/a",
    ],
)
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(BadRequest):
        parse_path(path)
