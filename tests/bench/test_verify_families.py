"""The script behind the table of architectures in docs/models.md."""

from pathlib import Path

import pytest
from verify_families import FAMILIES, line_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("family", "line"),
    [
        ("phi3", "| phi3 | packed | attn 4, mlp 4, unembed 1 | all rows pass |"),
        ("recurrent_gemma", "| recurrent_gemma | refused: RecurrentGemmaForCausalLM cannot be run"),
    ],
)
def test_a_family_is_a_line_whether_it_runs_or_not(family: str, line: str) -> None:
    assert line_of(family).startswith(line)


def test_the_page_names_every_family_of_the_script() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")

    missing = [family for family in FAMILIES if family not in page.replace("`", "")]

    assert missing == []
