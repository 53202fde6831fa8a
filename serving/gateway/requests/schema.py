"""What the front accepts of a completion or chat request: OpenAI's fields and SGLang's extras, each with its bounds.

SGLang leaves some of these open to its harm: a request for 5000 log-probabilities ends a rank, one for 100000 choices
blocks its tokenizer for minutes.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationInfo, model_validator

from sparktier.serving.gateway.requests.fields import (
    MAX_CHOICES,
    Biases,
    CacheKey,
    MinTokens,
    Prompt,
    RepetitionPenalty,
    Stops,
    TemplateArguments,
    Text,
    TokenIds,
    Tokens,
    TopK,
    TopP,
    Whole,
    limits_of,
)
from sparktier.serving.gateway.requests.grammars import MAX_SCHEMA_PARTS, Ebnf, Regex, Schema, SchemaText, schema_parts
from sparktier.serving.gateway.requests.values import characters

MAX_LOGPROBS = 20
DEFAULT_MAX_TOKENS = 16  # SGLang's and OpenAI's, of completions alone
MAX_TOOLS = 128
MAX_STOP_IDS = 32
# Fields that chat templates and the tokenizer read, which are bounded together.
_TEMPLATE_FIELDS = (
    "messages", "tools", "tool_choice", "chat_template_kwargs", "reasoning", "reasoning_effort",
)  # fmt: skip
_OUTPUT_RULES = ("regex", "ebnf", "json_schema")


class Part(BaseModel):
    """The schema ignores other fields; rules.py refuses unknown fields of the request itself."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class StreamOptions(Part):
    """What else a stream carries."""

    include_usage: bool | None = None


class JsonSchema(Part):
    """A named schema for the output."""

    name: Text
    schema_: Schema = Field(alias="schema")


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

    n: Whole = Field(default=1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    min_tokens: MinTokens = 0
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: float | None = Field(default=None, ge=0, le=1)
    frequency_penalty: float = Field(default=0, ge=-2, le=2)
    presence_penalty: float = Field(default=0, ge=-2, le=2)
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: Biases | None = None
    seed: Whole | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Stops | None = None
    stop_token_ids: Annotated[TokenIds, Field(max_length=MAX_STOP_IDS)] | None = None
    regex: Regex | None = None
    ebnf: Ebnf | None = None
    response_format: ResponseFormat | None = None
    ignore_eos: bool = False
    no_stop_trim: bool = False
    skip_special_tokens: bool = True
    user: str | None = None
    cache_salt: CacheKey | None = None
    extra_key: CacheKey | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.n * self.prompts > MAX_CHOICES:
            raise ValueError(f"n times the number of prompts must be at most {MAX_CHOICES}")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options must come with stream: true")
        if self.longest_output is not None and self.min_tokens > self.longest_output:
            raise ValueError(f"min_tokens must be at most max_tokens, here {self.longest_output}")
        if self.min_tokens and self.stop:
            # SGLang lets a stop string end an answer at any length; other engines don't, so neither is guessed.
            raise ValueError("stop must not come with min_tokens, which bars stop tokens alone: use stop_token_ids")
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
        return [*(getattr(self, name, None) for name in _OUTPUT_RULES), form if form and form.type != "text" else None]


class Completion(Generation):
    """The body of `/v1/completions`."""

    prompt: Prompt
    json_schema: SchemaText | None = None
    echo: bool = False
    logprobs: Whole | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    best_of: Whole | None = None

    @model_validator(mode="after")
    def _every_choice_returned(self) -> Self:
        if self.best_of not in (None, self.n):
            raise ValueError("best_of must equal n: every choice that is generated is returned")
        if self.echo and self.logprobs == 0:
            raise ValueError("logprobs must be at least 1 with echo: SGLang tells none of the prompt with 0")
        return self

    @property
    def prompts(self) -> int:
        """How many prompts are answered."""
        several = isinstance(self.prompt, list) and not isinstance(self.prompt[0], int)
        return len(self.prompt) if several else 1

    @property
    def longest_output(self) -> int | None:
        """Most tokens of each choice."""
        return self.max_tokens or DEFAULT_MAX_TOKENS


def _kind_of_content(content: Any) -> str | None:
    return "~text" if isinstance(content, str) else "~parts" if isinstance(content, list) else None


class ContentPart(Part):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Function(Part):
    """What a tool does, and the schema of its arguments."""

    name: Text
    parameters: Schema | None = None


class Tool(Part):
    """A tool that the model may call."""

    function: Function


Tools = Annotated[list[Tool], Field(fail_fast=True, max_length=MAX_TOOLS)]


class Message(Part):
    """One turn of a conversation; a system or developer's may bring tools of its own."""

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
    tools: Tools | None = None

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
    top_logprobs: Whole | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    tools: Tools | None = None
    chat_template_kwargs: TemplateArguments | None = None

    @model_validator(mode="before")
    @classmethod
    def _in_context_at_best(cls, fields: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        # An engine writes and tokenises the prompt before it finds it too long, and answers no request meanwhile.
        longest = limits_of(info).text_characters
        rendered = [fields[name] for name in _TEMPLATE_FIELDS if name in fields]
        if characters(rendered, most=longest) > longest:
            raise ValueError(
                f"messages, tools and chat_template_kwargs must have at most {longest} characters together: "
                "no more can fit the context"
            )
        return fields

    @model_validator(mode="after")
    def _few_tools(self) -> Self:
        tools = [tool for own in (self.tools, *(message.tools for message in self.messages)) for tool in own or []]
        if len(tools) > MAX_TOOLS:
            raise ValueError(f"tools and those of messages must be at most {MAX_TOOLS} together")
        if sum(schema_parts(tool.function.parameters) for tool in tools) > MAX_SCHEMA_PARTS:
            raise ValueError(f"the parameters of tools must have at most {MAX_SCHEMA_PARTS} lists and objects together")
        return self

    @model_validator(mode="after")
    def _logprobs_asked_for(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs must come with logprobs: true")
        return self

    @property
    def longest_output(self) -> int | None:
        """Most tokens of each choice, where the client bounds them."""
        return self.max_completion_tokens or self.max_tokens
