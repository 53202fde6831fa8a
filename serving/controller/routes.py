"""The controller's own routes, behind the admin key: plan, states, decisions, metrics, and operators' orders."""

import time

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from sparktier.cluster.controller import Controller
from sparktier.configs.contracts.message import read_message
from sparktier.configs.contracts.order import ReplicaOrder
from sparktier.configs.errors import ArtifactError, ContractError
from sparktier.serving.controller.decision_log import DecisionLog
from sparktier.serving.controller.orders import Orders
from sparktier.serving.engine.key_guard import KeyGuard

_NO_PLAN = "No plan is in force here: this controller is in standby, fenced, or has heard of no replica yet."


def routes(controller: Controller, log: DecisionLog, orders: Orders, *, admin_key: str) -> ASGIApp:
    """Return the application."""

    async def health(request: Request) -> Response:
        return Response(status_code=200)

    async def plan(request: Request) -> Response:
        if controller.plan is None:
            return JSONResponse({"error": _NO_PLAN}, status_code=503)
        return Response(controller.plan.model_dump_json(), media_type="application/json")

    async def state(request: Request) -> Response:
        standing = {name: each.model_dump(mode="json") for name, each in orders.standing.items()}
        found = {"epoch": controller.epoch, "lease": controller.standing, "replicas": controller.states}
        return JSONResponse({**found, "orders": standing})

    async def give_order(request: Request) -> Response:
        try:
            order = read_message(ReplicaOrder, await request.body())
            if order.replica_id not in controller.states:
                raise ContractError(f"ReplicaOrder: no replica {order.replica_id} (found {list(controller.states)}).")
            orders.give(order)
        except ContractError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        except ArtifactError as error:
            return JSONResponse({"error": str(error)}, status_code=503)
        rung = "" if order.rung is None else f" rung {order.rung}"
        log.state(round(time.time() * 1000), order.replica_id, "ordered", f"{order.actor}: {order.action}{rung}")
        return JSONResponse({"replica_id": order.replica_id, "action": order.action})

    async def decisions(request: Request) -> Response:
        text = request.query_params.get("after", "0")
        if not text.isdecimal():
            return JSONResponse({"error": f"after must be a whole number (found {text:.50})."}, status_code=400)
        lines = "".join(f"{line}\n" for line in log.after(int(text)))
        return Response(lines, media_type="application/x-ndjson")

    async def metrics(request: Request) -> Response:
        return Response(_exposition(controller, log), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/sparktier/plan", plan),
            Route("/sparktier/state", state),
            Route("/sparktier/orders", give_order, methods=["POST"]),
            Route("/sparktier/decisions", decisions),
            Route("/metrics", metrics),
        ]
    )
    return KeyGuard(app, requests_key=admin_key, admin_key=admin_key)


def _exposition(controller: Controller, log: DecisionLog) -> bytes:
    registry = CollectorRegistry()

    def gauge(name: str, text: str, value: float) -> None:
        Gauge(f"sparktier_controller_{name}", text, registry=registry).set(value)

    gauge("leading", "1 while this controller decides.", float(controller.standing == "leading"))
    gauge("epoch", "Epoch of its plans; 0 in standby.", float(controller.epoch or 0))
    gauge("plan_version", "Version of its last plan.", float(controller.plan.version if controller.plan else 0))
    gauge("planner_evaluations", "Questions to the planner in the last tick.", float(controller.evaluations))
    gauge("tick_ms", "Time that the last tick took.", controller.took_ms)
    replicas = Gauge("sparktier_controller_replicas", "Replicas by how they take plans.", ["state"], registry=registry)
    for each in controller.states.values():
        replicas.labels(each).inc()
    counter = Counter("sparktier_controller_decisions", "Decisions written down.", registry=registry)
    counter.inc(log.counts.get("decision", 0))
    return generate_latest(registry)
