"""The tokenizer and chat template of a target: prompts as token ids, as a served chat has them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.data.prompts import Prompt

_MARK = "\x00content\x00"


class ChatTokenizer:
    """Encodes first turns. `thinking` is `enable_thinking` of the chat template; None leaves that to the template."""

    def __init__(self, folder: Path, *, thinking: bool | None = None) -> None:
        """Load the tokenizer of the checkpoint in `folder`.

        Raises:
            ArtifactError: it can't be read, or has no chat template.
        """
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        # Readers of tokenizers raise different errors, even bare `Exception`.
        except Exception as error:
            raise ArtifactError(
                f"{folder}: transformers must be able to read its tokenizer (found {type(error).__name__}: {error}). "
                "Restore the checkpoint."
            ) from None
        if not self._tokenizer.chat_template:
            raise ArtifactError(
                f"{folder}: must have a chat template (found none in its tokenizer). Add chat_template.jinja, or take "
                "features of answers that you have (--answers)."
            )
        self._layout = {} if thinking is None else {"enable_thinking": thinking}

    @property
    def end_token_id(self) -> int | None:
        """Return the token that ends a turn, as the tokenizer has it."""
        end: int | None = self._tokenizer.eos_token_id
        return end

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the ids of the first turn as the chat template lays it out, ready to be answered."""
        return self._ids(self._laid_out(prompt.turns[0], answer=True))

    def encode_user_turn(self, beginning: str) -> list[int]:
        """Return the ids of a conversation that stops inside the user's first turn, after `beginning`."""
        return self._ids(self._laid_out(_MARK, answer=False).split(_MARK)[0] + beginning)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _laid_out(self, content: str, *, answer: bool) -> str:
        turns = [{"role": "user", "content": content}]
        text: str = self._tokenizer.apply_chat_template(
            turns, add_generation_prompt=answer, tokenize=False, **self._layout
        )
        return text

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
