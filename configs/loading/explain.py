"""Turns pydantic's validation errors into problems a person can act on."""

import difflib
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from sparktier.configs.errors import Problem
from sparktier.configs.settings.settings import Settings

_NOT_SERVED = {
    "pipeline": "Pipeline parallelism is not served; use tensor_parallel and expert_parallel.",
    "pp_size": "Pipeline parallelism is not served; use tensor_parallel and expert_parallel.",
    "prefill": "Prefill and decode run in the same replica; separating them is not served.",
    "disaggregation": "Prefill and decode run in the same replica; separating them is not served.",
    "lora": "LoRA adapters are not served; merge the adapter into the weights.",
    "adapter": "LoRA adapters are not served; merge the adapter into the weights.",
    "image": "Image input is not served.",
    "vision": "Image input is not served.",
    "multimodal": "Image input is not served.",
}
_TYPES = {
    "bool_type": ("must be true or false", "Write true or false, without quotes."),
    "int_type": ("must be a whole number", "Write it without quotes and without a decimal point."),
    "int_from_float": ("must be a whole number", "Write it without a decimal point."),
    "float_type": ("must be a number", "Write it without quotes."),
    "finite_number": ("must be a finite number", "Write a finite number."),
    "float_parsing": ("must be a number", "Write a number."),
    "string_type": ("must be text", "Put it in quotes."),
    "path_type": ("must be a path", "Write a path, in quotes if it looks like a number."),
    "model_type": ("must be a section", "Write its keys below it, indented."),
    "dict_type": ("must be a mapping", "Write its keys below it, indented."),
    "mapping_type": ("must be a mapping", "Write its keys below it, indented."),
    "missing": ("is required", "Add it."),
}
_BOUNDS = {
    "greater_than": ("must be more than {gt}", "Use more than {gt}."),
    "greater_than_equal": ("must be at least {ge}", "Use {ge} or more."),
    "less_than": ("must be less than {lt}", "Use less than {lt}."),
    "less_than_equal": ("must be at most {le}", "Use {le} or less."),
    "multiple_of": ("must be a multiple of {multiple_of}", "Use a multiple of {multiple_of}."),
    "string_too_short": ("must not be empty", "Write something, or remove the key."),
    "too_short": ("must hold at least {min_length}", "Add one, or remove the key."),
    "string_pattern_mismatch": ("must match {pattern}", "Rename it."),
    "literal_error": ("must be one of {expected}", "Choose one of them."),
}


@dataclass(frozen=True)
class Explained:
    """A problem, and the dotted keys whose values can't be trusted because of it."""

    problem: Problem
    wrong_keys: tuple[str, ...]


def shown(value: Any) -> str:
    """Return `value` as a short line."""
    return reprlib.repr(value)


def explain(detail: ErrorDetails, sections: type[BaseModel] = Settings) -> Explained:
    """Return what `detail` means for the author of a file that `sections` describes."""
    location = [str(part) for part in detail["loc"] if part != "[key]"]
    if location[:2] == ["replicas", "sglang_args"]:
        del location[3:]  # what follows the argument's name is pydantic's idea of its type
    path = ".".join(location)
    if detail["type"] == "extra_forbidden":
        return _unknown_key(path, location, detail["input"], sections)
    rule, cure = _rule_and_cure(detail)
    found = "nothing" if detail["type"] == "missing" else shown(detail["input"])
    return Explained(Problem(path, rule, found, cure), (path,))


def _rule_and_cure(detail: ErrorDetails) -> tuple[str, str]:
    kind = detail["type"]
    if kind in _TYPES:
        return _TYPES[kind]
    if kind in _BOUNDS:
        rule, cure = _BOUNDS[kind]
        return rule.format(**detail["ctx"]), cure.format(**detail["ctx"])
    return detail["msg"].removeprefix("Value error, "), "Correct the value."


def _unknown_key(path: str, location: list[str], value: Any, sections: type[BaseModel]) -> Explained:
    *parents, name = location
    known = _keys_at(parents, sections)
    near = difflib.get_close_matches(name, known, n=1)
    refused = next((sentence for word, sentence in _NOT_SERVED.items() if word in name.lower()), None)
    if refused is not None:
        cure = refused
    elif near:
        cure = f"Did you mean {near[0]}?"
    else:
        cure = f"Remove it; the keys here are {', '.join(known)}."
    meant = [".".join([*parents, key]) for key in near]
    return Explained(Problem(path, "is not a key", shown(value), cure), (path, *meant))


def _keys_at(parents: Iterable[str], model: type[BaseModel]) -> list[str]:
    """Return the keys that the section at `parents` in `model` has; a numeric part is the id of a tier."""
    for part in parents:
        field = model.model_fields.get(part)
        if field is None:
            continue
        inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((item for item in inner if isinstance(item, type) and issubclass(item, BaseModel)), model)
    return list(model.model_fields)
