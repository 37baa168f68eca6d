"""The pages under docs/api, from the docstrings of the code.

python tests/helpers/api_pages.py            writes them
python tests/helpers/api_pages.py --check    says which differ; exit status 1 when some do
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

from api_contents import PAGES, Page

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "docs" / "api"
FOOT = "Written from the docstrings by `python tests/helpers/api_pages.py`."

_SECTION = re.compile(r"(Args|Returns|Raises|Source):[ ]*(.*)")
_DEFAULT = re.compile(r"(?<=[\w\])'])=(?=[^=])")
_ITEM = re.compile(r"^(\*{0,2}\w[\w, ]*): (.*)$")

MADE_BY_OTHERS = {"APIFuture", "EventStream", "RestClient", "SamplingClient", "TrainingClient"}
MAX_WIDTH = 100


def render() -> dict[str, str]:
    """Every page by its file name."""
    written = {f"{name}.md": _page(page) for name, page in PAGES.items()}
    rows = [f"| [{page.title}]({name}.md) | {page.about} |" for name, page in PAGES.items()]
    table = "\n".join(["| page | what |", "|---|---|", *rows])
    about = (
        "Everything here is `from weft.client import NAME`, but for the engine. Methods that return\n"
        "an `APIFuture` return at once; the others wait. A name with `_async` at its end does the\n"
        "same from a coroutine."
    )
    written["index.md"] = f"# API reference\n\n{about}\n\n{table}\n\n{FOOT}\n"
    return written


def main(arguments: list[str]) -> int:
    """Write the pages, or tell which differ."""
    differing = []
    API.mkdir(exist_ok=True)
    for name, text in render().items():
        path = API / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            differing.append(name)
            if "--check" not in arguments:
                path.write_text(text, encoding="utf-8")
    for path in API.glob("*.md"):
        if path.name not in render():
            differing.append(path.name)
            if "--check" not in arguments:
                path.unlink()
    sys.stdout.write("".join(f"{name}\n" for name in differing))
    return int("--check" in arguments and bool(differing))


def _page(page: Page) -> str:
    is_one_class = sum(len(part.names) for part in page.parts) == 1
    blocks = [f"# {page.title}", "" if is_one_class else page.about]
    for part in page.parts:
        source = (ROOT / part.file).read_text(encoding="utf-8")
        tree = ast.parse(source)
        nodes = {
            node.name: node
            for node in tree.body
            if isinstance(node, ast.ClassDef | ast.FunctionDef)
        }
        if not part.names:
            blocks += _markdown(ast.get_docstring(tree) or "")
        for name in part.names or [name for name in nodes if not name.startswith("_")]:
            node = nodes[name]
            if isinstance(node, ast.ClassDef):
                blocks += _class(node, source.splitlines(), has_heading=not is_one_class)
            else:
                blocks += _function(node, "##")
    return "\n\n".join(block for block in [*blocks, FOOT] if block) + "\n"


def _class(node: ast.ClassDef, lines: list[str], *, has_heading: bool) -> Iterator[str]:
    """Docstring, signature, fields and methods of a class."""
    if has_heading:
        yield f"## {node.name}"
    initializer = next((item for item in _functions(node) if item.name == "__init__"), None)
    if initializer is not None and node.name not in MADE_BY_OTHERS:
        yield _code(_call(initializer, node.name))
    yield from _markdown(ast.get_docstring(node) or "")
    if node.decorator_list:  # a dataclass: what it holds is all there is to it
        yield _fields(node, lines)
        return
    twins = _twins(node)
    for item in _functions(node):
        if not item.name.startswith("_"):
            yield from _function(item, "###" if has_heading else "##", twins.get(item.name, ""))


def _function(node: ast.FunctionDef, level: str, twin: str = "") -> Iterator[str]:
    yield f"{level} {node.name}"
    kinds = {ast.unparse(item) for item in node.decorator_list}
    returns = f" -> {_type(node.returns)}" if node.returns else ""
    if "property" in kinds:
        yield _code(f"{node.name}: {_type(node.returns)}")
    else:
        yield _code(_call(node, node.name) + returns)
    yield from _markdown(ast.get_docstring(node) or "")
    if twin:
        yield f"In a coroutine: `{twin}`."


def _functions(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [item for item in node.body if isinstance(item, ast.FunctionDef)]


def _twins(node: ast.ClassDef) -> dict[str, str]:
    """The `_async` form of each method that has one."""
    found = {}
    for item in node.body:
        if isinstance(item, ast.Assign) and isinstance(item.value, ast.Call):
            target, (method, *_) = item.targets[0], item.value.args
            if isinstance(target, ast.Name) and isinstance(method, ast.Name):
                found[method.id] = target.id
    return found


def _fields(node: ast.ClassDef, lines: list[str]) -> str:
    """Annotated attributes with the comments behind or below them."""
    rows = []
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            _, _, comment = lines[(item.end_lineno or 1) - 1].partition("  # ")
            default = "" if item.value is None else f"`{ast.unparse(item.value)}`"
            kind = _type(item.annotation).replace("|", "\\|")
            comment = "" if comment.startswith(("type:", "pyright:")) else comment
            rows.append(f"| `{item.target.id}` | `{kind}` | {default} | {comment} |")
    head = ["| field | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *rows]) if rows else ""


def _call(node: ast.FunctionDef, name: str) -> str:
    """A call of a method or function, without self; one argument a line when it is long."""
    copy = ast.parse(ast.unparse(node)).body[0]
    assert isinstance(copy, ast.FunctionDef)
    arguments = copy.args
    for item in [*arguments.args, *arguments.kwonlyargs]:
        if item.annotation is not None:
            item.annotation = ast.parse(_type(item.annotation), mode="eval").body
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        arguments.args.pop(0)
    line = f"{name}({_spaced(arguments)})"
    if len(line) <= MAX_WIDTH:
        return line
    rows = []
    for number, item in enumerate(arguments.args):
        place = number - len(arguments.args) + len(arguments.defaults)
        rows.append(_argument(item, arguments.defaults[place] if place >= 0 else None))
    if arguments.vararg is not None:
        rows.append(f"*{ast.unparse(arguments.vararg)}")
    elif arguments.kwonlyargs:
        rows.append("*")
    for item, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        rows.append(_argument(item, default))
    if arguments.kwarg is not None:
        rows.append(f"**{ast.unparse(arguments.kwarg)}")
    return "\n".join([f"{name}(", *(f"    {row}," for row in rows), ")"])


def _argument(item: ast.arg, default: ast.expr | None) -> str:
    kinds = ast.arguments([], [item], None, [], [], None, [default] if default else [])
    return _spaced(kinds)


def _spaced(arguments: ast.arguments) -> str:
    return _DEFAULT.sub(" = ", ast.unparse(arguments))


def _type(node: ast.expr | None) -> str:
    """A type as text; one that stands in quotes without them."""
    return ast.unparse(node).strip("'\"") if node is not None else "None"


def _code(text: str) -> str:
    return f"```text\n{text}\n```"


def _markdown(docstring: str) -> Iterator[str]:
    """Paragraphs, indented blocks and sections of a docstring."""
    section = ""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        first, *rest = block.split("\n")
        found = _SECTION.fullmatch(first)
        if found:
            section = found[1]
            yield f"**{section}**"
            block = "\n".join([found[2], *rest] if found[2] else rest)
        is_indented = block.startswith("    ")
        if not found and not is_indented:
            section = ""
        if section in ("Args", "Raises"):
            yield "\n".join(_items(dedent(block)))
        elif (is_indented and not section) or (not found and _is_drawing(block)):
            yield _code(dedent(block))
        else:
            yield dedent(block)


def _items(block: str) -> Iterator[str]:
    for line in block.splitlines():
        found = _ITEM.match(line)
        if found and not line.startswith(" "):
            names = ", ".join(f"`{name.strip()}`" for name in found[1].split(","))
            yield f"- {names}: {found[2]}"
        else:
            yield "  " + line.strip()


def _is_drawing(block: str) -> bool:
    """Whether lines of a block are aligned by spaces, as in a table or a tree."""
    return any("   " in line.strip() for line in block.splitlines())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
