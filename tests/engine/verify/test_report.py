"""The printed table and its JSON, and what the command answers."""

import json
from pathlib import Path

import pytest
from whole_models import edit_tensor, save_whole_model

from weft.engine.__main__ import main
from weft.engine.verify.record import failed, failure, passed, skipped
from weft.engine.verify.report import lines_of, summary_of, write_json


def test_a_row_is_a_line_with_its_sentence_below() -> None:
    assert lines_of(passed("logits", "rms 1e-06", "of 3 rows")) == [
        "PASS  logits         rms 1e-06",
        "                     of 3 rows",
    ]
    assert lines_of(skipped("gradients", "no peft")) == ["SKIP  gradients      no peft"]


def test_long_sentences_are_wrapped_and_keep_every_word() -> None:
    sentence = " ".join(f"word{n}" for n in range(60))

    lines = lines_of(failed("files", sentence))

    assert max(map(len, lines)) <= 100
    assert " ".join(" ".join(lines).split()[2:]) == sentence


def test_rows_are_counted_by_status() -> None:
    rows = [passed("a"), failed("b", "wrong"), skipped("c", "not there"), passed("d")]

    assert summary_of(rows) == "2 passed, 1 failed, 1 skipped"


def test_an_exception_is_its_first_line() -> None:
    assert failure("x", ValueError("first\nsecond")).detail == "ValueError: first"
    assert failure("x", KeyError()).detail == "KeyError: no message"


def test_the_json_holds_every_row_and_the_versions(tmp_path: Path) -> None:
    write_json(tmp_path / "out.json", "some/model", [passed("a", "1", "good")])

    document = json.loads((tmp_path / "out.json").read_text())
    assert document["checks"] == [{"name": "a", "status": "PASS", "figure": "1", "detail": "good"}]
    assert document["model"] == "some/model"
    assert {"torch", "transformers", "peft"} <= set(document["versions"])


def test_the_command_prints_the_table_and_answers_1_when_a_row_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_whole_model(tmp_path)
    options = ["--device", "cpu", "--json", str(tmp_path / "out.json")]

    assert main(["verify", str(tmp_path), *options]) == 0
    assert capsys.readouterr().out.endswith("14 passed, 0 failed, 0 skipped\n")
    edit_tensor(tmp_path, "model.norm.weight", lambda tensor: tensor / 0)

    assert main(["verify", str(tmp_path), *options]) == 1
    out = capsys.readouterr().out
    assert "FAIL  values" in out
    assert "model.norm.weight in model.safetensors holds" in out


def test_a_json_that_cannot_be_written_is_told_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nowhere" / "out.json"

    assert main(["verify", "weft/tiny", "--json", str(path)]) == 1

    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"weft: {path} cannot be written: No such file or directory\n"


def test_an_unknown_model_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "/nowhere/at/all"]) == 1
    assert "no model directory '/nowhere/at/all'" in capsys.readouterr().err
