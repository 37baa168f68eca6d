"""Compiles a kernel without a device and reads what the machine code needs and does."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KIB = 1024
SHARED_LIMITS = {80: 163 * KIB, 90: 227 * KIB, 100: 227 * KIB}  # bytes, of one program
TENSOR_COLUMNS = 512  # of tensor memory, sm_100
HALF_TYPES = ("bf16", "f16")

# An instruction: address, perhaps a predicate, then its name with modifiers after full stops.
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)((?:\.\w+)*)", re.M)
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")
_TENSOR = r"tensor<(\d+)x(\d+)x(\w+)>"
_PRODUCT = re.compile(rf"tt\.dot ([^:\n]*): {_TENSOR} \* {_TENSOR}")
_MATRIX = re.compile(r"^(HMMA|HGMMA|UTC\w*MMA)$")  # not HFMA2.MMA, which is no product of matrices


@dataclass(frozen=True, slots=True)
class Product:
    """A `tl.dot` of the kernel, as its intermediate code has it."""

    rows: int
    cols: int
    dtype: str
    is_tf32: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one variant needs on one architecture, and the instructions it is made of."""

    registers: int  # per thread
    stack_bytes: int
    spills: int  # instructions that store to or load from local memory
    shared_bytes: int
    matrix: dict[str, int]  # matrix instructions by name
    vector_loads: int  # from global memory, 16 bytes or more each
    narrow_loads: int  # from global memory, less
    atomics: int
    tensor_columns: int = 0
    scratch_bytes: int = 0  # global memory that a launch would have to bring
    products: tuple[Product, ...] = ()


def compile_variant(variant: Any, arch: int) -> Resources:
    """Compile for an architecture, as the launch would, and read the result back."""
    import triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", arch, 32)
    compiled = triton.compile(_source(variant), target=target, options=variant.options)
    usage, machine_code = disassemble(compiled.asm["cubin"])
    resources = re.search(_RESOURCES, usage)
    if resources is None:
        raise ValueError(f"cuobjdump gave no resource usage: {usage[-200:]}")
    metadata = compiled.metadata
    return Resources(
        registers=int(resources[1]),
        stack_bytes=int(resources[2]),
        shared_bytes=metadata.shared,
        tensor_columns=getattr(metadata, "tmem_size", None) or 0,
        scratch_bytes=getattr(metadata, "global_scratch_size", None) or 0,
        products=products(compiled.asm["ttir"]),
        **instruction_counts(machine_code),
    )


def disassemble(cubin: bytes) -> tuple[str, str]:
    """Resource usage and machine code of a compiled kernel, by the tools Triton brings."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return (
            _output(tools / "cuobjdump", "-res-usage", file.name),
            _output(tools / "nvdisasm", "-c", "-ndf", file.name),
        )


def instruction_counts(machine_code: str) -> dict[str, Any]:
    """The fields of `Resources` that come from the text of nvdisasm."""
    counts = Counter((found[1], found[2]) for found in _INSTRUCTION.finditer(machine_code))
    matrix: Counter[str] = Counter()
    vector = narrow = spills = atomics = 0
    for (name, modifiers), count in counts.items():
        if _MATRIX.match(name):
            matrix[name] += count
        elif name.startswith("UTMALDG"):  # a bulk copy
            vector += count
        elif name in ("LDG", "LDGSTS"):
            if {"128", "256"} & set(modifiers.split(".")):
                vector += count
            else:
                narrow += count
        elif name in ("STL", "LDL"):
            spills += count
        elif name in ("ATOM", "ATOMG", "RED", "REDG"):
            atomics += count
    return {
        "matrix": dict(sorted(matrix.items())),
        "vector_loads": vector,
        "narrow_loads": narrow,
        "spills": spills,
        "atomics": atomics,
    }


def products(intermediate_code: str) -> tuple[Product, ...]:
    """Every `tl.dot` in the text of Triton's own intermediate code."""
    return tuple(
        Product(
            rows=int(found[2]),
            cols=int(found[6]),
            dtype=found[4],
            is_tf32=found[4] == "f32" and "tf32" in found[1],
        )
        for found in _PRODUCT.finditer(intermediate_code)
    )


def due_instructions(found: tuple[Product, ...], arch: int, num_warps: int) -> set[str]:
    """Matrix instructions that these products must become.

    A tile of 64 rows or more is multiplied by a whole warp group where the architecture has
    instructions for that: HGMMA on sm_90, UTCHMMA (tcgen05) on sm_100, which need groups of four
    warps, on sm_100 one or two. Lower tiles, and all of sm_80, use HMMA. Products of float32 are
    exact sums of exact products and use no matrix instruction.
    """
    due = set()
    for product in found:
        if product.dtype not in HALF_TYPES:
            continue
        is_high = product.rows % 64 == 0
        if arch >= 100 and is_high and product.cols % 16 == 0 and num_warps in (4, 8):
            due.add("UTCHMMA")
        elif 90 <= arch < 100 and is_high and product.cols % 8 == 0 and num_warps % 4 == 0:
            due.add("HGMMA")
        else:
            due.add("HMMA")
    return due


def problems(variant: Any, found: Resources, arch: int) -> list[str]:
    """Why a variant is not fit to be launched on an architecture; empty where it is."""
    told = []
    if found.stack_bytes or found.spills:
        told.append(f"spills: {found.stack_bytes} bytes of stack, {found.spills} instructions")
    due = due_instructions(found.products, arch, variant.num_warps)
    told += [f"no {name}" for name in sorted(due) if not found.matrix.get(name)]
    if variant.has_dot and not found.matrix and not due:
        told.append("no matrix instruction")
    if due and not variant.has_dot:
        told.append("has a product of 16-bit numbers, but has_dot is false")
    if any(product.is_tf32 for product in found.products):
        told.append("a product in tf32")
    if found.narrow_loads > variant.max_narrow_loads:
        told.append(f"{found.narrow_loads} narrow loads, {variant.max_narrow_loads} allowed")
    if found.shared_bytes > SHARED_LIMITS[arch]:
        told.append(f"{found.shared_bytes} bytes of shared memory, {SHARED_LIMITS[arch]} exist")
    if found.tensor_columns > TENSOR_COLUMNS:
        told.append(f"{found.tensor_columns} columns of tensor memory, {TENSOR_COLUMNS} exist")
    if found.scratch_bytes:
        told.append(f"{found.scratch_bytes} bytes of scratch per program, which no launch brings")
    if found.atomics:
        told.append(f"{found.atomics} atomic instructions")
    return told + _specialised(variant)


def _specialised(variant: Any) -> list[str]:
    """Integer arguments for whose values the launch would compile anew, or otherwise than here."""
    told = []
    for parameter in variant.kernel.params:
        if variant.types.get(parameter.name, "*").startswith(("*", "fp")):
            continue
        if parameter.name in variant.multiples_of_16:
            if parameter.do_not_specialize:
                told.append(f"{parameter.name} is a multiple of 16, but the launch does not look")
        elif not parameter.do_not_specialize:
            told.append(f"{parameter.name} is specialised by its value")
    return told


def _source(variant: Any) -> Any:
    from triton.compiler import ASTSource

    names = list(variant.kernel.arg_names)
    types = dict.fromkeys(variant.constants, "constexpr") | dict(variant.types)
    missing, unknown = set(names) - set(types), set(types) - set(names)
    if missing or unknown:
        raise ValueError(f"arguments without a type: {missing}; types of no argument: {unknown}")
    aligned = [name for name in names if types[name].startswith("*")] + [*variant.multiples_of_16]
    return ASTSource(
        fn=variant.kernel,
        signature={name: types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in variant.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )


def _output(*command: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{Path(command[0]).name} failed: {done.stderr[-300:]}")
    return done.stdout + done.stderr
