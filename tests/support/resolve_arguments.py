"""Lets SGLang itself resolve arguments, in a process of its own, and says what it made of them or why it refused.

Reads a JSON list of `{"kwargs": ..., "environment": ...}` from stdin and writes a list of `{"error": ..., "resolved":
...}` to stdout. Resolution needs a `config.json` but neither weights nor a GPU.
"""

import json
import os
import subprocess
import sys
from typing import Any

from sparktier.serving.engine.rank_options import ALGORITHM


def resolve(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return SGLang's answer to each case: `error` (None if accepted) and the resolved fields that were asked for."""
    command = [sys.executable, "-m", "support.resolve_arguments"]
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "PYTHONPATH": tests}
    done = subprocess.run(command, input=json.dumps(cases), env=environment, capture_output=True, text=True, check=True)
    answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def _answer(case: dict[str, Any]) -> dict[str, Any]:
    from sglang.srt.server_args import ServerArgs

    if case["kwargs"].get("speculative_algorithm") == ALGORITHM:
        from sparktier.serving.engine.algorithm import register

        register()
    for name in [name for name in os.environ if name.startswith("SGLANG_")]:
        del os.environ[name]
    os.environ.update(case["environment"])
    arguments = ServerArgs(**case["kwargs"])
    try:
        arguments.resolve_once()
        arguments.check_server_args()
    except (ValueError, AssertionError) as error:
        return {"error": str(error) or type(error).__name__, "resolved": {}}
    resolved = arguments.resolved_dict()
    return {"error": None, "resolved": {name: resolved[name] for name in case["kwargs"]}}


if __name__ == "__main__":
    print(json.dumps([_answer(case) for case in json.load(sys.stdin)], default=str))  # noqa: T201 - its only output
