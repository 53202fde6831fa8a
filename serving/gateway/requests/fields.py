"""The forms and bounds of single fields of a request: prompts, token ids, stops, biases.

Bounds that depend on the model come in as pydantic's validation context, an `EngineLimits`.
"""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, ValidationInfo

from sparktier.serving.clients.rank_facts import EngineLimits

MAX_CHOICES = 128
MAX_STOPS = 32  # SGLang's own limit (sampling_params.py)
MAX_STOP_CHARACTERS = 256
MAX_BIASES = 1024
MAX_CACHE_KEY_CHARACTERS = 256
# Logits are divided by the penalty: a vanishing one makes them infinite.
MIN_REPETITION_PENALTY = 0.01
# A smaller value would be 0 in the 32 bits that the engine has for it.
MIN_TOP_P = 1e-30
# Begins the parts of a pydantic location that name a form instead of a field.
TAG_MARK = "~"
# What SGLang passes to the chat template itself; a second value for one of them is a TypeError in its server.
_TEMPLATE_ARGUMENTS = {
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents", "max_length",
    "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize",
    "tokenizer_kwargs", "tools", "truncation",
}  # fmt: skip


def _known_ids(ids: list[int], info: ValidationInfo) -> list[int]:
    size = limits_of(info).vocab_size
    if max(ids, default=0) >= size:
        raise ValueError(f"must hold token ids below {size}, the size of the vocabulary")
    return ids


def _in_context(tokens: int, info: ValidationInfo) -> int:
    longest = limits_of(info).context_tokens
    if tokens > longest:
        raise ValueError(f"must be at most {longest}, the model's context length")
    return tokens


def _in_context_at_best(text: str, info: ValidationInfo) -> str:
    # An engine tokenises a text before it finds that it is too long, and answers no other request meanwhile.
    longest = limits_of(info).text_characters
    if len(text) > longest:
        raise ValueError(f"must have at most {longest} characters: no more can fit the context")
    return text


def _bounded_together(texts: list[str], info: ValidationInfo) -> list[str]:
    longest = limits_of(info).text_characters
    if sum(map(len, texts)) > longest:
        raise ValueError(f"must have at most {longest} characters together, send them as several requests")
    return texts


def limits_of(info: ValidationInfo) -> EngineLimits:
    """Return the limits that the request is validated against."""
    assert isinstance(info.context, EngineLimits)
    return info.context


def _vocabulary_keys(bias: dict[str, float], info: ValidationInfo) -> dict[str, float]:
    if not all(re.fullmatch(r"[0-9]{1,9}", key) for key in bias):
        raise ValueError("must have token ids as keys")
    _known_ids([int(key) for key in bias], info)
    return bias


def _few(bias: Any) -> Any:
    # Before pydantic sees the entries, because it has no fail_fast for them.
    if isinstance(bias, dict) and len(bias) > MAX_BIASES:
        raise ValueError(f"must have at most {MAX_BIASES} entries")
    return bias


def _without_template_arguments(given: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(_TEMPLATE_ARGUMENTS & given.keys()):
        raise ValueError(f"must not set {', '.join(taken)}")
    return given


def _all_or_at_least_one(count: int) -> int:
    if count != -1 and count < 1:
        raise ValueError("must be -1 (all tokens) or at least 1")
    return count


def _not_vanishing(top_p: float) -> float:
    if top_p < MIN_TOP_P:
        raise ValueError(f"must be at least {MIN_TOP_P}")
    return top_p


def _whole(value: Any) -> Any:
    # Clients in languages that have only floats send 10.0, which SGLang accepts too.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _kind_of_prompt(prompt: Any) -> str | None:
    """Return the tag of the form that `prompt` seems to have; pydantic then checks it against that form."""
    if isinstance(prompt, str):
        return "~text"
    if not isinstance(prompt, list):
        return None
    first = prompt[0] if prompt else ""
    return "~texts" if isinstance(first, str) else "~ids of texts" if isinstance(first, list) else "~ids"


# fail_fast on every list: four million bytes of wrong items would make an error each, in 30 s and gigabytes.
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True, min_length=1), AfterValidator(_known_ids)]
Prompts = Field(fail_fast=True, min_length=1, max_length=MAX_CHOICES)
Whole = Annotated[int, BeforeValidator(_whole)]
Tokens = Annotated[int, Field(ge=1), AfterValidator(_in_context), BeforeValidator(_whole)]
Text = Annotated[str, Field(min_length=1)]
PromptText = Annotated[str, Field(min_length=1), AfterValidator(_in_context_at_best)]
Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]],
    Field(fail_fast=True, max_length=MAX_STOPS),
    BeforeValidator(_as_list),
]
Prompt = Annotated[
    Annotated[PromptText, Tag("~text")]
    | Annotated[list[PromptText], Prompts, AfterValidator(_bounded_together), Tag("~texts")]
    | Annotated[TokenIds, Tag("~ids")]
    | Annotated[list[TokenIds], Prompts, Tag("~ids of texts")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="prompt",
        custom_error_message="must be text, a list of texts, a list of token ids, or a list of such lists",
    ),
]
CacheKey = Annotated[str, Field(max_length=MAX_CACHE_KEY_CHARACTERS)]
Biases = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_few), AfterValidator(_vocabulary_keys)
]
TopK = Annotated[int, Field(lt=2**31), AfterValidator(_all_or_at_least_one), BeforeValidator(_whole)]
TopP = Annotated[float, Field(gt=0, le=1), AfterValidator(_not_vanishing)]
RepetitionPenalty = Annotated[float, Field(ge=MIN_REPETITION_PENALTY, le=2)]
MinTokens = Annotated[int, Field(ge=0), AfterValidator(_in_context), BeforeValidator(_whole)]
TemplateArguments = Annotated[dict[str, Any], AfterValidator(_without_template_arguments)]
