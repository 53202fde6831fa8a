"""Compiles every Triton kernel ahead of time for the GPUs we serve on and reports registers and spills.

Needs no GPU: `python -m sparktier.kernels.compile_report`. It lists each kernel's argument types and launch constants.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparktier.configs.errors import UpstreamError
from sparktier.kernels import accept_triton, expand_triton, greedy_triton, mask_triton, noise_triton
from sparktier.kernels.verify import attention_tables_triton, commit_triton

ARCHITECTURES = (80, 90, 100)
_WARP = 32


class KernelVariant(NamedTuple):
    """One compiled form of a kernel: argument types in order, then constants by name."""

    name: str
    kernel: Any
    types: tuple[str, ...]
    constants: dict[str, int]


class KernelReport(NamedTuple):
    """ptxas' report of one variant on one architecture."""

    kernel: str
    architecture: str
    registers: int
    spilled_bytes: int
    shared_bytes: int


def variants() -> list[KernelVariant]:
    """Every kernel with the types the engine calls it with."""
    walk = ("*i64", "*i64", "*fp32", *("*i64",) * 6, "i32", "i32", "i32")
    greedy = ("*fp32", "*fp32", "*i64", "i32", "i32")
    greedy_constants = {"BLOCK": greedy_triton.GREEDY_BLOCK, "NO_TOKEN": -1}
    walk_constants = {"WIDTH": 64, "BLOCKS": 64, "NO_ROW": -1, "PAD": -1}
    draw = ("*fp32", "*i64", "*i64", "*fp64", "*i64", "i32", "i32")
    top = ("*bf16", "*bf16", "*fp32", "*fp32", "*i64", "*fp32", "i32", "i32")
    mask = ("*i32", "*i64", "*i64", "*i64", "*i32", "*u8", "i32", "i32")
    tables = ("*i64", "*i32", "*i32", "*i32", "*i64", "*i32", "*i32", "*i32", "*u8", "i32", "i32", "i32", "i32")
    # As many slots as SGLang captures by itself at most.
    tables_constants = {"SLOTS": 512, "BLOCK": mask_triton.MASK_BLOCK}
    commit = (*("*i64",) * 10, "*i32", "*i1", *("i32",) * 5)
    commit_constants = {"LEVELS": 16, "WIDTH": 64, "PAD": -1, "NO_TOKEN": -1}
    top_constants = {"COUNT": 8, "BLOCK": expand_triton.TOP_BLOCK}
    return [
        KernelVariant("walk", accept_triton._walk_kernel, walk, walk_constants),
        KernelVariant("greedy_fp32", greedy_triton._greedy_kernel, greedy, greedy_constants),
        KernelVariant("greedy_bf16", greedy_triton._greedy_kernel, ("*bf16", *greedy[1:]), greedy_constants),
        KernelVariant("draw", noise_triton._draw_kernel, draw, {"BLOCK": noise_triton.DRAW_BLOCK}),
        KernelVariant("top_children_bf16", expand_triton._top_kernel, top, top_constants),
        KernelVariant("top_children_fp32", expand_triton._top_kernel, ("*fp32", "*fp32", *top[2:]), top_constants),
        KernelVariant("commit", commit_triton._commit_kernel, commit, commit_constants),
        *(
            KernelVariant(name, attention_tables_triton._tables_kernel, tables, {**tables_constants, "TREE": is_tree})
            for name, is_tree in (("chain_tables", 0), ("tree_tables", 1))
        ),
        KernelVariant("packed_mask", mask_triton._mask_kernel, mask, {"BLOCK": mask_triton.MASK_BLOCK}),
    ]


def compile_variant(variant: KernelVariant, architecture: int) -> KernelReport:
    """Compile for one architecture (80, 90, 100). Raises UpstreamError when ptxas refuses."""
    names = variant.kernel.arg_names
    signature = dict(zip(names, variant.types + ("constexpr",) * len(variant.constants), strict=True))
    source = ASTSource(fn=variant.kernel, signature=signature, constexprs=variant.constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, _WARP))
    registers, spilled = _ask_ptxas(compiled.asm["ptx"])
    return KernelReport(variant.name, f"sm_{architecture}", registers, spilled, compiled.metadata.shared)


def _ask_ptxas(ptx: str) -> tuple[int, int]:
    """Return registers per thread and bytes spilled, from Triton's ptxas; without a GPU Triton keeps neither."""
    target = re.search(r"\.target (sm_\w+)", ptx)
    assert target is not None, "Triton writes PTX with a target"
    ptxas = triton.knobs.nvidia.ptxas_blackwell if "sm_10" in target[1] else triton.knobs.nvidia.ptxas
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [ptxas.path, "-v", f"--gpu-name={target[1]}", str(path), "-o", f"{folder}/kernel.cubin"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UpstreamError(f"ptxas refuses a kernel for {target[1]}: {done.stderr.strip()}")
    registers = re.search(r"Used (\d+) registers", done.stderr)
    spills = re.findall(r"(\d+) bytes spill", done.stderr)
    assert registers is not None, "ptxas -v reports registers"
    return int(registers[1]), sum(map(int, spills))


def report() -> list[KernelReport]:
    """All variants on all architectures."""
    return [compile_variant(variant, architecture) for variant in variants() for architecture in ARCHITECTURES]


if __name__ == "__main__":
    sys.stdout.write(json.dumps([row._asdict() for row in report()], indent=1) + "\n")
