"""What the served model supports in a chat beyond text: tool calls, separate reasoning, arguments of its template.

SGLang knows this once it has read the chat template; the front refuses requests that ask for more.
"""

from typing import Any

import jinja2
import jinja2.meta

Abilities = dict[str, Any]


def abilities(tokenizer_manager: Any, template_manager: Any) -> Abilities:
    """Return the active parsers, and the names that the chat template reads (None: not known)."""
    other = template_manager.chat_template_name or template_manager.python_chat_template
    template = None if other else getattr(tokenizer_manager.tokenizer, "chat_template", None)
    return {
        "tool_call_parser": tokenizer_manager.config_value("tool_call_parser"),
        "reasoning_parser": tokenizer_manager.config_value("reasoning_parser"),
        "template_reads": names_read(template) if isinstance(template, str) else None,
    }


def names_read(template: str) -> list[str] | None:
    """Return the sorted names that a Jinja template takes from outside, or None if it isn't plain Jinja."""
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True).parse(template)
    except jinja2.TemplateSyntaxError:
        return None
    return sorted(jinja2.meta.find_undeclared_variables(tree))
