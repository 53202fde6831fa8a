"""Rules on handing out training features: which layers, and under which methods and layouts they can be read. Pure.

Files cited are SGLang 0.5.23's, under `sglang/srt/`.
"""

from collections.abc import Iterator
from itertools import pairwise

from sparktier.configs.errors import Problem
from sparktier.configs.rules.rule import Rule
from sparktier.configs.settings.settings import Settings
from sparktier.configs.settings.speculation import DRAFTED_LADDERS

_CAPTURING_METHODS = ("none", *DRAFTED_LADDERS)


def _layers_rise(settings: Settings) -> Iterator[Problem]:
    layers = settings.training.target_layer_ids or ()
    if any(after <= before for before, after in pairwise(layers)):
        yield Problem(
            "training.target_layer_ids",
            "must rise, since features lie side by side in this order",
            str(list(layers)),
            f"Write {sorted(set(layers))}.",
        )


def _method_can_be_read(settings: Settings) -> Iterator[Problem]:
    method = settings.speculation.method
    if settings.training.target_layer_ids is not None and method not in _CAPTURING_METHODS:
        yield Problem(
            "training.target_layer_ids",
            f"can't be read with speculation.method {method}, only with {', '.join(_CAPTURING_METHODS)}",
            str(list(settings.training.target_layer_ids)),
            "Remove it, or set speculation.method: none.",
        )


def _one_group_has_every_request(settings: Settings) -> Iterator[Problem]:
    groups = settings.replicas.attention_data_parallel
    if settings.training.target_layer_ids is not None and groups > 1:
        yield Problem(
            "replicas.attention_data_parallel",
            "must be 1 with training.target_layer_ids: the first rank sends, and under attention-DP it sees only its"
            " own group's requests",
            str(groups),
            "Set it to 1, or remove training.target_layer_ids.",
        )


def _bound_is_used(settings: Settings) -> Iterator[Problem]:
    training = settings.training
    if training.target_layer_ids is None and training.model_dump(exclude_defaults=True):
        yield Problem(
            "training.records_at_once",
            "has no meaning without training.target_layer_ids",
            str(training.records_at_once),
            "Remove it, or name layers.",
        )


RULES = (
    Rule(("training.target_layer_ids",), _layers_rise),
    Rule(("training.target_layer_ids", "speculation.method"), _method_can_be_read),
    Rule(("training.target_layer_ids", "replicas.attention_data_parallel"), _one_group_has_every_request),
    Rule(("training",), _bound_is_used),
)
