"""What the demo's tenants learn: prompts with answers, and how a sampled answer is judged.

Pure, but for reading the sources of the standard library. Held-out items share no sum, list or
name with the items for training, nor with anything that `weft/tiny` was pretrained on.
"""

import ast
import random
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from . import tiny_text

MAX_LINE_BYTES = 72  # of a docstring's first line; longer ones are left out
Tokens = tuple[int, ...]

ENDS = (tiny_text.END_OF_TEXT, tiny_text.IM_END)


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt and the answer wanted, both as tokens; the answer ends with its end token."""

    prompt: Tokens
    answer: Tokens


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt; both are right, one is wanted."""

    prompt: Tokens
    chosen: Tokens
    rejected: Tokens


def sums(*, held_out: bool) -> list[Item]:
    """List the additions of two-digit numbers in one half of the split."""
    return [
        _plain(tiny_text.sum_prompt(a, b), str(a + b))
        for a in range(10, 100)
        for b in range(10, 100)
        if tiny_text.is_held_out(a, b) == held_out
    ]


def descending(num_items: int, *, held_out: bool) -> list[Item]:
    """Draw distinct lists of four digits to be sorted downwards, which pretraining never shows."""
    rng = random.Random(f"descending {held_out}")
    lists: dict[str, list[int]] = {}
    while len(lists) < num_items:
        numbers = [rng.randint(0, 9) for _ in range(4)]
        listed = tiny_text.join(numbers)
        if tiny_text.is_held_out_text(listed) == held_out:
            lists[listed] = sorted(numbers, reverse=True)
    return [_plain(f"sort down {text} -> ", tiny_text.join(down)) for text, down in lists.items()]


def sentences(*, held_out: bool) -> list[Preference]:
    """List questions for a sum in the chat template, where a whole sentence is wanted."""
    return [
        Preference(
            tuple(tiny_text.chat_prompt(f"What is {a}+{b}?")),
            (*tiny_text.encode(f"The answer is {a + b}."), tiny_text.IM_END),
            (*tiny_text.encode(str(a + b)), tiny_text.IM_END),
        )
        for a in range(10, 100)
        for b in range(10, 100)
        if tiny_text.is_held_out(a, b) == held_out
    ]


@cache
def documented_names(directory: Path | None = None) -> tuple[tuple[str, str], ...]:
    """Return public names of the standard library with the first line of their docstrings.

    Args:
        directory: where to look for modules instead; sub-folders are not visited.
    """
    found: dict[str, str] = {}
    folder = directory or Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_bytes())
        for name, line in _documented(tree, path.stem):
            if len(line) >= 8 and len(line.encode()) <= MAX_LINE_BYTES:
                found.setdefault(name, line)
    return tuple(found.items())


def docstrings(*, held_out: bool, directory: Path | None = None) -> list[Item]:
    """List names with their docstring lines; a line in one half never occurs in the other."""
    return [
        _plain(f"{name}: ", line)
        for name, line in documented_names(directory)
        if tiny_text.is_held_out_text(line) == held_out
    ]


def is_right(item: Item, tokens: Sequence[int]) -> bool:
    """Tell whether a sampled answer is the one wanted, its end included."""
    return tuple(tokens) == item.answer


def is_sentence(tokens: Sequence[int]) -> bool:
    """Tell whether an answer has the form that the preferences ask for."""
    return tiny_text.decode(list(tokens)).startswith("The answer is ")


def group_advantages(rewards: Sequence[Sequence[float]]) -> list[list[float]]:
    """Centre the rewards of each group; a group that agrees gets zeros and teaches nothing."""
    centred = []
    for group in rewards:
        mean = sum(group) / len(group)
        centred.append([reward - mean for reward in group])
    return centred


def shuffled(rewards: Sequence[Sequence[float]], rng: random.Random) -> list[list[float]]:
    """Deal the rewards of a batch out again at random: the same numbers, without meaning."""
    flat = [reward for group in rewards for reward in group]
    rng.shuffle(flat)
    dealt = iter(flat)
    return [[next(dealt) for _ in group] for group in rewards]


def _plain(prompt: str, answer: str) -> Item:
    return Item(tuple(tiny_text.encode(prompt)), (*tiny_text.encode(answer), tiny_text.END_OF_TEXT))


def _documented(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """Yield the dotted names of public functions, classes and methods, with their first lines."""
    pending: list[tuple[str, ast.AST]] = [(module, tree)]
    while pending:
        name, node = pending.pop(0)
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            line = (ast.get_docstring(node) or "").partition("\n")[0].strip()
            if line:
                yield name, line
        if isinstance(node, ast.Module | ast.ClassDef):
            for child in node.body:
                child_name = getattr(child, "name", "_")
                if not child_name.startswith("_"):
                    pending.append((f"{name}.{child_name}", child))
