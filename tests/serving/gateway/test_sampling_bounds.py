"""The front's bounds of sampling parameters against those of the installed SGLang."""

import ast
import contextlib
from typing import Any

import pytest

from sparktier.serving.clients.rank_facts import EngineLimits
from sparktier.serving.engine.upstream.source import installed_root
from sparktier.serving.gateway.refused import Refused
from sparktier.serving.gateway.requests.rules import checked

LIMITS = EngineLimits(vocab_size=512, context_tokens=256, token_characters=5)
NUMBERS: list[Any] = [
    *(-1e300, -100, -2.1, -2, -1, -0.5, -1e-300, 0, 1e-300, 1e-30, 1e-6, 0.5, 1, 1.5, 2, 2.1, 3, 17, 128, 256, 257),
    *(1e9, 2.0, 2**31, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 1e300, 10**400),
]  # fmt: skip
# What SamplingParams checks, under the names that clients use.
NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "sampling_seed": "seed"}
# Not numbers, or unknown to both routes.
OTHERS = {"beam_width", "custom_params", "json_schema", "regex", "ebnf", "structural_tag"}


def checked_by_sglang() -> set[str]:
    """The parameters that `SamplingParams.verify` looks at, from its source."""
    root = installed_root()
    assert root is not None
    tree = ast.parse((root / "sglang/srt/sampling/sampling_params.py").read_text())
    verify = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "verify")
    looked_at = [node for node in ast.walk(verify) if isinstance(node, ast.Attribute)]
    return {node.attr for node in looked_at if ast.unparse(node.value) == "self"}


@pytest.mark.parametrize("name", sorted(checked_by_sglang() - OTHERS))
def test_no_number_passes_that_sglang_refuses(name: str) -> None:
    from sglang.srt.entrypoints.openai.protocol import CompletionRequest
    from sglang.srt.sampling.sampling_params import SamplingParams

    field = NAMES.get(name, name)
    passed = 0
    for number in NUMBERS:
        asked = {"prompt": "a", "max_tokens": 256, field: {"3": number} if name == "logit_bias" else number}
        with contextlib.suppress(Refused):
            request = CompletionRequest(**checked("/v1/completions", asked, model="tiny", limits=LIMITS))
            SamplingParams(**{"max_new_tokens": 256, name: getattr(request, field)}).verify(LIMITS.vocab_size)
            passed += 1
    assert 1 <= passed < len(NUMBERS)


def test_whole_numbers_written_as_floats_are_whole_to_sglang() -> None:
    from sglang.srt.entrypoints.openai.protocol import CompletionRequest

    fields = {"max_tokens": 10.0, "min_tokens": 3.0, "n": 2.0, "top_k": 5.0, "seed": 7.0, "logprobs": 1.0}
    asked = {"prompt": "a", **fields}
    request = CompletionRequest(**checked("/v1/completions", asked, model="tiny", limits=LIMITS))
    assert [type(getattr(request, name)) for name in fields] == [int] * len(fields)
