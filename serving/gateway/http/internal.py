"""The listener for operators: metrics, health, the console. Keys of clients open nothing here; no client needs it."""

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from sparktier.serving.clients.replica import AsyncReplicaClient
from sparktier.serving.gateway.http.front import health_routes, not_found
from sparktier.serving.gateway.http.metrics_page import MetricsPage
from sparktier.serving.gateway.routing import ReplicaTable
from sparktier.serving.gateway.telemetry.metrics import GatewayMetrics


def internal_app(
    table: ReplicaTable, client: AsyncReplicaClient, own: GatewayMetrics, console: Sequence[BaseRoute] = ()
) -> ASGIApp:
    """Return the application; `client` asks the replicas of `table` for their metrics, `own` are the gateway's."""
    page = MetricsPage(table, client)

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(own.exposition() + await page.text(), media_type="text/plain; version=0.0.4")

    routes = [Route("/metrics", metrics, methods=["GET"]), *health_routes(table), *console]
    return Starlette(routes=routes, exception_handlers={404: not_found})
