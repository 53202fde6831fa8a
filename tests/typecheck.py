"""Runs mypy over all packages and the benchmarks.

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
    """Return the worse of mypy's two exit statuses."""
    links = ROOT / ".typecheck" / "sparktier"
    links.mkdir(parents=True, exist_ok=True)
    for folder in FOLDERS:
        link = links / folder
        if not link.is_symlink():
            link.symlink_to(ROOT / folder)
    # Scripts import each other by name, so they are a run of their own.
    packages = mypy("-p", "sparktier", path=[links.parent])
    scripts = mypy(str(BENCH), path=[links.parent, ROOT / "tests", BENCH])
    return max(packages, scripts)


def mypy(*what: str, path: list[Path]) -> int:
    """Check `what`, imports looked for in `path`, and return mypy's exit status."""
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), *what]
    env = {"MYPYPATH": ":".join(map(str, path)), "PATH": ""}
    return subprocess.run(command, cwd=ROOT, env=env, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
