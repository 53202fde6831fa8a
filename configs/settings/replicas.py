"""The `replicas` and `ray` sections: how many copies of the model run, over which ranks, with which limits.

Names are ours; `serving/deployment/engine_args.py` says which SGLang argument each becomes.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, JsonValue

from sparktier.configs.settings.section import Section

# SGLang's buffer of its low-latency all-to-all kernels, in rows a rank (`sglang/srt/environ.py`, 0.5.23). DeepEP itself
# asserts the upper one (`layers/moe/token_dispatcher/deepep.py`).
DEFAULT_DISPATCH_ROWS = 128
MAX_DISPATCH_ROWS = 1024


class ReplicaSettings(Section):
    """Copies of the model and the ranks of each."""

    count: int = Field(default=1, ge=1, le=1024, description="Replicas, each a copy of the model with its own ranks.")
    nodes: int = Field(default=1, ge=1, le=64, description="Nodes that one replica spans.")
    tensor_parallel: int = Field(
        default=1, ge=1, le=512, description="Ranks of one replica over all its nodes, one accelerator each."
    )
    expert_parallel: int = Field(
        default=1, ge=1, le=512, description="Groups that the experts are sharded over; divides `tensor_parallel`."
    )
    attention_data_parallel: int = Field(
        default=1,
        ge=1,
        le=512,
        description="Groups that share out requests for attention, while experts stay sharded over all ranks.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where ranks run; `auto` is `cuda` if this machine has a GPU, else `cpu`."
    )
    accelerator: Literal["A100-80GB", "H100", "H20", "H200", "B200"] | None = Field(
        default=None, description="GPU model, for the arithmetic of `sparktier doctor --plan`."
    )
    max_running_requests: int | None = Field(
        default=None,
        ge=1,
        description="Requests that one replica decodes at once; null lets SGLang choose, which takes 48 with drafts.",
    )
    kv_tokens: int | None = Field(
        default=None,
        ge=64,
        description="KV cache of one attention group, in tokens; null fills `memory_frac`, on CPUs 16384.",
    )
    memory_frac: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Part of a rank's memory for weights and KV cache together; null lets SGLang choose.",
    )
    chunked_prefill_tokens: int | None = Field(
        default=None, ge=16, description="Most prompt tokens prefilled in one step; null lets SGLang choose."
    )
    page_tokens: int | None = Field(
        default=None, ge=1, le=1024, description="Tokens in one page of the KV cache; null lets SGLang choose."
    )
    attention_backend: str | None = Field(
        default=None, min_length=1, description="SGLang attention backend; null lets the platform choose."
    )
    moe_all_to_all: Literal["none", "deepep", "megamoe", "mooncake", "mori", "nixl"] = Field(
        default="none",
        description="How rows travel to experts. `none` all-reduces; the others span all ranks and need a GPU fabric.",
    )
    dispatch_rows_per_rank: int = Field(
        default=DEFAULT_DISPATCH_ROWS,
        ge=1,
        le=MAX_DISPATCH_ROWS,
        description="Buffer of a low-latency all-to-all, in rows a rank; bounds requests times rows verified for each.",
    )
    sglang_args: Mapping[str, JsonValue] = Field(
        default_factory=dict,
        description="Further SGLang 0.5.23 arguments by field name; what another key sets is refused here.",
    )

    @property
    def ranks(self) -> int:
        """Accelerators of all replicas together."""
        return self.count * self.tensor_parallel

    @property
    def attention_tensor_parallel(self) -> int:
        """Ranks that share one attention group."""
        return self.tensor_parallel // self.attention_data_parallel


def _known_address(address: str) -> str:
    if address != "auto" and not re.fullmatch(r"\[?[\w.:-]+\]?:\d{1,5}", address):
        raise ValueError("must be 'auto' or host:port")
    return address


class RaySettings(Section):
    """The Ray cluster that holds the ranks."""

    address: Annotated[str, AfterValidator(_known_address)] | None = Field(
        default=None, description="Null starts a local cluster; `auto` joins the one of this node; or host:port."
    )
