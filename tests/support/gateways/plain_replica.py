"""A script of a replica that answers each request as SGLang does, whole or streamed, with two tokens."""

import asyncio
import json

from support.scripted_replica import STREAM_END, STREAM_HEAD, chunk, json_answer

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def event(**message: object) -> bytes:
    """Return a message as a server-sent event."""
    return b"data: " + json.dumps(message).encode() + b"\n\n"


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
    """Answer the request `body`."""
    asked = json.loads(body)
    chat = "messages" in asked
    if not asked.get("stream"):
        said = {"message": {"role": "assistant", "content": "ab"}} if chat else {"text": "ab"}
        answer = {"id": asked["rid"], "choices": [{"index": 0, **said, "finish_reason": "length"}], "usage": USAGE}
        writer.write(json_answer(json.dumps(answer).encode()))
        return
    said = {"delta": {"content": "a"}} if chat else {"text": "a"}
    token = chunk(event(choices=[{"index": 0, **said}], usage=USAGE))
    end = chunk(event(choices=[], usage=USAGE)) + chunk(b"data: [DONE]\n\n") + STREAM_END
    writer.write(STREAM_HEAD + token + token + end)
