"""Makes the features of one sequence: prefills its token ids in the engine and waits for their rows."""

import asyncio
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from sparktier.configs.errors import ReplicaError, RequestError
from sparktier.serving.engine.features.feature_rows import REQUEST_PREFIX, FeatureRows
from sparktier.serving.engine.features.inbox import Inbox

# Rows and the engine's answer arrive on different channels; rows may be this late.
_ROWS_LATE_S = 60.0


class Recorder:
    """Prefills through SGLang's `tokenizer_manager`, at most `records_at_once` sequences at a time."""

    def __init__(self, tokenizer_manager: Any, inbox: Inbox, *, records_at_once: int) -> None:
        self._manager = tokenizer_manager
        self._inbox = inbox
        self._slots = asyncio.Semaphore(records_at_once)

    async def record(self, token_ids: Sequence[int]) -> FeatureRows:
        """Return every position of the sequence. Cancelling the call ends the work in the engine.

        Raises:
            RequestError: the engine refuses the sequence.
            ReplicaError: the engine aborted the request, or rows are missing.
        """
        request_id = REQUEST_PREFIX + uuid.uuid4().hex
        async with self._slots:
            with self._inbox.expecting(request_id, len(token_ids)) as whole:
                await self._prefill(request_id, token_ids)
                try:
                    return await asyncio.wait_for(whole, _ROWS_LATE_S)
                except TimeoutError:
                    raise ReplicaError("features of a sequence: rank 0 sent too few rows. Its log says why.") from None

    async def _prefill(self, request_id: str, token_ids: Sequence[int]) -> None:
        from sglang.srt.managers.io_struct import GenerateReqInput

        request = GenerateReqInput(
            rid=request_id,
            input_ids=list(token_ids),
            sampling_params={"max_new_tokens": 1, "temperature": 0},
            # Part of the prefix cache's key: a cached prefix has no hidden states.
            extra_key=request_id,
        )
        async with aclosing(self._manager.generate_request(request)) as answers:
            try:
                async for answer in answers:
                    reason = answer["meta_info"]["finish_reason"] or {}
                    if reason.get("type") == "abort":
                        raise ReplicaError(f"features of a sequence: the engine gave up ({reason.get('message')}).")
            except ValueError as error:
                raise RequestError(str(error)) from error
