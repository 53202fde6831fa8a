"""Writes the Python of the gRPC API and the image that later versions must not break.

    python tests/support/gateways/make_proto.py

Refuses a proto that `buf lint` finds fault with, or that breaks clients of the image.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import mypy_protobuf

ROOT = Path(__file__).resolve().parents[3]
PROTO = ROOT / "serving" / "gateway" / "proto"
SOURCE = "sparktier/v1/inference.proto"
IMAGE = PROTO / "sparktier.v1.json"
GENERATED = ("sparktier/v1/inference_pb2.py", "sparktier/v1/inference_pb2.pyi")


def main() -> int:
    """Write the files; return the exit status."""
    for complaints in (lint(), breaking()):
        if complaints:
            sys.stderr.write(complaints)
            return 1
    with TemporaryDirectory() as folder:
        generate(Path(folder))
        for name in GENERATED:
            shutil.copy(Path(folder) / name, PROTO / name)
    IMAGE.write_text(image())
    return 0


def lint(proto: Path = PROTO) -> str:
    """Return what `buf lint` finds fault with."""
    return _buf("lint", proto).stdout


def breaking(proto: Path = PROTO) -> str:
    """Return where `proto` breaks clients of the image; nothing without an image."""
    return _buf("breaking", proto, "--against", str(IMAGE)).stdout if IMAGE.exists() else ""


def image(proto: Path = PROTO) -> str:
    """Return the image of `proto`."""
    made = _buf("build", proto, "--exclude-source-info", "-o", "-#format=json")
    assert made.returncode == 0, made.stderr
    return made.stdout + "\n"


def generate(folder: Path) -> None:
    """Write the Python of the proto below `folder`."""
    plugin = f"--plugin=protoc-gen-mypy={_program('protoc-gen-mypy')}"
    arguments = [plugin, f"-I{PROTO}", f"--python_out={folder}", f"--mypy_out={folder}", SOURCE]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *arguments], check=True, timeout=60, stderr=subprocess.DEVNULL
    )


def _buf(command: str, proto: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    line = [_program("buf"), command, str(proto), *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)


def _program(name: str) -> str:
    """Return where a program of the locked environment is."""
    return str(Path(mypy_protobuf.__file__).parents[4] / "bin" / name)


if __name__ == "__main__":
    sys.exit(main())
