"""What the front learns of the served model's chats, and the parsers that settings may name."""

import ast
from types import SimpleNamespace
from typing import get_args

import pytest

from sparktier.configs.settings.model import ToolCallParser
from sparktier.serving.engine.requests.chat_abilities import abilities, names_read
from sparktier.serving.engine.upstream.source import installed_root


@pytest.mark.parametrize(
    ("template", "names"),
    [
        ("{% for m in messages %}{{ m.role }}{% if loop.last %}{% break %}{% endif %}{% endfor %}", ["messages"]),
        ("{% set a = 1 %}{{ a }}{% if tools is defined %}{{ tools | tojson }}{% endif %}", ["tools"]),
        (
            "{% macro f(x) %}{{ x }}{{ enable_thinking }}{% endmacro %}{{ f(messages) }}",
            ["enable_thinking", "messages"],
        ),
        ("{% generation %}{{ messages }}{% endgeneration %}", None),
    ],
)
def test_a_template_s_own_names_are_not_taken_for_arguments(template: str, names: list[str] | None) -> None:
    assert names_read(template) == names


def told(template: object, *, other: str | None = None) -> dict[str, object]:
    values = {"tool_call_parser": "qwen", "reasoning_parser": None}
    tokenizer_manager = SimpleNamespace(tokenizer=SimpleNamespace(chat_template=template), config_value=values.get)
    return abilities(tokenizer_manager, SimpleNamespace(chat_template_name=other, python_chat_template=None))


def test_what_no_jinja_template_tells_is_not_known() -> None:
    assert told("{{ messages }}") == {
        "tool_call_parser": "qwen", "reasoning_parser": None, "template_reads": ["messages"]
    }  # fmt: skip
    assert told(None)["template_reads"] is None
    assert told("{{ messages }}", other="chatml")["template_reads"] is None


def test_settings_name_the_parsers_that_sglang_has() -> None:
    root = installed_root()
    assert root is not None
    source = (root / "sglang/srt/function_call/parser_names.py").read_text()
    assignment = next(node for node in ast.parse(source).body if isinstance(node, ast.Assign))
    assert set(get_args(ToolCallParser)) == {"auto", *ast.literal_eval(assignment.value)}
