"""What the front refuses before an engine sees it: what sparktier does not do, and what would be ignored silently.

Everything else is SGLang's to judge. Pure.
"""

from typing import Any


def refusal(path: str, body: dict[str, Any]) -> str | None:
    """Return the reason why the JSON object `body`, sent to `path`, can't be served, or None."""
    for rule in (_model, _no_lora, _no_images):
        if reason := rule(body):
            return reason
    return None


def _model(body: dict[str, Any]) -> str | None:
    if "model" in body and not isinstance(body["model"], str):
        return f"model must be a string (found {body['model']!r:.80})."
    return None


def _no_lora(body: dict[str, Any]) -> str | None:
    if body.get("lora_path"):
        return "lora_path: sparktier serves no LoRA adapters. Leave it out."
    return None


def _no_images(body: dict[str, Any]) -> str | None:
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else []:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text":
                return f"messages: sparktier takes text parts only (found {kind!r:.80})."
    return None
