"""docs/compatibility.md says what the code refuses: targets by method, features by the configuration's rules."""

import re
from pathlib import Path
from typing import Any

import pytest

from sparktier.configs.errors import ConfigError
from sparktier.configs.loading.loader import load_settings, parse_overrides
from sparktier.configs.settings.speculation import HIGHEST_RUNG
from sparktier.serving.engine.targets.target_support import TargetFacts, target_refusal

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "compatibility.md").read_text()
METHODS = ("none", "chain", "tree", "ngram", "dspark_native", "standalone")
# The beginning of a row, and the facts of such a target.
TARGETS = {
    "attention over all tokens": TargetFacts(),
    "latent attention": TargetFacts(latent=True),
    "sliding windows": TargetFacts(windowed=True),
    "rotary positions in sections": TargetFacts(sectioned_positions=True),
    "recurrent layers": TargetFacts(recurrent=True),
    "n-gram embeddings": TargetFacts(token_history=True),
    "compressed cache": TargetFacts(compressed=True),
}
# The beginning of a row of features, and settings that ask for it.
FEATURES = {
    "attention groups": {"replicas.attention_data_parallel": 2, "replicas.tensor_parallel": 2},
    "CPU ranks": {"replicas.device": "cpu"},
    "training features": {"training.target_layer_ids": [1, 2]},
    "rows shared by tier": {"speculation.step_times_path": "/x.json"},
    "several nodes": {"replicas.nodes": 2, "replicas.tensor_parallel": 2},
}
REFUSED = {"refused", "-"}


def cells(start: str) -> dict[str, str]:
    """Return the cells of the only row that begins with `start`, by method."""
    rows = re.findall(rf"^\| {re.escape(start)}[^|]*\|(.+)\|$", PAGE, flags=re.MULTILINE)
    assert len(rows) == 1, start
    return dict(zip(METHODS, (cell.strip() for cell in rows[0].split("|")), strict=True))


@pytest.mark.parametrize("start", TARGETS)
def test_a_target_s_row_is_what_is_refused(start: str) -> None:
    facts = TARGETS[start]
    for method, cell in cells(start).items():
        assert (cell == "refused") == (target_refusal(facts, method) is not None), method


def test_every_fact_of_a_target_has_its_row() -> None:
    named = {name for facts in TARGETS.values() for name, value in vars(facts).items() if value}
    assert named == set(vars(TargetFacts()))


def is_refused(method: str, asked: dict[str, Any]) -> bool:
    """Return whether a configuration with `method` and what is `asked` breaks a rule that it keeps without."""
    drafts = {} if method == "none" else {"speculation.block_tokens": 4}
    if method not in ("none", "ngram"):
        drafts["speculation.draft_path"] = "/draft"
    base = {"speculation.method": method, **drafts, "replicas.attention_backend": "flashinfer"}
    if asked.get("replicas.device") == "cpu":
        del base["replicas.attention_backend"]
    if method == "dspark_native":
        base["speculation.verification"] = "compact"
    return bool(problems(base | asked)) and not problems(base | {"replicas.device": "cuda"})


def problems(values: dict[str, Any]) -> str:
    texts = [f"{key}={value}" for key, value in values.items()]
    try:
        load_settings(ROOT / "tests" / "house" / "compatible.yaml", parse_overrides(texts))
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("start", FEATURES)
def test_a_feature_s_row_is_what_the_rules_refuse(start: str) -> None:
    for method, cell in cells(start).items():
        assert (cell in REFUSED) == is_refused(method, FEATURES[start]), method


def test_rungs_are_those_of_the_ladders() -> None:
    shown = {method: cell.split(" with ")[0].split(", ") for method, cell in cells("rungs").items()}
    assert {method: len(rungs) - 1 for method, rungs in shown.items() if len(rungs) > 1} == HIGHEST_RUNG
