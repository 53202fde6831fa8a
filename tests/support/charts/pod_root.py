"""Runs a command as a pod would: in a root that can't be written, with volumes, as a user without rights.

python -m support.charts.pod_root FILE, inside a mount namespace of its own, where this process may mount. FILE is a
`PodProcess` as JSON. The machine's own folders are the image.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# Kernel folders, and the folder of the volumes themselves, which a pod's own /tmp hides.
_AS_THEY_ARE = {"/proc", "/sys", "/dev"}


@dataclass(frozen=True)
class PodProcess:
    """One container. `volumes` gives the folder (or file) of each path in the pod, and whether it can be written."""

    command: Sequence[str]
    env: Mapping[str, str]
    volumes: Mapping[str, tuple[str, bool]]
    hosts: Sequence[str]
    user_id: int

    def write(self, path: Path) -> None:
        """Write it where `main` reads it."""
        path.write_text(json.dumps(asdict(self)))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _bind(source: Path, place: Path, *, writable: bool) -> None:
    if source.is_dir():
        place.mkdir(parents=True, exist_ok=True)
    elif not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    _mount("--rbind", str(source), str(place))
    if not writable:
        _mount("-o", "remount,bind,ro", str(place))


def _fill(real: Path, new: Path, own: set[Path]) -> None:
    """Show each entry of `real` in `new`; folders of `own` are made anew, so that mount points can be made in them."""
    for entry in sorted(real.iterdir()):
        place = new / entry.name
        if entry.is_symlink():
            place.symlink_to(os.readlink(entry))
        elif entry in own:
            place.mkdir()
            _fill(entry, place, own)
        elif entry.is_dir() or entry.is_file():
            _bind(entry, place, writable=str(entry) in _AS_THEY_ARE)


def enter(pod: PodProcess, root: Path) -> None:
    """Make `root` the root of this process, which alone sees it."""
    _mount("-t", "tmpfs", "tmpfs", str(root))
    own = {
        parent
        for path in map(Path, pod.volumes)
        if not path.exists()
        for parent in path.parents
        if parent.is_dir() and parent != Path("/")
    }
    _fill(Path("/"), root, own)
    hosts = root / "hosts"
    hosts.write_text("127.0.0.1 localhost " + " ".join(pod.hosts) + "\n")
    _mount("--bind", str(hosts), str(root / "etc" / "hosts"))
    # A folder before what is in it.
    for path, (source, writable) in sorted(pod.volumes.items()):
        _bind(Path(source), root / path.lstrip("/"), writable=writable)
    _mount("-o", "remount,bind,ro", str(root))
    os.chdir(root)
    subprocess.run(["pivot_root", ".", "."], check=True)
    subprocess.run(["umount", "-l", "."], check=True)
    os.chdir("/")


def main(file: Path) -> None:
    """Become the command."""
    read = json.loads(file.read_text())
    pod = PodProcess(**read)
    enter(pod, file.with_suffix(".root"))
    as_user = ("unshare", "--user", f"--map-user={pod.user_id}", f"--map-group={pod.user_id}", "--")
    os.execvpe("unshare", [*as_user, *pod.command], dict(pod.env))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
