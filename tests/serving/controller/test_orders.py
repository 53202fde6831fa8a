"""Operators' orders: in force at once, over a restart, until they are ended, and told with their actor."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from sparktier.cluster.controller import Place
from sparktier.configs.contracts.order import ReplicaOrder
from sparktier.serving.controller.decision_log import DecisionLog
from sparktier.serving.controller.orders import Orders
from sparktier.serving.controller.routes import routes

PLACES = {"replica-0": Place("http://127.0.0.1:1"), "replica-1": Place("http://127.0.0.1:2", "off")}
KEY = {"Authorization": "Bearer admin"}


def order(action: Any, *, replica: str = "replica-0", rung: int | None = None) -> ReplicaOrder:
    return ReplicaOrder(replica_id=replica, action=action, rung=rung, actor="ann")


def test_orders_are_what_is_wanted_until_they_are_ended(tmp_path: Path) -> None:
    orders = Orders(tmp_path / "orders.json")
    assert orders.applied(PLACES) == PLACES
    orders.give(order("drain"))
    orders.give(order("hold", rung=1))
    orders.give(order("drain", replica="replica-1"))
    for found in (orders.applied(PLACES), Orders(tmp_path / "orders.json").applied(PLACES)):
        first, second = found["replica-0"], found["replica-1"]
        assert (first.asked, first.held_rung) == ("draining", 1)
        assert first.order == "ann ordered to drain and hold rung 1"
        # A replica without an engine stays off.
        assert second.asked == "off"
    orders.give(order("resume"))
    assert Orders(tmp_path / "orders.json").applied(PLACES)["replica-0"] == PLACES["replica-0"]


def test_a_broken_file_holds_no_order_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "orders.json").write_text("{")
    assert Orders(tmp_path / "orders.json").applied(PLACES) == PLACES
    assert "operators' orders can't be read" in caplog.text


class Told:
    """As much of a controller as the routes of orders ask."""

    epoch, standing, plan = 2, "leading", None

    def __init__(self) -> None:
        self.states = {"replica-0": "steered"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"action": "drain", "actor": "ann"}, 200),
        ({"action": "hold", "rung": 2, "actor": "ann"}, 200),
        ({"action": "hold", "actor": "ann"}, 400),
        ({"action": "drain", "rung": 1, "actor": "ann"}, 400),
        ({"action": "drain", "actor": "ann\nforged"}, 400),
        ({"action": "drain", "actor": "ann", "replica_id": "replica-7"}, 400),
    ],
    ids=str,
)
async def test_an_order_is_taken_or_refused_and_its_actor_is_in_the_log(
    tmp_path: Path, body: dict[str, Any], status: int
) -> None:
    log, orders = DecisionLog(tmp_path / "log.jsonl", file_bytes=1 << 20), Orders(tmp_path / "orders.json")
    app = routes(Told(), log, orders, admin_key="admin")  # type: ignore[arg-type]
    sent = {"schema_version": 2, "replica_id": "replica-0", **body}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://controller") as client:
        assert (await client.post("/sparktier/orders", json=sent)).status_code == 401
        answer = await client.post("/sparktier/orders", json=sent, headers=KEY)
        state = (await client.get("/sparktier/state", headers=KEY)).json()
    assert answer.status_code == status, answer.text
    assert bool(state["orders"]) == (status == 200)
    lines = [json.loads(line) for line in log.after(0)]
    assert [line["state"] for line in lines] == (["ordered"] if status == 200 else [])
    assert all("ann" in line["found"] for line in lines)
    log.close()
