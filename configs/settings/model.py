"""The `model` section: which weights are served, and in which number format.

`quantization` and `kv_dtype` are SGLang's names (`sglang/srt/arg_groups/choices.py` and `fields/model.py` at 0.5.23),
cut down to those a mixture-of-experts model is served in on NVIDIA GPUs; parsers of tool calls are all of SGLang's,
which a test compares with the installed package.
"""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sparktier.configs.errors import ArtifactError
from sparktier.configs.settings.section import Section

_LOCAL_PREFIXES = ("/", "./", "../", "~")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class ModelSource(StrEnum):
    """Where a model path leads."""

    DEMO = "demo"
    LOCAL = "local"
    HUB = "hub"


def model_source(path: str) -> ModelSource:
    """Return what `path` names.

    Raises:
        ValueError: `path` is neither `demo`, nor a directory as one writes it, nor a hub id.
    """
    if path == "demo":
        return ModelSource.DEMO
    if not path.isprintable():
        raise ValueError("must be without control characters")
    if path.startswith(_LOCAL_PREFIXES):
        return ModelSource.LOCAL
    if _HUB_ID.fullmatch(path):
        return ModelSource.HUB
    raise ValueError(
        "must be 'demo', a directory beginning with / or ./ or ~, or a hub id of the form organisation/model"
    )


def _known_source(path: str) -> str:
    model_source(path)
    return path


def local_path(path: str) -> Path:
    """Return the directory that `path` names.

    Raises:
        ArtifactError: it begins with the home of a user whom this machine doesn't know.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ArtifactError(f"{path}: must begin with a home that there is (found none). Write it out.") from None


ModelPath = Annotated[str, AfterValidator(_known_source)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal[
    "awq", "awq_marlin", "compressed-tensors", "fp8", "gptq", "gptq_marlin", "modelopt_fp4", "modelopt_fp8", "mxfp4",
    "w4afp8", "w8a8_fp8", "w8a8_int8",
]  # fmt: skip
ToolCallParser = Literal[
    "auto", "apertus2509", "beam", "cohere_command4", "deepseekv3", "deepseekv31", "deepseekv32", "deepseekv4",
    "deepseekv41", "dots", "gemma4", "gigachat3", "gigachat35", "glm", "glm45", "glm47", "gpt-oss", "hermes",
    "hunyuan", "inkling", "interns1", "iquest_q1", "k2_horizon", "kimi_k2", "kimi_k3", "lfm2", "ling3", "llama3",
    "mimo", "minicpm5", "minimax-m2", "minimax-m3", "mistral", "muse", "nanbeige", "poolside_v1", "pythonic",
    "qwen", "qwen25", "qwen3_coder", "response_template", "spark25", "step3", "step3p5", "trinity",
]  # fmt: skip


class ModelSettings(Section):
    """The served model."""

    path: ModelPath = Field(
        description="`demo` (built on this machine), a local directory (beginning with `/`, `./` or `~`), or a hub id."
    )
    revision: str | None = Field(default=None, description="Commit or tag of a hub id; null takes its main branch.")
    served_name: str | None = Field(
        default=None, min_length=1, description="Name that clients ask for; null takes the last part of `path`."
    )
    dtype: Dtype = Field(
        default="auto",
        description="Number format of weights and activations; `auto` follows the checkpoint, but is float32 on a CPU "
        "that is slow in bfloat16 (AVX2 alone).",
    )
    quantization: Quantization | None = Field(
        default=None,
        description="SGLang quantisation method. Null reads it from the checkpoint; `fp8` on a bfloat16 one quantises.",
    )
    kv_dtype: Literal["auto", "bfloat16", "fp8_e4m3", "fp8_e5m2"] = Field(
        default="auto", description="Number format of the KV cache; `auto` follows `dtype`."
    )
    context_tokens: int | None = Field(
        default=None, ge=16, description="Longest prompt plus output, in tokens; null takes the checkpoint's."
    )
    tool_call_parser: ToolCallParser | None = Field(
        default="auto",
        description="SGLang's parser that finds calls of tools in an answer; `auto` finds it by the chat template. "
        "Where there is none, or with null, requests with tools are refused.",
    )
    trust_remote_code: bool = Field(default=False, description="Run Python code that comes with the checkpoint.")

    @property
    def source(self) -> ModelSource:
        """Where `path` leads."""
        return model_source(self.path)

    @property
    def public_name(self) -> str:
        """The name that clients ask for."""
        return self.served_name or self.path.rstrip("/").rsplit("/", 1)[-1]
