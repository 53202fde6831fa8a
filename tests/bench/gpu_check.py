"""What an operator runs on a GPU node, `make gpu-check`: checks, or a stage of measurements (support/gpu_stages).

`make gpu-check CONFIG=my.yaml PROMPTS=prompts.jsonl`: is all of it right? One line per check; exit 1 when one fails.
`make gpu-check STAGE=A`: what launches, our kernels and captured tails cost; torch is all that it needs.
`make gpu-check STAGE=B`: attention of a verify pass in graphs, by requests, rows and context.
`make gpu-check STAGE=C SHAPE=qwen3-30b-a3b`: steps of the whole engine with random weights and scripted acceptance,
beside SGLang without drafts and SGLang's own DSPARK.
Each figure is in the file (`--out`) as soon as it is known, and a second run goes on where the first one stopped.
"""

import argparse
import importlib
import importlib.util
import subprocess
import sys
import time
import types
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
NEEDS = {"A": ("torch", "triton"), "B": ("torch", "sglang", "flashinfer"), "C": ("torch", "sglang", "flashinfer")}
ENGINES = ("ours", "plain", "native")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="a configuration with speculation.method chain or tree")
    parser.add_argument("--prompts", type=Path, help="jsonl of prompts for the checks of the model")
    parser.add_argument("--stage", choices=NEEDS, help="measure instead of check")
    parser.add_argument("--shape", default="qwen3-30b-a3b", help="the model of stage C")
    parser.add_argument("--minutes", type=float, default=12.0, help="no cell is begun after that")
    parser.add_argument("--out", type=Path, default=Path("out/gpu.json"))
    parser.add_argument("--dry-run", action="store_true", help="small cells on a CPU: shows that all of it runs")
    options = parser.parse_args()
    if missing := lacks(options.stage, dry_run=options.dry_run):
        print(f"gpu-check: {missing}", file=sys.stderr)
        return 2
    _find_own_packages()
    if options.stage is None:
        from support.gpu_stages import checks

        return checks.of_node(options.config, options.prompts)
    return measured(options)


def lacks(stage: str | None, *, dry_run: bool) -> str | None:
    """Return what is missing here, in a sentence; None where all is there."""
    for package in NEEDS[stage or "C"]:
        if importlib.util.find_spec(package) is None:
            return f"stage {stage} needs the package {package} (not installed); run it in the project's environment."
    import torch

    if dry_run and stage is not None:
        return None
    if not torch.cuda.is_available():
        what = "" if stage is None else f"stage {stage} "
        return f"{what}needs a CUDA device (found none); run it on a GPU node."
    return None


def measured(options: argparse.Namespace) -> int:
    """Run a stage until it is through or its time is over; return the exit status."""
    from support.gpu_stages import machine
    from support.gpu_stages.results import Results

    until_s = time.monotonic() + 60.0 * options.minutes
    if options.stage == "C":
        return max(_engine(name, options, until_s) for name in ENGINES)
    results = Results(options.out, machine.meta())
    stage = importlib.import_module(f"support.gpu_stages.stage_{options.stage.lower()}")
    left = results.run(options.stage, stage.cells(options.dry_run), stage.measure, until_s=until_s)
    print(f"{options.out}: {len(results.rows)} rows, {len(left)} cells left for another run")
    return 1 if any("error" in row for row in results.rows) else 0


def _engine(name: str, options: argparse.Namespace, until_s: float) -> int:
    """Run one engine's cells in a process of its own, in its share of the time that is left."""
    share = {"ours": 0.6, "plain": 0.5, "native": 1.0}[name]
    minutes = share * max(0.0, until_s - time.monotonic()) / 60.0
    command = [sys.executable, "-m", "support.gpu_stages.engine_cells", "--engine", name, "--shape", options.shape]
    command += ["--out", str(options.out), "--minutes", f"{minutes:.2f}"]
    return subprocess.run(command + ["--dry-run"] * options.dry_run, check=False).returncode


def _find_own_packages() -> None:
    """Let a bare checkout find itself where the project isn't installed: `sparktier` is a namespace of its folders."""
    sys.path.insert(0, str(TESTS))
    if importlib.util.find_spec("sparktier") is None:
        package = types.ModuleType("sparktier")
        package.__path__ = [str(TESTS.parent)]
        sys.modules["sparktier"] = package


if __name__ == "__main__":
    sys.exit(main())
