"""Checks of this machine for one configuration. Each gives what was found and, unless that is fine, the cure.

Reads the machine and changes nothing. `Finding.fails` decides the exit code.
"""

import importlib.metadata
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement

from sparktier.cluster.step_time import StepTimeModel
from sparktier.configs.errors import ArtifactError, ConfigError
from sparktier.configs.settings.model import ModelSource, model_source
from sparktier.configs.settings.settings import Settings
from sparktier.configs.settings.speculation import LADDERS
from sparktier.configs.step_times import read_table
from sparktier.drafter.demo.location import demo_draft
from sparktier.serving.clients.addresses import host_port, listening
from sparktier.serving.demo_model import built_demo_model, require_buildable
from sparktier.serving.deployment.model_source import local_checkpoint
from sparktier.serving.deployment.planner import draft_block, most_alone_tok_s, prefill_chunk_tokens
from sparktier.serving.deployment.resolved import THIS_MACHINE, Machine, device_of, dtype_of
from sparktier.serving.engine.upstream import check as upstream
from sparktier.serving.engine.upstream.source import installed_root
from sparktier.serving.supervision.deployment_dir import runs_folder

Status = Literal["ok", "warning", "failed"]

_GIB = 1 << 30
_WATCHED = ("sglang", "torch", "ray", "flashinfer-python", "transformers")
_PLUGIN = ("sglang.srt.plugins", "sparktier")
_PLATFORM = ("sglang.srt.platforms", "sparktier_cpu")
_LOGS_BYTES = _GIB // 4
# An SGLang process maps about 2 GiB before it has loaded any weights.
_RANK_MEMORY_BYTES = 2 * _GIB
_SHARED_MEMORY_BYTES = 128 << 20
_CONNECT_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    status: Status
    found: str
    cure: str = ""

    @property
    def fails(self) -> bool:
        """Whether `sparktier up` can't work with this."""
        return self.status == "failed"


def examine(settings: Settings) -> list[Finding]:
    """Return the findings of every check for `settings` on this machine."""
    return [finding for check in _CHECKS for finding in check(settings)]


def check_python(_: Settings) -> Iterator[Finding]:
    """The interpreter is the version that the lock file is made for."""
    version = ".".join(map(str, sys.version_info[:3]))
    right = sys.version_info[:2] == (3, 11)
    yield _finding("python", right, version, "Use Python 3.11: make env makes an environment of it.")


def check_packages(_: Settings) -> Iterator[Finding]:
    """The main packages have the versions that sparktier and SGLang ask for."""
    wanted = _requirements("sparktier") | _requirements("sglang")
    for name in _WATCHED:
        requirement = wanted.get(name)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "failed", "not installed", "Run make env.")
            continue
        right = requirement is None or requirement.specifier.contains(version, prereleases=True)
        yield _finding(name, right, version, f"Install {requirement}: run make env.")


def check_upstream(_: Settings) -> Iterator[Finding]:
    """The internals of SGLang that we hook are the recorded ones."""
    root = installed_root()
    findings = [] if root is None else upstream.compare(root)
    differing = [finding.use.symbol for finding in findings if finding.state != "same"]
    found = f"{len(findings) - len(differing)} of {len(findings)} symbols as recorded"
    cure = f"Reinstall SGLang {upstream.read_lock().version}; these differ: {', '.join(differing)}."
    yield _finding("sglang internals", bool(findings) and not differing, found, cure)


def check_plugins(_: Settings) -> Iterator[Finding]:
    """SGLang will find and may load our plugin and platform."""
    for group, name in (_PLUGIN, _PLATFORM):
        points = importlib.metadata.entry_points(group=group, name=name)
        try:
            loaded = [point.load() for point in points]
        except (ImportError, AttributeError) as error:
            yield Finding(f"entry point {name}", "failed", str(error), "Reinstall sparktier: run make env.")
            continue
        yield _finding(f"entry point {name}", bool(loaded), f"{len(loaded)} in {group}", "Run make env.")
    allowed = os.environ.get("SGLANG_PLUGINS")
    if allowed is not None:
        right = _PLUGIN[1] in [item.strip() for item in allowed.split(",")]
        yield _finding("SGLANG_PLUGINS", right, allowed, "Add sparktier to it, or unset it.")


def check_device(settings: Settings, machine: Machine = THIS_MACHINE) -> Iterator[Finding]:
    """The GPUs are here, or the CPU has a core for each rank and is quick in the number format of the model."""
    if device_of(settings, machine) == "cpu":
        yield _cpu_cores(settings)
        yield _cpu_number_format(settings, machine)
        return
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    here = settings.replicas.ranks if settings.ray.address is None else 1
    cure = f"This needs {here} GPUs here; use fewer ranks, or name a Ray cluster in ray.address."
    yield _finding("GPUs", len(names) >= here, ", ".join(names) or "none", cure)


def _cpu_cores(settings: Settings) -> Finding:
    cores = len(os.sched_getaffinity(0))
    ranks = settings.replicas.ranks
    cure = f"{ranks} ranks will share {cores} cores; use fewer ranks."
    return _finding("CPU cores", cores >= ranks, f"{cores}, no GPU used", cure, otherwise="warning")


def _cpu_number_format(settings: Settings, machine: Machine) -> Finding:
    dtype = dtype_of(settings, "cpu", machine)
    found = "the checkpoint's" if dtype == "auto" else dtype
    cure = "This CPU has no units for it, so a row of a draft costs as much as a step; set model.dtype to auto."
    quick = machine.has_bfloat16_units() or dtype == "float32"
    return _finding("CPU number format", quick, found, cure, otherwise="warning")


def check_promises(settings: Settings) -> Iterator[Finding]:
    """No tier promises more than one user alone reaches, by the step times that the settings name."""
    path = settings.speculation.step_times_path
    if path is None:
        return
    try:
        table = read_table(Path(path))
        most_tok_s = most_alone_tok_s(settings, table, _draft_block(settings))
        chunk_tokens = prefill_chunk_tokens(settings)
    except (ArtifactError, ConfigError) as error:
        yield Finding("step times", "failed", str(error), "Correct it, or measure them with sparktier profile.")
        return
    if chunk_tokens is not None:
        yield _longest_stall(settings, StepTimeModel(table).prefill_ms(chunk_tokens), chunk_tokens)
    for tier in settings.tiers.values():
        if tier.promise_tok_s is None or most_tok_s is None:
            continue
        found = f"promises {tier.promise_tok_s:g} tok/s, one user alone reaches at most {most_tok_s:.3g}"
        cure = "Lower the promise, or use a faster deployment."
        yield _finding(f"tier {tier.name}", tier.promise_tok_s <= most_tok_s, found, cure)


def _longest_stall(settings: Settings, stall_ms: float, chunk_tokens: int) -> Finding:
    """How long one chunk of prefill holds up everybody's tokens."""
    bounds_ms = [tier.max_stall_ms for tier in settings.tiers.values() if tier.max_stall_ms is not None]
    found = f"{stall_ms:.3g} ms for a chunk of {chunk_tokens} prompt tokens"
    cure = f"Lower replicas.chunked_prefill_tokens, or leave it out: a tier asks for {min(bounds_ms, default=0)} ms."
    return _finding("longest stall", stall_ms <= min(bounds_ms, default=stall_ms), found, cure, otherwise="warning")


def _draft_block(settings: Settings) -> int | None:
    """The block of the draft's checkpoint, where that is on this machine."""
    draft = settings.speculation.draft_path
    if draft is None or model_source(draft) is ModelSource.HUB:
        return None
    return draft_block(str(demo_draft()) if model_source(draft) is ModelSource.DEMO else draft)


def check_memory(settings: Settings) -> Iterator[Finding]:
    """There is memory for the processes of the ranks, before weights and cache."""
    memory = psutil.virtual_memory()
    ranks = settings.replicas.ranks if settings.ray.address is None else settings.replicas.tensor_parallel
    needed = _RANK_MEMORY_BYTES * (ranks + settings.replicas.count)
    found = f"{memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free"
    cure = f"{ranks} ranks need about {needed / _GIB:.0f} GiB; stop other programs or use fewer."
    yield _finding("memory", memory.available >= needed, found, cure, otherwise="warning")
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        cure = "Give the container more: --shm-size=1g, or an emptyDir with medium Memory at /dev/shm."
        yield _finding("shared memory", free >= _SHARED_MEMORY_BYTES, f"{free / _GIB:.2f} GiB free", cure)


def check_disk(_: Settings) -> Iterator[Finding]:
    """There is room for logs."""
    try:
        folder = runs_folder()
    except ArtifactError as error:
        yield Finding("disk", "failed", str(error), "Set SPARKTIER_CACHE.")
        return
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(nearest).free
    cure = f"Free {_LOGS_BYTES / _GIB:.1f} GiB there, or set SPARKTIER_CACHE."
    yield _finding("disk", free >= _LOGS_BYTES, f"{free / _GIB:.1f} GiB free in {folder}", cure, otherwise="warning")


def check_port(settings: Settings) -> Iterator[Finding]:
    """The ports of the listeners are free."""
    server = settings.server
    for name, host, port in (
        ("port", server.host, server.port),
        ("grpc_port", server.host, server.grpc),
        ("internal_port", server.internal_host, server.internal),
    ):
        try:
            listening(host, port).close()
        except OSError as error:
            found = f"{host_port(host, port)}: {error.strerror}"
            yield Finding(name, "failed", found, f"Stop what listens there, or set server.{name}.")
        else:
            yield Finding(name, "ok", f"{host_port(host, port)} is free")


def check_ray(settings: Settings) -> Iterator[Finding]:
    """The Ray cluster answers, where one is named."""
    address = settings.ray.address
    if address is None:
        yield Finding("ray", "ok", "sparktier up will start a local cluster")
        return
    if address == "auto":
        yield Finding("ray", "ok", "auto: the cluster that this node belongs to")
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        yield Finding("ray", "failed", f"{address}: {error}", "Start Ray there, or set ray.address to null.")
        return
    yield Finding("ray", "ok", f"{address} answers")


def check_model(settings: Settings) -> Iterator[Finding]:
    """The weights are here, every file of them."""
    if settings.model.source is ModelSource.HUB:
        yield Finding("model", "ok", f"{settings.model.path}: SGLang will fetch it")
    elif settings.model.source is ModelSource.DEMO:
        yield _demo_model()
    else:
        yield _local_checkpoint(settings.model.path)


def _demo_model() -> Finding:
    try:
        if built := built_demo_model():
            return Finding("model", "ok", str(built))
        require_buildable()
    except ArtifactError as error:
        return Finding("model", "failed", str(error), "Set SPARKTIER_CACHE.")
    return Finding("model", "ok", "demo: will be built at the first start (93 MB download)")


def check_calibration(settings: Settings) -> Iterator[Finding]:
    """Which calibration of the drafter is in force, and whether it is this drafter's."""
    speculation = settings.speculation
    if speculation.draft_path is None or not (speculation.method in LADDERS or speculation.verification == "compact"):
        return
    # Late: it loads torch and transformers.
    from sparktier.serving.doctor.calibration import calibration_in_force

    try:
        found = calibration_in_force(speculation)
    except ArtifactError as error:
        yield Finding("calibration", "failed", str(error), "Run sparktier calibrate.")
        return
    cure = "Chances are the drafter's own, uncalibrated; run sparktier calibrate."
    yield _finding("calibration", not found.startswith("none"), found, cure, otherwise="warning")


_CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    check_python,
    check_packages,
    check_upstream,
    check_plugins,
    check_device,
    check_promises,
    check_memory,
    check_disk,
    check_port,
    check_ray,
    check_model,
    check_calibration,
)


def _local_checkpoint(path: str) -> Finding:
    cure = "Copy the whole checkpoint there, or correct model.path."
    try:
        directory = local_checkpoint(path, "model.path")
    except ArtifactError as error:
        return Finding("model", "failed", str(error), cure)
    other_format = any(directory.glob("*.bin")) or any(directory.glob("*.gguf"))
    missing = [name for name in _weight_files(directory) if not _whole(directory / name)]
    if missing and not other_format:
        return Finding("model", "failed", f"{directory}: missing or cut short: {', '.join(missing)}", cure)
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        return Finding("model", "failed", f"{directory}: no tokenizer", cure)
    return Finding("model", "ok", str(directory))


def _weight_files(directory: Path) -> list[str]:
    """Return the names of the files that hold weights, or of one that should."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return [file.name for file in directory.glob("*.safetensors")] or ["model.safetensors"]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        names = set()
    return sorted(names) or [index.name]


def _whole(file: Path) -> bool:
    """Return whether a safetensors file has all the bytes its own header promises."""
    try:
        with file.open("rb") as stream:
            header_size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(header_size))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return file.stat().st_size == 8 + header_size + max(ends, default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError):
        return False


def _requirements(distribution: str) -> dict[str, Requirement]:
    """Return what `distribution` asks for on this machine, without its extras, by name."""
    try:
        lines = importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    parsed = (Requirement(line) for line in lines)
    return {item.name: item for item in parsed if item.marker is None or item.marker.evaluate({"extra": ""})}


def _finding(check: str, right: bool, found: str, cure: str, *, otherwise: Status = "failed") -> Finding:
    return Finding(check, "ok", found) if right else Finding(check, otherwise, found, cure)
