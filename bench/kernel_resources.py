"""What does every Triton kernel need on the machines it is for? Compiles them without any.

    python bench/kernel_resources.py [--cover] [--arch 90] [--only adamw] [--jobs 2]

Compiles the dispatch table: every variant that a published model of 0.6 to 70 billion parameters
can launch, for sm_80, sm_90 and sm_100. Prints for each

regs           registers of a thread
spills         bytes of stack, and instructions that store to or load from local memory
shared         bytes of shared memory of a program
matrix         matrix instructions: HMMA (a warp's), HGMMA (a warp group's, sm_90), UTCHMMA (through
               tensor memory, sm_100)
vector         loads from global memory of 16 bytes or more, as they stand in the code
narrow         the others

and fails where a variant spills, has a product of 16-bit numbers without the matrix instruction
that its tile is due (`compiled_kernel.due_instructions`), has more narrow loads than it may, needs
more shared or tensor memory than there is, uses atomics, or would be compiled otherwise when it is
launched. Nothing runs.

`--cover` takes one variant of each kind (`kernel_variants.cover`), as continuous integration does.
The whole table, and nothing less, goes to bench/results.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from compiled_kernel import SHARED_LIMITS, Resources, compile_variant, problems
from harness import Table, write_result
from kernel_variants import Key, all_variants, cover

ARCHITECTURES = tuple(SHARED_LIMITS)
COLUMNS = ("arch", "regs", "spills", "shared", "matrix", "vector", "narrow")
PORTION = 24  # compilations of one process: it starts quickly, and its death costs one of them

Item = tuple[Key, int]


@dataclass(frozen=True, slots=True)
class Row:
    """One variant on one architecture; `resources` is None where it did not compile."""

    key: Key
    arch: int
    resources: Resources | None
    problems: tuple[str, ...]


def measure(key: Key, arch: int) -> Row:
    """Compile one variant; what the compiler raises becomes a problem of the row."""
    variant = all_variants()[key]
    try:
        found = compile_variant(variant, arch)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        return Row(key, arch, None, (f"does not compile: {type(error).__name__}: {text}",))
    return Row(key, arch, found, tuple(problems(variant, found, arch)))


def measure_all(work: Sequence[Item], jobs: int) -> Iterator[Row]:
    """Compile in processes of their own; rows come as they are ready.

    The compiler may abort: then the variant it was at has that problem, and the others go on.
    """
    context = get_context("fork")  # the kernels are loaded once
    waiting, under_way = list(work), dict[Connection, list[Item]]()
    while waiting or under_way:
        while waiting and len(under_way) < jobs:
            portion, waiting = waiting[:PORTION], waiting[PORTION:]
            ours, theirs = context.Pipe(duplex=False)
            context.Process(target=_measure_portion, args=(theirs, portion), daemon=True).start()
            theirs.close()
            under_way[ours] = portion
        for connection in wait(list(under_way)):
            assert isinstance(connection, Connection)
            try:
                row = connection.recv()
            except EOFError:
                lost = under_way.pop(connection)
                if lost:
                    yield Row(*lost[0], None, ("does not compile: the compiler aborted",))
                    waiting += lost[1:]
            else:
                under_way[connection].pop(0)
                yield row


def _measure_portion(connection: Connection, portion: Sequence[Item]) -> None:
    for item in portion:
        connection.send(measure(*item))


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Per kernel: architectures, extremes, failures, and a line for each variant."""
    found: dict[str, Any] = {}
    for kernel in sorted({row.key.kernel for row in rows}):
        own = sorted((row for row in rows if row.key.kernel == kernel), key=_order)
        sizes = [row.resources for row in own if row.resources is not None]
        lines: dict[str, list[str]] = defaultdict(list)
        for row in own:
            lines[row.key.variant].append(" ".join(map(str, cells(row)[1:])))
        found[kernel] = {
            "module": own[0].key.module,
            "architectures": sorted({row.arch for row in own}),
            "max_registers": max((one.registers for one in sizes), default=0),
            "max_shared_bytes": max((one.shared_bytes for one in sizes), default=0),
            "unfit": sorted({row.key.variant for row in own if row.problems}),
            "failures": [failure(row) for row in own if row.problems],
            "variants": {name: "; ".join(of) for name, of in lines.items()},
        }
    return found


def failure(row: Row) -> str:
    """What is wrong with a variant, in a line."""
    return f"{row.key.label}, sm_{row.arch}: {'; '.join(row.problems)}"


def cells(row: Row) -> list[object]:
    """A row of the table."""
    found, place = row.resources, [row.key.label, f"sm_{row.arch}"]
    if found is None:
        return [*place, *["-"] * (len(COLUMNS) - 1)]
    matrix = " ".join(f"{name} {count}" for name, count in found.matrix.items())
    return [
        *place,
        found.registers,
        f"{found.stack_bytes}/{found.spills}" if found.stack_bytes or found.spills else "0",
        found.shared_bytes,
        matrix or "-",
        found.vector_loads,
        found.narrow_loads,
    ]


def main() -> int:
    """Compile, print, and write; 1 where a variant is not fit to be launched."""
    options = _options()
    # Read when a kernel is defined, which is when its module is loaded.
    os.environ.pop("TRITON_INTERPRET", None)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="weft-kernels-") as folder:
        os.environ["TRITON_CACHE_DIR"] = options.cache or folder
        keys = list(all_variants())
        is_whole = not (options.cover or options.only or options.arch)
        rows = _compile_and_print(options, keys)
    if not rows:
        print("no variant has such a name")
        return 1
    failures = [failure(row) for row in rows if row.problems]
    print(f"{len(rows)} compiled in {time.perf_counter() - begin:.0f} s, {len(failures)} failures")
    for line in failures:
        print(f"FAILED {line}")
    if is_whole:
        import triton

        write_result(options.result, {"triton": triton.__version__, "kernels": summary(rows)})
    return bool(failures)


def _compile_and_print(options: argparse.Namespace, keys: list[Key]) -> list[Row]:
    import triton

    chosen = cover() if options.cover else keys
    texts = {key: f"{key.module} {key.kernel} {key.variant}" for key in chosen}
    chosen = [key for key in chosen if all(part in texts[key] for part in options.only)]
    archs = options.arch or ARCHITECTURES
    print(
        f"Triton {triton.__version__}: {len(chosen)} of {len(keys)} variants,",
        ", ".join(f"sm_{arch}" for arch in archs),
    )
    table = Table("variant".rjust(max((len(key.label) for key in chosen), default=0)), *COLUMNS)
    rows = []
    for row in measure_all([(key, arch) for key in chosen for arch in archs], options.jobs):
        table.row(*cells(row))
        rows.append(row)
    return rows


def _order(row: Row) -> tuple[Key, int]:
    return row.key, row.arch


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cover", action="store_true", help="one variant of each kind")
    parser.add_argument("--arch", type=int, action="append", choices=ARCHITECTURES)
    parser.add_argument(
        "--only", action="append", default=[], help="part of a module's, kernel's or variant's name"
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cache", help="a folder that keeps what is compiled; default: none")
    parser.add_argument("--result", default="kernel_resources", help="name of the file of results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
