from pathlib import Path

import pytest

from weft.client.errors import BadRequest, NotFound
from weft.engine.worker.model_names import check_files, find_model


def test_the_embedded_model_is_found_by_its_name() -> None:
    source = find_model("weft/tiny")
    assert source.name == "weft/tiny"
    check_files(source.directory)


def test_a_directory_answers_to_its_hugging_face_name(tmp_path: Path) -> None:
    directory = tmp_path / "Qwen" / "Qwen3-0.6B"
    directory.mkdir(parents=True)
    assert "Qwen/Qwen3-0.6B" in find_model(str(directory)).aliases


def test_a_directory_of_the_hub_cache_answers_to_its_name(tmp_path: Path) -> None:
    directory = tmp_path / "models--Qwen--Qwen3-0.6B" / "snapshots" / "0123abcd"
    directory.mkdir(parents=True)
    assert "Qwen/Qwen3-0.6B" in find_model(str(directory)).aliases


@pytest.mark.parametrize("name", ["/no/such/place", "./nowhere", "~/nowhere", "a/b/c"])
def test_a_directory_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(NotFound, match="no model directory"):
        find_model(name)


def test_missing_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadRequest, match=r"lacks \*\.safetensors"):
        check_files(tmp_path)


def test_a_directory_of_pickles_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(BadRequest, match=r"pytorch_model\.bin is a pickle, which is never read"):
        check_files(tmp_path)
