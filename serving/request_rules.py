"""Decides whether a request may go to an engine, and what of it goes: checks it against the schema, and refuses with a
sentence what sparktier does not do.

Pure; knows nothing of HTTP or replicas.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sparktier.serving.openai_errors import Refused
from sparktier.serving.replica_table import EngineLimits
from sparktier.serving.request_fields import TAG_MARK
from sparktier.serving.request_schema import Chat, Completion, Generation

_SCHEMAS: Mapping[str, type[Generation]] = {"/v1/completions": Completion, "/v1/chat/completions": Chat}
PATHS = tuple(_SCHEMAS)

# Ours to set, from the tier; what a client sends under this name goes no further.
DROPPED = frozenset({"custom_params"})
_PLACED_BY_US = "sparktier chooses where a request runs"
_NOT_SPLIT = "prefill and decode run in the same replica"
REFUSED = {
    "lora_path": "LoRA adapters are not served",
    "suffix": "insertion is not served",
    "stop_regex": "one slow expression would stall everybody's requests; use stop",
    "custom_logit_processor": "code from clients is not run",
    "session_id": "sessions are not served; send the whole conversation",
    "session_params": "sessions are not served; send the whole conversation",
    "input_ids": "send token ids as the prompt of /v1/completions",
    "rid": "the server gives out request ids",
    "priority": "the tier decides who is served first",
    "watermark": "watermarks are not served",
    "return_hidden_states": "hidden states are not returned",
    "return_routed_experts": "routed experts are not returned",
    "return_sampling_mask": "sampling masks are not returned",
    "sampling_logprobs_mode": "sampling masks are not returned",
    "return_flat_raw_output_top_logprobs": "use logprobs and top_logprobs",
    "custom_labels": "metric labels are the server's",
    "routed_dp_rank": _PLACED_BY_US,
    "data_parallel_rank": _PLACED_BY_US,
    "bootstrap_host": _NOT_SPLIT,
    "bootstrap_port": _NOT_SPLIT,
    "bootstrap_room": _NOT_SPLIT,
    "disagg_prefill_dp_rank": _NOT_SPLIT,
}
_MAX_PROBLEMS = 3
_SHOWN_CHARACTERS = 60
# pydantic's phrases, and ours for them.
_PHRASES = (
    (re.compile(r"^(?:Input|String|List|Dictionary) should "), "must "),
    (re.compile(r"^Value error, "), ""),
    (re.compile(r" after validation, not \d+$"), ""),
    (re.compile(r"a valid dictionary(?: or instance of \w+)?"), "an object"),
)


def checked(path: str, body: Mapping[str, Any], *, model: str, limits: EngineLimits) -> dict[str, Any]:
    """Return what of `body`, sent to `path`, an engine gets; clients may leave out `model`, the one there is.

    Raises:
        Refused: the body breaks a rule, or asks for what is not served.
    """
    kept = {name: value for name, value in body.items() if value is not None and name not in DROPPED}
    require_model(kept.setdefault("model", model), model)
    for name, reason in REFUSED.items():
        if kept.get(name, False) is not False:
            raise Refused(f"{name}: {reason}. Leave it out.", param=name)
    try:
        _SCHEMAS[path].model_validate(kept, context=limits)
    except ValidationError as error:
        raise _refusal(error) from error
    if _SCHEMAS[path] is Chat:
        kept["messages"] = [_with_arguments(message) for message in kept["messages"]]
    return kept


def require_model(asked: object, served: str) -> None:
    """Raise Refused unless the model that is `asked` for is the one `served`."""
    if not isinstance(asked, str):
        raise Refused(f"model: must be a string (found {_shown(asked)}).", param="model")
    if asked != served:
        message = f"The model {_shown(asked)} does not exist. This server has {_shown(served)}."
        raise Refused(message, status=404, param="model", code="model_not_found")


def _with_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """Return `message` with `{}` for the arguments of calls that have none: SGLang takes only JSON for them."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    return message | {"tool_calls": [_call_with_arguments(call) for call in calls]}


def _call_with_arguments(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments")
    empty = arguments is None or (isinstance(arguments, str) and not arguments.strip())
    return call | {"function": function | {"arguments": "{}"}} if empty else call


def _refusal(error: ValidationError) -> Refused:
    details = error.errors(include_url=False)
    sentences = [_sentence(detail) for detail in details[:_MAX_PROBLEMS]]
    return Refused(" ".join(sentences), param=_place(details[0]) or None)


def _sentence(detail: ErrorDetails) -> str:
    """Return `field: rule (found value).`; a rule between fields names them itself."""
    place, rule = _place(detail), _rule(detail)
    if not place:
        return f"{rule}."
    if detail["type"] == "missing":
        return f"{place}: is required."
    return f"{place}: {rule} (found {_shown(detail['input'])})."


def _rule(detail: ErrorDetails) -> str:
    if detail["type"] == "literal_error" and detail["loc"][-1] == "type" and "messages" in detail["loc"]:
        return "must be 'text', sparktier takes no images, audio or video"
    message = detail["msg"]
    for phrase, ours in _PHRASES:
        message = phrase.sub(ours, message)
    return message


def _place(detail: ErrorDetails) -> str:
    return ".".join(str(part) for part in detail["loc"] if not str(part).startswith(TAG_MARK))


def _shown(value: object) -> str:
    """Return `value` as short JSON; a list or an object by its name alone."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value[:_SHOWN_CHARACTERS] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN_CHARACTERS + 2 else text[:_SHOWN_CHARACTERS] + "..."
