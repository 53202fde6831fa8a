"""`/sparktier/features` on a replica's own port: GET describes its records, POST makes one.

A request is `{"token_ids": [...]}`; the answer is safetensors bytes with `features` and `last_hidden`. The front has
neither route, and the replica's port asks for the admin key.
"""

import asyncio
import functools
import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from safetensors.torch import save
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sparktier.configs.errors import ArtifactError, ReplicaError, RequestError
from sparktier.drafter.data.target import Binding, read_target
from sparktier.serving.clients.disconnect import cancel_on_disconnect
from sparktier.serving.engine.features.inbox import Inbox
from sparktier.serving.engine.features.recorder import Recorder
from sparktier.serving.engine.rank_options import FeatureOptions

PATH = "/sparktier/features"


def feature_routes(tokenizer_manager: Any, options: FeatureOptions) -> APIRouter:
    """Return the two routes of an engine started with `options`."""
    router = APIRouter()
    recorder = Recorder(tokenizer_manager, Inbox(options.endpoint), records_at_once=options.records_at_once)
    model = tokenizer_manager.model_config
    # SGLang refuses a sequence of this length, so the longest is one less.
    longest = tokenizer_manager.max_req_input_len - 1

    @router.get(PATH)
    async def facts() -> dict[str, Any]:
        binding = await asyncio.to_thread(_binding, tokenizer_manager.server_args.model_path)
        return {
            "target_layer_ids": options.target_layer_ids,
            "hidden_size": model.hidden_size,
            "dtype": str(model.dtype).removeprefix("torch."),
            "longest_tokens": longest,
            "target_sha256": binding.target_sha256,
            "tokenizer_sha256": binding.tokenizer_sha256,
        }

    @router.post(PATH)
    async def record(request: Request) -> Response:
        try:
            token_ids = _token_ids(await request.body(), vocab=model.vocab_size, longest_tokens=longest)
            rows = await cancel_on_disconnect(request.receive, recorder.record(token_ids))
        except RequestError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        except ReplicaError as error:
            return JSONResponse({"error": str(error)}, status_code=503)
        if rows is None:
            return Response(status_code=499)
        tensors = {"features": rows.features, "last_hidden": rows.last_hidden}
        content = await asyncio.to_thread(save, tensors)
        return Response(content, media_type="application/octet-stream")

    return router


@functools.cache
def _binding(model_path: str) -> Binding:
    """Return the fingerprints of the checkpoint; empty ones where it is not a readable folder."""
    try:
        return read_target(Path(model_path)).binding
    except ArtifactError:
        return Binding("", "")


def _token_ids(body: bytes, *, vocab: int, longest_tokens: int) -> list[int]:
    rule = f"must be a list of 1 to {longest_tokens} token ids from 0 to {vocab - 1}"
    try:
        token_ids = json.loads(body)["token_ids"]
    except (ValueError, KeyError, TypeError):
        raise RequestError(f"token_ids: {rule} (found none). Send them as a JSON object.") from None
    if not isinstance(token_ids, list) or not 1 <= len(token_ids) <= longest_tokens:
        found = f"{len(token_ids)} of them" if isinstance(token_ids, list) else type(token_ids).__name__
        raise RequestError(f"token_ids: {rule} (found {found}). Leave longer sequences out.")
    wrong = [token for token in token_ids if type(token) is not int or not 0 <= token < vocab]
    if wrong:
        raise RequestError(f"token_ids: {rule} (found {json.dumps(wrong[0])[:40]}). Use this model's own tokenizer.")
    return token_ids
