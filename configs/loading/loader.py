"""Loads a YAML file as frozen `Settings`, or reports every problem at once.

Validation runs in two passes: keys by themselves, then the rules between keys, with wrong keys replaced by their
defaults and the rules that read them left out. So one run shows all that has to be mended.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from sparktier.configs.errors import ConfigError, Problem
from sparktier.configs.loading.explain import explain, shown
from sparktier.configs.loading.yaml_source import read_yaml
from sparktier.configs.rules.all import broken_rules
from sparktier.configs.settings.section import Section
from sparktier.configs.settings.settings import Settings

S = TypeVar("S", bound=Section)


def load_settings(path: Path, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings of the file at `path`.

    `overrides` replaces values by dotted key, e.g. `{"model.path": "/models/tiny"}`, before anything is checked.

    Raises:
        ConfigError: one or more rules are broken; it lists all of them.
    """
    data, repeated = read_yaml(path)
    for key, value in (overrides or {}).items():
        _put(data, key, value)
    try:
        settings = settings_from(data)
    except ConfigError as error:
        raise ConfigError([*repeated, *error.problems]) from error
    if repeated:
        raise ConfigError(repeated)
    return settings


def parse_overrides(items: Sequence[str]) -> dict[str, Any]:
    """Return `key=value` items as overrides; a value is read as YAML, so numbers and null are what they look like.

    Raises:
        ConfigError: an item has no `=`, or its value is not YAML.
    """
    overrides: dict[str, Any] = {}
    problems = []
    for item in items:
        key, equals, text = item.partition("=")
        try:
            overrides[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            equals = ""
        if not equals or not key:
            problems.append(Problem("--set", "must be key=value", shown(item), "For example --set server.port=8080."))
    if problems:
        raise ConfigError(problems)
    return overrides


def settings_from(data: Mapping[Any, Any]) -> Settings:
    """Return the settings that `data` (the parsed file) describes.

    Raises:
        ConfigError: one or more rules are broken; it lists all of them.
    """
    try:
        settings = Settings.model_validate(data)
    except ValidationError as error:
        explained = [explain(detail) for detail in error.errors()]
        problems = [item.problem for item in explained]
        wrong = [key for item in explained for key in item.wrong_keys]
        stand_in = _without(data, [tuple(detail["loc"]) for detail in error.errors()])
        problems += broken_rules(stand_in, wrong_keys=wrong) if stand_in else []
        raise ConfigError(problems) from error
    if problems := broken_rules(settings):
        raise ConfigError(problems)
    return settings


def read_section(path: Path, kind: type[S]) -> S:
    """Read a file of YAML that is one section by itself, with no rules between keys but the section's own.

    Raises:
        ConfigError: one or more rules are broken; it lists all of them.
    """
    data, repeated = read_yaml(path)
    try:
        section = kind.model_validate(data)
    except ValidationError as error:
        problems = [explain(detail, kind).problem for detail in error.errors()]
        raise ConfigError([*repeated, *problems]) from None
    if repeated:
        raise ConfigError(repeated)
    return section


def _put(data: dict[Any, Any], dotted: str, value: Any) -> None:
    """Set `dotted` in nested `data`; a numeric part is a number, as tier ids are."""
    *parents, last = [int(part) if part.isdecimal() else part for part in dotted.split(".")]
    here = data
    for part in parents:
        if here.get(part) is None:
            here[part] = {}
        here = here[part]
        if not isinstance(here, dict):
            problem = Problem(dotted, f"{part} is a value, not a section", shown(here), "Name a key inside a section.")
            raise ConfigError([problem])
    here[last] = value


def _without(data: Mapping[Any, Any], wrong: Sequence[tuple[str | int, ...]]) -> Settings | None:
    """Return settings with the `wrong` keys at their defaults, or None if they still don't validate."""
    kept = copy.deepcopy(dict(data))
    for location in wrong:
        _drop(kept, location)
    if not isinstance(kept.get("model"), dict):
        kept["model"] = {}
    kept["model"].setdefault("path", "demo")  # the only key without a default; rules that read it are left out
    try:
        return Settings.model_validate(kept)
    except ValidationError:
        return None


def _drop(data: Any, location: tuple[str | int, ...]) -> None:
    """Remove the deepest key of `location` that `data` has: a tier without a name goes as a whole."""
    holder, key = None, None
    for part in location:
        if not isinstance(data, dict) or part not in data:
            break
        holder, key, data = data, part, data[part]
    if holder is not None:
        del holder[key]
