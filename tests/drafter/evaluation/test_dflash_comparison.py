"""The comparison with DFlash: both drafts start as their common backbone drafts, and a run goes through small."""

from pathlib import Path

import pytest
import torch
from bench.dflash_comparison import PLAIN, Course, compared, grown

from sparktier.drafter.data.packing import pack
from sparktier.drafter.data.target import read_target
from sparktier.drafter.model.draft_model import DraftModel
from sparktier.drafter.training.distributed import DistributedContext
from support.drafts import loud_model, random_record, tiny_config
from support.toy_training import write_world

DSPARK = {"markov_rank": 8, "enable_confidence_head": True, "confidence_head_with_markov": True}
DFLASH = {"intermediate_size": 80}


def logits(model: DraftModel) -> torch.Tensor:
    row = pack([random_record(model.config, length=30, prompt=6, seed=1)])
    found: torch.Tensor = model(row, torch.tensor([8, 15, 20])).draft_logits
    return found.detach()


@pytest.mark.parametrize("changes", [DSPARK, DFLASH])
def test_what_is_added_changes_nothing_until_it_is_trained(changes: dict[str, object]) -> None:
    parent = loud_model(tiny_config(None))
    child = grown(parent, changes, seed=3)
    child.set_target_tables(parent.embed_tokens.weight, parent.lm_head.weight)
    assert sum(p.numel() for p in child.parameters()) > sum(p.numel() for p in parent.parameters())
    torch.testing.assert_close(logits(child), logits(parent))


def test_a_stripped_draft_is_its_backbone() -> None:
    parent = loud_model(tiny_config())
    child = grown(parent, PLAIN, seed=3)
    child.set_target_tables(parent.embed_tokens.weight, parent.lm_head.weight)
    assert not torch.allclose(logits(child), logits(parent))
    assert parent.markov_head is not None
    with torch.no_grad():
        parent.markov_head.markov_w2.weight.zero_()
    # Trained heads shape the backbone's last rows through nothing else.
    torch.testing.assert_close(logits(child), logits(parent))


def test_both_grow_from_one_backbone_and_a_second_call_trains_nothing(tmp_path: Path) -> None:
    write_world(tmp_path)
    target = read_target(tmp_path / "target")
    context = DistributedContext(0, 1, torch.device("cpu"))
    course = Course(tmp_path / "target", target, [tmp_path / "store"], tmp_path / "work", context)

    def drafts() -> dict[str, Path]:
        common = course.common(None, steps=3)
        return {name: course.branch(common, name, 2, seed=1) for name in ("dspark", "dflash")}

    made = drafts()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.safetensors")}
    row = compared(drafts(), target, tmp_path / "store", seed=1)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.safetensors")} == written
    assert made.keys() <= row.keys()
    assert row["low_frac"] <= row["gain_frac"] <= row["high_frac"]
