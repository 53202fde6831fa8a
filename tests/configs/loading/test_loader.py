"""Loading settings: good files load, and every malformed one gives all of its problems, none of them a traceback."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from sparktier.configs.errors import ConfigError
from sparktier.configs.loading.loader import load_settings, parse_overrides, settings_from
from sparktier.configs.settings.settings import Settings
from support.inputs.malformed_configs import MALFORMED, MODEL

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
# Those of simulations have a form of their own.
FILES = sorted(file for file in CONFIGS.rglob("*.yaml") if not file.name.startswith("sim-"))


def problems_of(text: str, tmp_path: Path) -> list[Any]:
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    return list(caught.value.problems)


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_gives_exactly_its_problems(name: str, tmp_path: Path) -> None:
    text, paths = MALFORMED[name]
    problems = problems_of(text, tmp_path)
    assert sorted(problem.path for problem in problems) == sorted(paths)
    assert all(problem.rule and problem.value and problem.cure for problem in problems)
    assert all("\n" not in str(problem) for problem in problems)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_shipped_files_load(file: Path) -> None:
    assert load_settings(file).default_tier in load_settings(file).tiers


def test_there_is_a_file_for_every_kind_of_deployment() -> None:
    found = [load_settings(file) for file in FILES]
    assert any(settings.replicas.expert_parallel == 8 and settings.replicas.nodes == 1 for settings in found)
    assert any(settings.replicas.attention_data_parallel > 1 and settings.replicas.nodes == 2 for settings in found)
    assert {settings.speculation.method for settings in found} == {"none", "chain", "dspark_native", "standalone"}
    assert any(settings.model.quantization for settings in found)


def test_missing_file_and_directory_are_problems(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="readable"):
            load_settings(path)


def test_text_that_is_not_utf8_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(b"model: {path: \xff}")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_settings(file)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (MODEL + "replicas: {tensor_paralel: 8}\n", "tensor_parallel"),
        (MODEL + "sever: {port: 1}\n", "server"),
        (MODEL + "tiers: {1: {nmae: a, name: b, default: true}}\n", "name"),
        (MODEL + "replicas: {sglang_args: {log_levl: info}}\n", "log_level"),
    ],
)
def test_a_misspelt_key_is_told_which_was_meant(text: str, meant: str, tmp_path: Path) -> None:
    assert f"Did you mean {meant}?" in str(problems_of(text, tmp_path)[0])


def test_not_served_features_are_refused_with_a_sentence(tmp_path: Path) -> None:
    text = "model: {path: demo, lora: a, image_input: b}\nreplicas: {pipeline_parallel: 2, prefill: 1}\n"
    assert all("not served" in problem.cure for problem in problems_of(text, tmp_path))


def test_overrides_replace_values_before_anything_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("model: {path: broken}\ntiers: {1: {name: a, default: true}}\n", encoding="utf-8")
    items = ["model.path=/m", "server.port=81", "tiers.1.promise_tok_s=5", "replicas.sglang_args.log_level=info"]
    settings = load_settings(file, parse_overrides(items))
    assert (settings.model.path, settings.server.port) == ("/m", 81)
    assert settings.tiers[1].promise_tok_s == 5
    assert settings.replicas.sglang_args == {"log_level": "info"}


def test_an_override_can_set_null() -> None:
    assert parse_overrides(["ray.address=null", "model.served_name='a=b'"]) == {
        "ray.address": None,
        "model.served_name": "a=b",
    }


@pytest.mark.parametrize("items", [["port"], ["=3"], ["a=[", "b"], ["a={"]])
def test_a_malformed_override_is_a_problem(items: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(items)
    assert len(caught.value.problems) == len(items)


def test_an_override_inside_a_value_is_a_problem() -> None:
    with pytest.raises(ConfigError, match="not a section"):
        load_settings(CONFIGS / "demo.yaml", {"model.path.x": 1})


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_settings_written_as_yaml_load_as_the_same(file: Path, tmp_path: Path) -> None:
    settings = load_settings(file)
    copy = tmp_path / "copy.yaml"
    copy.write_text(yaml.safe_dump(settings.model_dump()), encoding="utf-8")
    assert load_settings(copy) == settings


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.integers() | st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
SECTIONS = {
    name: st.dictionaries(st.sampled_from(sorted(field.annotation.model_fields)), ANY, max_size=4) | ANY
    for name, field in Settings.model_fields.items()
    if hasattr(field.annotation, "model_fields")
}


@given(st.fixed_dictionaries({}, optional={**SECTIONS, "tiers": ANY, "other": ANY}))
@example({})
def test_no_data_gives_anything_but_settings_or_problems(data: dict[str, Any]) -> None:
    try:
        settings_from(data)
    except ConfigError as error:
        problems = error.problems
    else:
        return
    assert problems
