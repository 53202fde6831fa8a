"""Runs mypy over all packages and the benchmarks. Knows nothing of what they do.

mypy can't follow the editable install of a namespace over plain folders, so it is shown a git-ignored root of links
(`.typecheck/sparktier/<folder>`) that looks like the installed package.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "tests" / "bench"
FOLDERS = ("configs", "kernels", "drafter", "cluster", "serving")


def main() -> int:
    """Return mypy's exit status."""
    links = ROOT / ".typecheck" / "sparktier"
    links.mkdir(parents=True, exist_ok=True)
    for folder in FOLDERS:
        link = links / folder
        if not link.is_symlink():
            link.symlink_to(ROOT / folder)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    # Scripts import each other by name, so they are a run of their own.
    runs = {("-p", "sparktier"): [], (str(BENCH),): [ROOT / "tests", BENCH]}
    codes = []
    for what, beside in runs.items():
        path = ":".join(map(str, [links.parent, *beside]))
        codes.append(
            subprocess.run([*command, *what], cwd=ROOT, env={"MYPYPATH": path, "PATH": ""}, check=False).returncode
        )
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
