"""The part of a Kubernetes API server that the controller may use: one Lease, by TLS and a token, with versions.

python -m support.charts.lease_server FOLDER NAMESPACE/NAME PORT. It refuses all that the chart's Role does not allow.
"""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

TOKEN = "token-of-the-controller"


def write_account(folder: Path, namespace: str) -> None:
    """Write a service account's folder, with a new certificate of this server and its key beside it."""
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=api"]
    files = ["-keyout", str(folder.parent / "api.key"), "-out", str(folder / "ca.crt")]
    subprocess.run([*made, "-addext", "subjectAltName=IP:127.0.0.1", *files], check=True, capture_output=True)
    (folder / "token").write_text(TOKEN)
    (folder / "namespace").write_text(namespace)


def server(name: str, log: Path) -> Starlette:
    """Return the server of the Lease `name` (namespace/name); each request adds a line to `log`."""
    namespace, lease = name.split("/")
    held: dict[str, Any] = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": lease, "namespace": namespace, "resourceVersion": "1"},
        "spec": {},
    }

    async def answer(request: Request) -> Response:
        with log.open("a") as file:
            file.write(f"{request.method} {request.url.path}\n")
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return JSONResponse({"reason": "Unauthorized"}, 401)
        if request.method == "PUT":
            asked = json.loads(await request.body())
            if asked["metadata"]["resourceVersion"] != held["metadata"]["resourceVersion"]:
                return JSONResponse({"reason": "Conflict"}, 409)
            held["spec"] = asked["spec"]
            held["metadata"]["resourceVersion"] = str(int(held["metadata"]["resourceVersion"]) + 1)
        return JSONResponse(held)

    async def refuse(request: Request) -> Response:
        with log.open("a") as file:
            file.write(f"refused {request.method} {request.url.path}\n")
        return JSONResponse({"reason": "Forbidden"}, 403)

    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{lease}"
    others = Route("/{path:path}", refuse, methods=["GET", "PUT", "POST", "PATCH", "DELETE"])
    return Starlette(routes=[Route(path, answer, methods=["GET", "PUT"]), others])


def main(account: Path, name: str, port: int) -> None:
    """Serve until killed."""
    config = uvicorn.Config(
        server(name, account.parent / "api.log"),
        port=port,
        log_level="warning",
        ssl_certfile=account / "ca.crt",
        ssl_keyfile=account.parent / "api.key",
    )
    asyncio.run(uvicorn.Server(config).serve())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
