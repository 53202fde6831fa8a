"""Decides whether a request goes to an engine, and which of its fields: checks it against the schema, and refuses in a
sentence what sparktier does not serve.
"""

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sparktier.serving.clients.rank_facts import EngineLimits
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.requests.abilities import UNSUPPORTED, require_abilities, require_room
from sparktier.serving.gateway.requests.fields import TAG_MARK
from sparktier.serving.gateway.requests.schema import Chat, Completion, Generation

CHAT = "/v1/chat/completions"
SCHEMAS: Mapping[str, type[Generation]] = {"/v1/completions": Completion, CHAT: Chat}
PATHS = tuple(SCHEMAS)

# The gateway sets the one from the tier and reads the other; no value of a client reaches an engine.
DROPPED = frozenset({"custom_params", "service_tier"})
_PLACED_BY_US = "sparktier chooses where a request runs"
_TEXT_ONLY = "sparktier takes and gives text alone"
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
    "return_spec_tokens_details": "usage.sparktier tells what speculation did",
    "return_flat_raw_top_logprobs_b64": "use logprobs and top_logprobs",
    "routed_experts_start_len": "routed experts are not returned",
    "task": "such prompts are not written; say what you want in messages",
    "thinking": "use reasoning_effort or chat_template_kwargs",
    "images_config": _TEXT_ONLY,
    "video_config": _TEXT_ONLY,
    "max_dynamic_patch": _TEXT_ONLY,
    "min_dynamic_patch": _TEXT_ONLY,
    "mm_processor_kwargs": _TEXT_ONLY,
    "use_audio_in_video": _TEXT_ONLY,
    "audio": _TEXT_ONLY,
    "modalities": _TEXT_ONLY,
    "function_call": "it was replaced by tool_choice",
    "functions": "they were replaced by tools",
    "prediction": "predicted outputs are not used",
    "store": "answers are not stored",
    "verbosity": "no prompt is written from it; say in messages how long an answer should be",
    "web_search_options": "nothing is searched; use tools",
}
# Values of some of them that are let through, because they ask for what happens anyway.
_GRANTED: Mapping[str, tuple[object, ...]] = {
    "modalities": (["text"],),
    "verbosity": ("medium",),
}
# Without effect on an answer by their meaning: names, notes, and hints to a cache of prompts.
LABELS = frozenset(
    {"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "cache_salt", "extra_key"}
)
# Beyond the schema: SGLang reads them, and they change its answers.
_BOTH = frozenset({"return_cached_tokens_details", "return_token_ids"})
PASSED_ON: Mapping[str, frozenset[str]] = {
    "/v1/completions": _BOTH,
    CHAT: _BOTH
    | {
        "continue_final_message", "parallel_tool_calls", "reasoning", "reasoning_effort", "return_input_ids_in_sglext",
        "return_meta_info", "return_output_ids_in_sglext", "return_prompt_token_ids", "separate_reasoning",
        "stream_reasoning", "tool_choice",
    },
}  # fmt: skip
# What to use instead of a field that only the other route has.
_INSTEAD = {
    "json_schema": "use response_format", "prompt": "send messages", "max_completion_tokens": "use max_tokens",
    "messages": "send a prompt",
}  # fmt: skip
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
    """Return the fields of `body`, sent to `path`, that an engine gets; `model` is filled in where it is left out.

    Raises:
        Refused: the body breaks a rule, or asks for what is not served.
    """
    kept = {name: value for name, value in body.items() if value is not None and name not in DROPPED}
    require_model(kept.setdefault("model", model), model)
    for name, reason in REFUSED.items():
        if kept.get(name, False) is not False and kept[name] not in _GRANTED.get(name, ()):
            raise Refused(f"{name}: {reason}. Leave it out.", param=name, code=UNSUPPORTED)
    _require_known(path, kept)
    try:
        request = SCHEMAS[path].model_validate(kept, context=limits)
    except ValidationError as error:
        raise _refusal(error) from error
    require_room(request, limits)
    if path == CHAT:
        require_abilities(kept, limits)
        kept["messages"] = [_with_arguments(message) for message in kept["messages"]]
    return kept


def fields_of(path: str) -> frozenset[str]:
    """Return the fields that a request to `path` may have; those in REFUSED only with a value in _GRANTED."""
    return frozenset({"model", *SCHEMAS[path].model_fields, *PASSED_ON[path], *LABELS, *REFUSED, *DROPPED})


def _require_known(path: str, body: Mapping[str, Any]) -> None:
    """Raise Refused for a field that neither we nor the engine would read: a typo, or one of the other route."""
    known = fields_of(path)
    unknown = next((name for name in body if name not in known), None)
    if unknown is None:
        return
    name = unknown[:_SHOWN_CHARACTERS]
    near = difflib.get_close_matches(name, known - REFUSED.keys(), n=1)
    cure = _INSTEAD.get(name) or (f"did you mean {near[0]}?" if near else "leave it out")
    message = f"{name}: {path} has no such field; {cure}"
    raise Refused(message if message.endswith("?") else f"{message}.", param=name, code="unknown_parameter")


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
    return Refused(" ".join(sentences), param=_field_path(details[0]) or None)


def _sentence(detail: ErrorDetails) -> str:
    """Return `field: rule (found value).`; a rule between fields names them itself."""
    path, rule = _field_path(detail), _rule(detail)
    if not path:
        return f"{rule}."
    if detail["type"] == "missing":
        return f"{path}: is required."
    return f"{path}: {rule} (found {_shown(detail['input'])})."


def _rule(detail: ErrorDetails) -> str:
    if detail["type"] == "literal_error" and detail["loc"][-1] == "type" and "messages" in detail["loc"]:
        return "must be 'text', sparktier takes no images, audio or video"
    message = detail["msg"]
    for phrase, ours in _PHRASES:
        message = phrase.sub(ours, message)
    return message


def _field_path(detail: ErrorDetails) -> str:
    return ".".join(str(part) for part in detail["loc"] if not str(part).startswith(TAG_MARK))


def _shown(value: object) -> str:
    """Return `value` as short JSON; a list or an object by its name alone."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    text = json.dumps(value[:_SHOWN_CHARACTERS] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN_CHARACTERS + 2 else text[:_SHOWN_CHARACTERS] + "..."
