"""The drafter that is shipped for the demo model: small, whole, made for that model, and what the demo serves with."""

from pathlib import Path

import pytest

from sparktier.configs.files import sha256_of
from sparktier.configs.loading.loader import load_settings
from sparktier.drafter.data.target import read_target
from sparktier.drafter.demo.location import demo_draft
from sparktier.drafter.model.checkpoint import load_draft
from sparktier.drafter.model.edge_calibration import read_children
from sparktier.serving.demo_model import ensure_demo_model
from sparktier.serving.deployment.model_source import local_weights
from support import replica_http
from support.deployment import ROOT, deployed
from support.generation import set_plan

LARGEST_MB = 32
OFF, TREE = 0, 3


def test_it_is_small_and_fits_the_demo_model() -> None:
    folder = demo_draft()
    assert sum(file.stat().st_size for file in folder.iterdir()) <= LARGEST_MB * 10**6
    assert load_draft(folder, read_target(ensure_demo_model())).config.markov_rank == 64
    assert read_children(folder / "children.json", sha256_of(folder / "model.safetensors")).fits


def test_the_demo_serves_with_it() -> None:
    settings = load_settings(ROOT / "configs" / "demo.yaml")
    assert settings.speculation.method == "chain"
    assert Path(str(local_weights(settings).draft)) == demo_draft()


@pytest.mark.engine
def test_the_demo_answers_in_fewer_steps_and_the_same_words(tmp_path: Path) -> None:
    speculation = {"speculation.method": "tree", "speculation.draft_path": "demo"}
    model = {"model.dtype": "auto", "model.context_tokens": 2048}
    with deployed(ensure_demo_model(), tmp_path / "log", **speculation, **model) as deployment:
        client = deployment.client()

        def answer(rung: int) -> tuple[str, float]:
            assert set_plan(deployment.replica_url(), {"sparktier_rung": rung})
            said = client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "What is the capital of France?"}],
                max_tokens=24,
                temperature=0,
            )
            assert said.usage is not None
            usage = said.usage.model_dump()["sparktier"]
            return str(said.choices[0].message.content), usage["accepted_length"]

        off, drafted = answer(OFF), answer(TREE)
        ranks = replica_http.get(f"{deployment.replica_url()}/sparktier/ranks", timeout=60.0).json()
    assert "children.json" in ranks[0]["draft_calibration"]
    assert "Paris" in off[0]
    assert drafted[0] == off[0]
    assert drafted[1] > 1.2 > off[1]
