"""What the ranks of a replica report once they have started, as their keeper reads it."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

Positive = Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class EngineLimits:
    """What requests are checked against; `token_characters` is the length of the model's longest token.

    `template_reads` are the variables that its chat template reads; None where they aren't known.
    """

    vocab_size: int
    context_tokens: int
    token_characters: int
    calls_tools: bool = False
    parts_reasoning: bool = False
    template_reads: frozenset[str] | None = None

    @property
    def text_characters(self) -> int:
        """Length of the longest text that may fit the context, where normalising shortens it to a quarter at most."""
        return 4 * self.context_tokens * self.token_characters


class RankFacts(BaseModel):
    """One rank: where it is, and what model and experts it holds."""

    model_config = ConfigDict(frozen=True, strict=True)

    rank: int
    pid: int
    node: str
    platform: str
    threads: int
    vocab_size: Positive
    context_tokens: Positive
    token_characters: Positive
    moe_layers: int
    experts: int
    local_experts: list[int]
    tool_call_parser: str | None = None
    reasoning_parser: str | None = None
    template_reads: list[str] | None = None

    def limits(self) -> EngineLimits:
        """Return what requests are checked against."""
        return EngineLimits(
            vocab_size=self.vocab_size,
            context_tokens=self.context_tokens,
            token_characters=self.token_characters,
            calls_tools=self.tool_call_parser is not None,
            parts_reasoning=self.reasoning_parser is not None,
            template_reads=None if self.template_reads is None else frozenset(self.template_reads),
        )

    def line(self) -> str:
        """Return one line on what the rank is and holds."""
        held = "no experts"
        if self.local_experts:
            held = f"experts {self.local_experts[0]}-{self.local_experts[-1]} of {self.experts}"
        return (
            f"rank {self.rank}: Ray actor pid {self.pid} on {self.node}, {held} in {self.moe_layers} layers, "
            f"{self.threads} threads, platform {self.platform}"
        )


_RANKS = TypeAdapter(Annotated[list[RankFacts], Field(min_length=1)])


def read_ranks(answer: bytes) -> list[RankFacts]:
    """Return the ranks in an answer of `/sparktier/ranks`. Raises ValueError when it has none, or one that is odd."""
    return _RANKS.validate_json(answer)
