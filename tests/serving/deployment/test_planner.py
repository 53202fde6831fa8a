"""What ranks are told of the planner: this deployment's step times or none, and by which survivals rows are shared."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparktier.cluster.canary import CanaryRules
from sparktier.configs.errors import ArtifactError, ConfigError
from sparktier.configs.loading.loader import settings_from
from sparktier.configs.settings.settings import Settings
from sparktier.configs.settings.tiers import TierSettings
from sparktier.configs.step_times import reference_table, write_table
from sparktier.serving.deployment.engine_args import rank_options_of
from sparktier.serving.deployment.planner import planner_options, prefill_chunk_tokens, require_possible_promises
from sparktier.serving.deployment.resolved import Resolved
from sparktier.serving.deployment.table_key import table_key
from sparktier.serving.engine.rank_options import RankOptions


def with_times(folder: Path, *, stall_ms: int | None, **replicas: Any) -> Settings:
    """Settings that name the AVX2 table, where prefill of 1 token takes 97 ms and each more 4.1."""
    write_table(folder / "times.json", reference_table("avx2"))
    return settings_from(
        {
            "model": {"path": "org/name", "context_tokens": 512},
            "replicas": replicas,
            "speculation": {
                "method": "chain",
                "draft_path": "org/draft",
                "step_times_path": str(folder / "times.json"),
            },
            "tiers": {
                0: {"name": "plain", "default": True, "max_stall_ms": 900},
                3: {"name": "quick", "max_stall_ms": stall_ms},
            },
        }
    )


def resolved(folder: Path, promise_tok_s: float | None = None, **speculation: Any) -> Resolved:
    for name in ("model", "draft"):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "model.safetensors").write_text(name)
        (folder / name / "config.json").write_text('{"num_hidden_layers": 2, "block_size": 5}')
    drafting = {"method": "tree", "draft_path": str(folder / "draft"), **speculation}
    settings = settings_from(
        {
            "model": {"path": "org/name"},
            "replicas": {"device": "cpu"},
            "speculation": drafting,
            "tiers": {0: {"name": "plain", "default": True}, 3: {"name": "quick", "promise_tok_s": promise_tok_s}},
        }
    )
    model, draft = str(folder / "model"), str(folder / "draft")
    return Resolved(settings, device="cpu", dtype="float32", model=model, draft=draft)


def own_table(folder: Path, promise_tok_s: float | None = None, **speculation: Any) -> Resolved:
    named = resolved(folder, promise_tok_s, step_times_path=str(folder / "times.json"), **speculation)
    table = reference_table("avx2").model_copy(update={"key": table_key(named)})
    write_table(folder / "times.json", table)
    return named


def test_without_step_times_nothing_is_planned(tmp_path: Path) -> None:
    assert planner_options(resolved(tmp_path)) is None


@pytest.mark.parametrize(
    ("given", "live"), [({}, True), ({"live_shares": False}, False), ({"live_shares": True}, True)]
)
def test_a_cpu_shares_by_the_steps_own_drafts_unless_told(tmp_path: Path, given: dict[str, bool], live: bool) -> None:
    options = planner_options(own_table(tmp_path, **given))
    assert options is not None
    assert options.live is live
    told = RankOptions(planner=options)
    assert RankOptions.model_validate_json(told.model_dump_json()) == told


def test_on_a_gpu_nothing_waits_for_the_drafts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_table(tmp_path)
    monkeypatch.setattr("sparktier.serving.deployment.planner.table_key", lambda _: table_key(own))
    options = planner_options(replace(own, device="cuda"))
    assert options is not None
    assert not options.live


def test_step_times_of_another_deployment_or_of_none_are_refused(tmp_path: Path) -> None:
    own = own_table(tmp_path)
    with pytest.raises(ArtifactError, match=r"step_times_path .*dtype must be 'bfloat16'.*sparktier profile"):
        planner_options(replace(own, dtype="bfloat16"))
    write_table(tmp_path / "times.json", reference_table("avx2"))
    with pytest.raises(ArtifactError, match=r"must be measured on this deployment"):
        planner_options(own)
    (tmp_path / "times.json").unlink()
    with pytest.raises(ArtifactError, match=r"times.json"):
        planner_options(own)


def test_a_promise_beyond_one_user_alone_is_refused(tmp_path: Path) -> None:
    """The AVX2 table: 6 tokens of a chain of 5 take 93 + 11.3 + 20.5 ms and the draft."""
    assert planner_options(own_table(tmp_path, 36.0)) is not None
    with pytest.raises(ConfigError) as caught:
        planner_options(own_table(tmp_path, 50.0))
    (problem,) = caught.value.problems
    assert problem.path == "tiers.3.promise_tok_s"
    assert "one user alone" in problem.rule
    assert planner_options(own_table(tmp_path, 36.0, block_tokens=5)) is not None
    with pytest.raises(ConfigError):
        planner_options(own_table(tmp_path, 36.0, block_tokens=2))


@pytest.mark.parametrize("tier", [{"promise_tok_s": 50.0}, {"max_stall_ms": 120}])
def test_tiers_that_this_deployment_cant_serve_are_refused_whenever_they_come(
    tmp_path: Path, tier: dict[str, Any]
) -> None:
    own = own_table(tmp_path)
    require_possible_promises(own)
    tiers = {**own.settings.tiers, 4: TierSettings(name="later", **tier)}
    reloaded = replace(own, settings=own.settings.model_copy(update={"tiers": tiers}))
    with pytest.raises(ConfigError) as caught:
        require_possible_promises(reloaded)
    assert [problem.path for problem in caught.value.problems] == [f"tiers.4.{next(iter(tier))}"]
    with pytest.raises(ConfigError):
        planner_options(reloaded)


@pytest.mark.parametrize(
    ("stall_ms", "replicas", "chunk"),
    [
        (300, {}, 48),  # 97 + 47 * 4.1 = 290 ms; 64 tokens take 355
        (300, {"page_tokens": 32}, 32),
        (None, {}, 192),
        (300, {"chunked_prefill_tokens": 128}, 128),
    ],
)
def test_a_chunk_of_prefill_keeps_the_strictest_stall(
    tmp_path: Path, stall_ms: int | None, replicas: dict[str, int], chunk: int
) -> None:
    assert prefill_chunk_tokens(with_times(tmp_path, stall_ms=stall_ms, **replicas)) == chunk


def test_a_stall_that_no_chunk_keeps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        prefill_chunk_tokens(with_times(tmp_path, stall_ms=120))
    (problem,) = caught.value.problems
    assert (problem.path, problem.value) == ("tiers.3.max_stall_ms", "120")
    assert "must be at least 159" in problem.rule


def test_ranks_are_told_how_many_sound_tokens_are_far(tmp_path: Path) -> None:
    assert rank_options_of(resolved(tmp_path)).canary_noise_frac == CanaryRules().noise_frac
    told = rank_options_of(resolved(tmp_path, canary="watch", canary_noise_frac=0.0004))
    assert (told.canary, told.canary_noise_frac) == ("watch", 0.0004)
