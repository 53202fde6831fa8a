"""Runs one replica inside this process: SGLang's tokenizer and OpenAI server here, its ranks as Ray actors.

The process ends when a rank dies: a replica that lacks a rank of its expert group can answer nothing, and its keeper
starts a new one.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil
from ray.util.placement_group import PlacementGroup

from sparktier.configs.errors import ReplicaError
from sparktier.serving.clients.replica_keys import Keys
from sparktier.serving.engine import dp_attention, key_guard
from sparktier.serving.engine.rank_actor import RankLauncher
from sparktier.serving.engine.rank_options import rank_options
from sparktier.serving.engine.requests import chat_abilities, context_limit
from sparktier.serving.engine.room import RoomDoor, RoomKeeper, StartingRoom, room_routes
from sparktier.serving.engine.sampling import choice_seeds
from sparktier.serving.engine.telemetry import ended_requests
from sparktier.serving.engine.telemetry.admin_routes import admin_routes
from sparktier.serving.engine.telemetry.answer_times import AnswerTimes
from sparktier.serving.engine.telemetry.ended_requests import EndedRequests
from sparktier.serving.engine.telemetry.rank_state import RankReport

EXIT_RANK_LOST = 70
_REPORT_TIMEOUT_S = 60.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Launched:
    """What SGLang made at the start of a replica: its arguments, its managers, its ranks."""

    server_args: Any
    tokenizer_manager: Any
    template_manager: Any
    port_args: Any
    ranks: Any
    watchdog: Any


def serve(
    engine_kwargs: Mapping[str, Any],
    *,
    keys: Keys,
    replica_id: str,
    room: StartingRoom,
    group: PlacementGroup,
    on_started: Callable[[], None],
) -> None:
    """Start the ranks on `group`, serve HTTP on the host and port in `engine_kwargs`, and return after a shutdown.

    Requests there have to show one of `keys`. `room` is kept until the first plan. `on_started` is called once SGLang's
    own warm-up request has been answered. Raises ReplicaError when a rank does not start. Source of the sequence:
    `sglang/srt/ray/http_server.py`, which has no seam for a placement group.
    """
    from sglang.srt.plugins import load_plugins

    load_plugins()
    launcher, ended = RankLauncher(), EndedRequests()
    ended_requests.install(ended)
    launched = _launch(engine_kwargs, launcher, group)
    choice_seeds.install(launched.tokenizer_manager)
    context_limit.tell(launched.tokenizer_manager)
    reports = launcher.reports(_REPORT_TIMEOUT_S)
    _require_every_rank(reports, len(group.bundle_specs))
    abilities = chat_abilities.abilities(launched.tokenizer_manager, launched.template_manager)
    _watch(launched.ranks.block_until_scheduler_exits)
    reports = [{**report, **abilities} for report in reports]
    _add_routes(launched.tokenizer_manager, reports, ended, RoomKeeper(room), replica_id)
    key_guard.install()
    _serve_http(launched, keys, on_started)


def _launch(engine_kwargs: Mapping[str, Any], launcher: RankLauncher, group: PlacementGroup) -> _Launched:
    """Check the arguments against the model and start the ranks on `group` through `launcher`."""
    from sglang.srt.entrypoints import engine as engine_module
    from sglang.srt.ray import engine as ray_engine
    from sglang.srt.server_args import ServerArgs

    from sparktier.serving.engine.features.layers import require_layers

    ray_engine.SchedulerActor = launcher
    groups = int(engine_kwargs.get("attn_dp_size", 1))
    server_args = ServerArgs(**{**engine_kwargs, **dp_attention.dist_init_address(groups)})
    if groups > 1:
        dp_attention.patch_ray_launcher()
    features = rank_options().features
    if features is not None:
        require_layers(server_args, features.target_layer_ids)
    tokenizer_manager, template_manager, port_args, ranks, watchdog, _ = ray_engine.RayEngine._launch_subprocesses(
        server_args,
        init_tokenizer_manager_func=engine_module.init_tokenizer_manager,
        run_scheduler_process_func=engine_module.run_scheduler_process,
        run_detokenizer_process_func=engine_module.run_detokenizer_process,
        placement_group=group,
    )
    return _Launched(server_args, tokenizer_manager, template_manager, port_args, ranks, watchdog)


def _add_routes(
    tokenizer_manager: Any, reports: list[RankReport], ended: EndedRequests, room: RoomKeeper, replica_id: str
) -> None:
    """Add our routes, times in answers, and the door that keeps the room, to SGLang's HTTP application."""
    from sglang.srt.entrypoints import http_server

    from sparktier.serving.engine.features.routes import feature_routes

    http_server.app.add_middleware(AnswerTimes, ended=ended)
    # The last one added is asked first: what is refused has no times.
    http_server.app.add_middleware(RoomDoor, room=room)
    http_server.app.include_router(room_routes(room))
    http_server.app.include_router(admin_routes(reports, tokenizer_manager, ended, room, replica_id=replica_id))
    features = rank_options().features
    if features is not None:
        http_server.app.include_router(feature_routes(tokenizer_manager, features))


def _serve_http(launched: _Launched, keys: Keys, on_started: Callable[[], None]) -> None:
    from sglang.srt.entrypoints import http_server
    from sglang.srt.runtime_context import get_serving

    # The keys are not in the arguments: SGLang logs these, hands them to its ranks, and tells them at /server_info.
    with get_serving().override(api_key=keys.requests, admin_api_key=keys.admin):
        http_server._setup_and_run_http_server(
            launched.server_args,
            launched.tokenizer_manager,
            launched.template_manager,
            launched.port_args,
            launched.ranks.scheduler_infos,
            launched.watchdog,
            launch_callback=on_started,
        )


def _require_every_rank(reports: list[RankReport], ranks: int) -> None:
    inactive = [report["rank"] for report in reports if not report["plugin_active"]]
    if inactive or len(reports) != ranks:
        raise ReplicaError(
            f"Every rank must run the sparktier plugin ({len(reports)} of {ranks} ranks reported, inactive in: "
            f"{inactive}). The replica's log has each rank's start-up."
        )


def _watch(block_until_a_rank_exits: Callable[[], None]) -> None:
    """End this process, and everything it started, when any rank has ended."""

    def wait() -> None:
        block_until_a_rank_exits()
        logger.error("A rank ended; this replica stops so that a whole one can take its place.")
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(EXIT_RANK_LOST)

    threading.Thread(target=wait, name="rank-watch", daemon=True).start()
