"""Runs mypy over all packages. Knows nothing of what they do.

mypy can't follow the editable install of a namespace over plain folders, so it is shown a git-ignored root of links
(`.typecheck/sparktier/<folder>`) that looks like the installed package.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("configs", "kernels", "drafter", "cluster", "serving")


def main() -> int:
    """Return mypy's exit status."""
    links = ROOT / ".typecheck" / "sparktier"
    links.mkdir(parents=True, exist_ok=True)
    for folder in FOLDERS:
        link = links / folder
        if not link.is_symlink():
            link.symlink_to(ROOT / folder)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "-p", "sparktier"]
    return subprocess.run(command, cwd=ROOT, env={"MYPYPATH": str(links.parent), "PATH": ""}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
