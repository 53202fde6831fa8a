"""What the front accepts of a completion or chat request: OpenAI's fields and SGLang's extras, each with its bounds.

SGLang leaves some of these open to its harm: 5000 log-probabilities or a reused request id end a rank, 100000 choices
block its tokenizer for minutes. Knows nothing of HTTP.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    model_validator,
)

from sparktier.serving.replica_table import EngineLimits

MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_STOPS = 32  # SGLang's own limit (sampling_params.py)
MAX_STOP_CHARACTERS = 256
MAX_BIASES = 1024
MAX_TOOLS = 128
MAX_GRAMMAR_CHARACTERS = 64 << 10
# Begins the parts of a pydantic location that name a form instead of a field.
TAG_MARK = "~"
_OUTPUT_RULES = ("regex", "ebnf", "json_schema")
# What SGLang passes to the chat template itself; a second value for one of them is a TypeError in its server.
_TEMPLATE_ARGUMENTS = {
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents", "max_length",
    "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize",
    "tokenizer_kwargs", "tools", "truncation",
}  # fmt: skip


def _known_ids(ids: list[int], info: ValidationInfo) -> list[int]:
    size = _limits(info).vocab_size
    if max(ids, default=0) >= size:
        raise ValueError(f"must hold token ids below {size}, the size of the vocabulary")
    return ids


def _in_context(tokens: int, info: ValidationInfo) -> int:
    longest = _limits(info).context_tokens
    if tokens > longest:
        raise ValueError(f"must be at most {longest}, the model's context length")
    return tokens


def _limits(info: ValidationInfo) -> EngineLimits:
    assert isinstance(info.context, EngineLimits)
    return info.context


def _vocabulary_keys(bias: dict[str, float], info: ValidationInfo) -> dict[str, float]:
    if not all(re.fullmatch(r"[0-9]{1,9}", key) for key in bias):
        raise ValueError("must have token ids as keys")
    _known_ids([int(key) for key in bias], info)
    return bias


def _not_too_many(bias: Any) -> Any:
    # Before pydantic sees the entries, because it has no fail_fast for them.
    if isinstance(bias, dict) and len(bias) > MAX_BIASES:
        raise ValueError(f"must have at most {MAX_BIASES} entries")
    return bias


def _free_of_template_arguments(given: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(_TEMPLATE_ARGUMENTS & given.keys()):
        raise ValueError(f"must not set {', '.join(taken)}")
    return given


def _all_or_at_least_one(count: int) -> int:
    if count != -1 and count < 1:
        raise ValueError("must be -1 (all tokens) or at least 1")
    return count


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _kind_of_prompt(prompt: Any) -> str | None:
    """Return the tag of the form that `prompt` means to have; pydantic then checks that it has."""
    if isinstance(prompt, str):
        return "~text"
    if not isinstance(prompt, list):
        return None
    first = prompt[0] if prompt else ""
    return "~texts" if isinstance(first, str) else "~ids of texts" if isinstance(first, list) else "~ids"


def _kind_of_content(content: Any) -> str | None:
    return "~text" if isinstance(content, str) else "~parts" if isinstance(content, list) else None


# fail_fast on every list: four million bytes of wrong items would make an error each, in 30 s and gigabytes.
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(fail_fast=True, min_length=1), AfterValidator(_known_ids)]
Prompts = Field(fail_fast=True, min_length=1, max_length=MAX_CHOICES)
Tokens = Annotated[int, Field(ge=1), AfterValidator(_in_context)]
Text = Annotated[str, Field(min_length=1)]
Stops = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]],
    Field(fail_fast=True, max_length=MAX_STOPS),
    BeforeValidator(_as_list),
]
Prompt = Annotated[
    Annotated[Text, Tag("~text")]
    | Annotated[list[Text], Prompts, Tag("~texts")]
    | Annotated[TokenIds, Tag("~ids")]
    | Annotated[list[TokenIds], Prompts, Tag("~ids of texts")],
    Discriminator(
        _kind_of_prompt,
        custom_error_type="prompt",
        custom_error_message="must be text, a list of texts, a list of token ids, or a list of such lists",
    ),
]
Grammar = Annotated[str, Field(min_length=1, max_length=MAX_GRAMMAR_CHARACTERS)]


class Part(BaseModel):
    """Fields beyond these pass: SGLang reads a few more that do no harm, and ignores the rest as OpenAI's API does."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class StreamOptions(Part):
    """What else a stream carries."""

    include_usage: bool | None = None


class JsonSchema(Part):
    """A named schema for the output."""

    name: Text
    schema_: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Part):
    """The form of the output."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_given(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("must have json_schema with a name and a schema when its type is json_schema")
        return self


class Generation(Part):
    """Fields that completions and chats share. Absent ones keep SGLang's default; null counts as absent."""

    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    min_tokens: Annotated[int, Field(ge=0), AfterValidator(_in_context)] = 0
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: Annotated[int, Field(lt=2**31), AfterValidator(_all_or_at_least_one)] | None = None
    min_p: float | None = Field(default=None, ge=0, le=1)
    frequency_penalty: float = Field(default=0, ge=-2, le=2)
    presence_penalty: float = Field(default=0, ge=-2, le=2)
    repetition_penalty: float | None = Field(default=None, gt=0, le=2)
    logit_bias: (
        Annotated[
            dict[str, Annotated[float, Field(ge=-100, le=100)]],
            BeforeValidator(_not_too_many),
            AfterValidator(_vocabulary_keys),
        ]
        | None
    ) = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Stops | None = None
    stop_token_ids: Annotated[TokenIds, Field(max_length=MAX_STOPS)] | None = None
    regex: Grammar | None = None
    ebnf: Grammar | None = None
    json_schema: Grammar | None = None
    response_format: ResponseFormat | None = None
    ignore_eos: bool = False
    no_stop_trim: bool = False
    skip_special_tokens: bool = True
    user: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.n * self.prompts > MAX_CHOICES:
            raise ValueError(f"n times the number of prompts must be at most {MAX_CHOICES}")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options must come with stream: true")
        if self.longest_output is not None and self.min_tokens > self.longest_output:
            raise ValueError("min_tokens must be at most max_tokens")
        if sum(rule is not None for rule in self._output_rules()) > 1:
            raise ValueError("at most one of regex, ebnf, json_schema and response_format may bind the output")
        return self

    @property
    def prompts(self) -> int:
        """How many prompts are answered."""
        return 1

    @property
    def longest_output(self) -> int | None:
        """Most tokens of each choice, where the client bounds them."""
        return self.max_tokens

    def _output_rules(self) -> list[object]:
        form = self.response_format
        return [*(getattr(self, name) for name in _OUTPUT_RULES), form if form and form.type != "text" else None]


class Completion(Generation):
    """The body of `/v1/completions`."""

    prompt: Prompt
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = None

    @model_validator(mode="after")
    def _every_choice_returned(self) -> Self:
        if self.best_of not in (None, self.n):
            raise ValueError("best_of must equal n: every choice that is generated is returned")
        return self

    @property
    def prompts(self) -> int:
        """How many prompts are answered."""
        several = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return len(self.prompt) if several else 1


class ContentPart(Part):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Part):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: (
        Annotated[
            Annotated[str, Tag("~text")]
            | Annotated[list[ContentPart], Field(fail_fast=True, min_length=1), Tag("~parts")],
            Discriminator(
                _kind_of_content, custom_error_type="content", custom_error_message="must be text or a list of parts"
            ),
        ]
        | None
    ) = None

    @model_validator(mode="after")
    def _something_said(self) -> Self:
        if self.content is None and self.role == "user":
            raise ValueError("must have content")
        return self


class Chat(Generation):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    tools: Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    chat_template_kwargs: Annotated[dict[str, Any], AfterValidator(_free_of_template_arguments)] | None = None

    @model_validator(mode="after")
    def _logprobs_asked_for(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs must come with logprobs: true")
        return self

    @property
    def longest_output(self) -> int | None:
        """Most tokens of each choice, where the client bounds them."""
        return self.max_completion_tokens or self.max_tokens
