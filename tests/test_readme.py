"""What the README promises is there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_the_loop_in_the_readme_is_the_tested_example() -> None:
    loop = README.split("```python\n")[1].split("```")[0]
    example = (ROOT / "examples" / "rl_loop.py").read_text(encoding="utf-8")
    assert example.split("\n\n", 1)[1] == loop


def test_the_embedding_example_runs(capsys: object) -> None:
    program = README.split("```python\n")[2].split("```")[0]
    exec(compile(program, "README.md", "exec"), {})


def test_every_file_and_make_target_that_the_readme_names_exists() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / path).exists(), path
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets
