"""Engines that tests step: settings of a small CPU deployment, and SGLang's scheduler with our worker made of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparktier.configs.loading.loader import settings_from
from sparktier.configs.settings.settings import Settings
from sparktier.serving.bench.tiers.stepped import started
from sparktier.serving.engine.stepping import Place, SteppedEngine


def stepped_settings(
    model: Path,
    speculation: Mapping[str, Any],
    *,
    chunk_tokens: int,
    ranks: int,
    tiers: Mapping[int, Mapping[str, Any]] | None = None,
    dtype: str = "float32",
    users: int = 8,
) -> Settings:
    """Settings of `model` on so many ranks, prefilling in chunks; without `tiers` there is one."""
    return settings_from(
        {
            "model": {"path": str(model), "dtype": dtype, "context_tokens": 1024},
            "replicas": {
                "device": "cpu",
                "tensor_parallel": ranks,
                "expert_parallel": ranks,
                "max_running_requests": users,
                "kv_tokens": 8192,
                "chunked_prefill_tokens": chunk_tokens,
            },
            "speculation": dict(speculation),
            **({} if tiers is None else {"tiers": tiers}),
        }
    )


def stepped(
    model: Path,
    draft: Path,
    *,
    chunk_tokens: int,
    tree_rows: int,
    place: Place,
    accept_rule: str = "match",
    tiers: Mapping[int, Mapping[str, Any]] | None = None,
    dtype: str = "float32",
    users: int = 8,
    prompt_lookup: bool = False,
) -> SteppedEngine:
    """A rank that decodes `model` with trees of `draft`."""
    tree: dict[str, Any] = {
        "method": "tree",
        "draft_path": str(draft),
        "tree_rows": tree_rows,
        "accept_rule": accept_rule,
    }
    tree |= {"prompt_lookup": prompt_lookup}
    settings = stepped_settings(
        model, tree, chunk_tokens=chunk_tokens, ranks=place.ranks, tiers=tiers, dtype=dtype, users=users
    )
    return started(settings, place)
