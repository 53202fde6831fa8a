"""Runs one replica inside this process: SGLang's tokenizer and OpenAI server here, its ranks as Ray actors.

When a rank dies the process ends: a replica with a hole in its expert group can answer nothing, and whoever started it
starts a whole one.
"""

import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import psutil
from ray.util.placement_group import PlacementGroup

from sparktier.configs.errors import ReplicaError
from sparktier.serving.clients.replica_keys import Keys
from sparktier.serving.engine import dp_attention as attention_groups
from sparktier.serving.engine import key_guard
from sparktier.serving.engine.rank_actor import RankLauncher
from sparktier.serving.engine.rank_options import rank_options
from sparktier.serving.engine.requests import chat_abilities, context_limit
from sparktier.serving.engine.sampling import choice_seeds as choices
from sparktier.serving.engine.telemetry.admin_routes import admin_routes
from sparktier.serving.engine.telemetry.rank_state import RankReport

EXIT_RANK_LOST = 70
_REPORT_TIMEOUT_S = 60.0
logger = logging.getLogger(__name__)


def serve(
    engine_kwargs: Mapping[str, Any],
    *,
    keys: Keys,
    replica_id: str,
    group: PlacementGroup,
    on_started: Callable[[], None],
) -> None:
    """Start the ranks on `group`, serve HTTP on the host and port in `engine_kwargs`, and return after a shutdown.

    Requests there have to show one of `keys`. `on_started` is called once SGLang's own warm-up request has been
    answered. Raises ReplicaError when a rank does not start. Source of the sequence: `sglang/srt/ray/http_server.py`,
    which has no seam for a placement group.
    """
    from sglang.srt.entrypoints import engine as engine_module
    from sglang.srt.entrypoints import http_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.ray import engine as ray_engine
    from sglang.srt.runtime_context import get_serving
    from sglang.srt.server_args import ServerArgs

    from sparktier.serving.engine.features.layers import require_layers
    from sparktier.serving.engine.features.routes import feature_routes

    load_plugins()
    launcher = RankLauncher()
    ray_engine.SchedulerActor = launcher
    groups = int(engine_kwargs.get("attn_dp_size", 1))
    server_args = ServerArgs(**{**engine_kwargs, **attention_groups.meeting_place(groups)})
    if groups > 1:
        attention_groups.let_start()
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
    choices.install(tokenizer_manager)
    context_limit.tell(tokenizer_manager)
    reports = launcher.reports(_REPORT_TIMEOUT_S)
    _require_every_rank(reports, len(group.bundle_specs))
    abilities = chat_abilities.abilities(tokenizer_manager, template_manager)
    reports = [{**report, **abilities} for report in reports]
    _watch(ranks.block_until_scheduler_exits)
    http_server.app.include_router(admin_routes(reports, tokenizer_manager, replica_id=replica_id))
    if features is not None:
        http_server.app.include_router(feature_routes(tokenizer_manager, features))
    key_guard.install()
    # Not in the arguments: SGLang logs these, hands them to its ranks, and tells them at /server_info.
    with get_serving().override(api_key=keys.requests, admin_api_key=keys.admin):
        http_server._setup_and_run_http_server(
            server_args,
            tokenizer_manager,
            template_manager,
            port_args,
            ranks.scheduler_infos,
            watchdog,
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
