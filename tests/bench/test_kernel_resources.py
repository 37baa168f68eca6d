"""The gate that compiles every kernel: each fault it is there for makes it fail."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from compiled_kernel import Product, due_instructions, instruction_counts, products
from kernel_variants import FOLDER, Key, all_variants, cover

pytestmark = pytest.mark.timeout(300)  # compilers on busy cores

ROOT = Path(__file__).resolve().parents[2]
GATE = ROOT / "bench" / "kernel_resources.py"
PLANTED = ROOT / "tests" / "helpers" / "planted_kernels.py"
MACHINE_CODE = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   HFMA2.MMA R15, -RZ, RZ, 0, 5.9604644775390625e-08 ;
        /*0020*/              @!P1 LDG.E.U16 R3, desc[UR6][R4.64] ;
        /*0030*/               @P0 LDG.E.LTC128B.64 R4, desc[UR6][R4.64] ;
        /*0040*/                   LDG.E.128 R8, desc[UR6][R4.64] ;
        /*0050*/                   LDG.E.ENL2.256 R8, R12, desc[UR6][R4.64] ;
        /*0060*/              @!PT LDGSTS.E.BYPASS.128 [R17], desc[UR6][R2.64] ;
        /*0070*/                   LDGSTS.E [R17], desc[UR6][R2.64] ;
        /*0080*/         @UP0 UTMALDG.2D [UR8], [UR4] ;
        /*0090*/                   LDS.128 R20, [R2] ;
        /*00a0*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*00b0*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ;
        /*00c0*/                   UTCHMMA gdesc[UR8], gdesc[UR10], tmem[UR4], tmem[UR12], idesc[UR13] ;
        /*00d0*/                   UTCATOMSWS.AND URZ, UR4 ;
        /*00e0*/                   STL.64 [R1+0x8], R2 ;
        /*00f0*/                   LDL.LU R2, [R1] ;
        /*0100*/              @!P0 RED.E.ADD.STRONG.GPU desc[UR4][R2.64], R5 ;
"""
INTERMEDIATE_CODE = """
  %acc_34 = tt.dot %x_25, %acc_33, %acc_12 : tensor<64x32xbf16> * tensor<32x128xbf16> -> tensor<64x128xf32> loc(#loc44)
  %acc_35 = tt.dot %x, %y, %z, inputPrecision = tf32 : tensor<16x32xf32> * tensor<32x64xf32> -> tensor<16x64xf32>
"""


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    """What the gate says of the planted kernels that are not fit, by the variant's name."""
    done = _run(PLANTED, "--arch", "90")
    assert done.returncode == 1, done.stderr
    failed = re.findall(r"^FAILED \w+: ([^,]+), sm_90: (.*)$", done.stdout, re.MULTILINE)
    return dict(failed)


def test_instructions_are_counted_by_what_they_do() -> None:
    assert instruction_counts(MACHINE_CODE) == {
        "matrix": {"HGMMA": 1, "HMMA": 1, "UTCHMMA": 1},
        "vector_loads": 4,
        "narrow_loads": 3,
        "spills": 2,
        "atomics": 1,
    }


def test_products_are_read_with_their_tile() -> None:
    assert products(INTERMEDIATE_CODE) == (
        Product(rows=64, cols=128, dtype="bf16", is_tf32=False),
        Product(rows=16, cols=64, dtype="f32", is_tf32=True),
    )


@pytest.mark.parametrize(
    ("rows", "arch", "num_warps", "due"),
    [
        (64, 80, 4, "HMMA"),
        (64, 90, 4, "HGMMA"),
        (128, 90, 8, "HGMMA"),
        (64, 90, 2, "HMMA"),
        (16, 90, 4, "HMMA"),
        (64, 100, 8, "UTCHMMA"),
        (64, 100, 16, "HMMA"),
        (32, 100, 4, "HMMA"),
    ],
)
def test_high_tiles_are_due_the_instructions_of_warp_groups(
    rows: int, arch: int, num_warps: int, due: str
) -> None:
    found = Product(rows=rows, cols=64, dtype="bf16", is_tf32=False)
    assert due_instructions((found,), arch, num_warps) == {due}


def test_products_of_float32_are_due_none() -> None:
    assert not due_instructions((Product(rows=64, cols=64, dtype="f32", is_tf32=False),), 90, 4)


@pytest.mark.parametrize(
    ("variant", "problem"),
    [
        ("spilling", "spills: "),
        ("off the tensor cores", "no matrix instruction"),
        ("not known to have a product", "has_dot is false"),
        ("in tf32", "a product in tf32"),
        ("too large", "bytes of shared memory, 232448 exist"),
        ("scalar loads", "32 narrow loads, 0 allowed"),
        ("scalar loads", "pitch is specialised by its value"),
        ("atomic", "atomic instructions"),
        ("untyped", "does not compile: ValueError: arguments without a type"),
        ("aborting", "the compiler aborted"),
    ],
)
def test_a_planted_fault_is_told(told: dict[str, str], variant: str, problem: str) -> None:
    assert problem in told[variant]


def test_sound_kernels_pass_beside_others_that_do_not(told: dict[str, str]) -> None:
    assert not {"sound", "low tile", "aligned"} & set(told)


def test_the_gate_passes_where_all_are_sound() -> None:
    done = _run(PLANTED, "--only", "sound", "--arch", "90")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HGMMA" in done.stdout


def test_the_gate_does_not_pass_over_nothing() -> None:
    done = _run(PLANTED, "--only", "no such kernel")
    assert done.returncode == 1
    assert "no variant has such a name" in done.stdout


def test_every_kernel_is_in_the_dispatch_table() -> None:
    written = {name for path in FOLDER.glob("*.py") for name in _kernels(path)}
    assert written == {key.kernel for key in all_variants()}


def test_the_cover_set_has_every_kernel_in_every_dtype_and_rank_bucket() -> None:
    def form(key: Key) -> tuple[object, ...]:
        variant = all_variants()[key]
        types = frozenset(variant.types.values())
        return key.kernel, types, variant.constants.get("BUCKET"), variant.constants.get("HEAD_DIM")

    assert {form(key) for key in cover()} == {form(key) for key in all_variants()}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_variant_of_each_kind_is_fit_for_every_architecture() -> None:
    done = _run(GATE, "--cover")
    assert done.returncode == 0, done.stdout[done.stdout.find("FAILED") :] + done.stderr


def _kernels(path: Path) -> list[str]:
    """Functions of a file that Triton compiles and that are called kernels."""
    return [
        node.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
        and node.name.endswith("_kernel")
        and any(ast.unparse(one).startswith("triton.jit") for one in node.decorator_list)
    ]


def _run(script: Path, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT / "bench")
    command = [sys.executable, str(script), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
