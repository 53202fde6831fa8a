"""Every field that a request may have shows in its answer."""

import httpx
import pytest

from support.deployment import MODEL, Deployment
from support.inputs.field_effects import BASE, EFFECTS, Effect, Said

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    ("path", "effect"),
    [(path, effect) for path, effects in EFFECTS.items() for effect in effects.values()],
    ids=[f"{path.split('/')[2]}-{name}" for path, effects in EFFECTS.items() for name in effects],
)
def test_an_accepted_field_has_its_effect(sharded: Deployment, path: str, effect: Effect) -> None:
    def said(body: dict[str, object]) -> Said:
        return Said(httpx.post(sharded.url + path, json={"model": MODEL, **body}, timeout=60.0))

    without = {**BASE[path], **effect.beside}
    before, after = said(without), said({**without, **effect.given})
    assert effect.seen(before, after), (before.messages, after.messages)
