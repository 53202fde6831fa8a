"""The `training` section: what it takes, what it refuses, and what becomes of it in SGLang's arguments."""

from typing import Any

import pytest

from sparktier.configs.errors import ConfigError
from sparktier.configs.loading.loader import settings_from
from sparktier.serving.deployment.engine_args import engine_kwargs
from support.machines import resolved_on

DRAFT = {"method": "chain", "draft_path": "/drafts/one"}
REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no layers": ({"training": {"target_layer_ids": []}}, ["training.target_layer_ids"]),
    "a negative layer": ({"training": {"target_layer_ids": [-1, 2]}}, ["training.target_layer_ids.0"]),
    "layers that fall": ({"training": {"target_layer_ids": [3, 1]}}, ["training.target_layer_ids"]),
    "a layer twice": ({"training": {"target_layer_ids": [1, 1]}}, ["training.target_layer_ids"]),
    "one layer without a list": ({"training": {"target_layer_ids": 3}}, ["training.target_layer_ids"]),
    "a bound for nothing": ({"training": {"records_at_once": 2}}, ["training.records_at_once"]),
    "native drafts": (
        {"training": {"target_layer_ids": [1]}, "speculation": {"method": "dspark_native"}},
        ["training.target_layer_ids"],
    ),
    "attention groups": (
        {
            "training": {"target_layer_ids": [1]},
            "replicas": {"tensor_parallel": 2, "attention_data_parallel": 2},
        },
        ["replicas.attention_data_parallel"],
    ),
    "SGLang's own key": (
        {"replicas": {"sglang_args": {"enable_return_aux_hidden_states": True}}},
        ["replicas.sglang_args.enable_return_aux_hidden_states"],
    ),
}


def kwargs(**sections: Any) -> dict[str, Any]:
    settings = settings_from({"model": {"path": "demo"}, **sections})
    return engine_kwargs(resolved_on("cpu", settings), replica=0)


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_t_be_handed_out_is_refused(name: str) -> None:
    sections, paths = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        settings_from({"model": {"path": "demo"}, **sections})
    assert [problem.path for problem in caught.value.problems] == paths


def test_nothing_is_captured_unless_asked() -> None:
    assert not [name for name in kwargs() if "hidden" in name or "speculative" in name]


def test_layers_are_captured_without_a_draft() -> None:
    chosen = kwargs(training={"target_layer_ids": [0, 2]})
    assert chosen["enable_return_aux_hidden_states"]
    assert chosen["return_aux_hidden_state_layer_ids"] == [0, 2]
    assert chosen["speculative_algorithm"] == "DSPARK"


def test_a_draft_captures_by_itself() -> None:
    assert kwargs(training={"target_layer_ids": [0, 2]}, speculation=DRAFT) == kwargs(speculation=DRAFT)
