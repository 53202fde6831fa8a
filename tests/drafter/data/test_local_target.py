"""A target in this process: what it writes and the features it hands out are those of plain transformers."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.data import local_target
from sparktier.drafter.data.answered_source import answer_prompts
from sparktier.drafter.data.local_target import LocalTarget
from sparktier.drafter.data.prompts import Prompt
from sparktier.drafter.demo.self_prompts import self_written
from support.tiny_moe import make_tiny_moe

LAYERS = (0, 2)
PREFIXES = [[7, 9, 11, 40, 41, 42, 43], [8], [5, 6, 99, 120]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # In fp32, where no router is near enough to a tie for padding to change its choice.
    return make_tiny_moe(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def target(folder: Path) -> LocalTarget:
    return LocalTarget(folder, LAYERS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether two tensors are the same up to the rounding of other batch sizes."""
    return float((ours - theirs).norm() / theirs.norm()) < 1e-4


def test_records_hold_what_plain_transformers_computes(folder: Path, target: LocalTarget) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    written = target.write(PREFIXES, 90, 0.0, seeded())
    for prefix, record in zip(PREFIXES, written.records, strict=True):
        assert record.token_ids[: len(prefix)].tolist() == prefix
        assert record.answer_mask.tolist() == [False] * len(prefix) + [True] * 90
        with torch.no_grad():
            outcome = plain(record.token_ids.unsqueeze(0), output_hidden_states=True)
        expected = torch.cat([outcome.hidden_states[layer + 1][0] for layer in LAYERS], dim=-1)
        assert close(record.features, expected)
        assert close(record.last_hidden, outcome.hidden_states[-1][0])
        likeliest = outcome.logits[0, len(prefix) - 1 : -1].argmax(dim=-1)
        assert torch.equal(likeliest, record.token_ids[record.answer_mask])


def test_rows_that_end_leave_the_others_alone(target: LocalTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = target.write(PREFIXES, 12, 0.0, seeded()).records
    first = whole[0].token_ids[whole[0].answer_mask].tolist()
    # Whatever the first row writes third now ends a turn.
    monkeypatch.setattr(target, "_ends", torch.tensor([first[2]]))
    for live_share in (0.0, 1.0):
        monkeypatch.setattr(local_target, "LIVE_SHARE", live_share)
        written = target.write(PREFIXES, 12, 0.0, seeded())
        for ended, record, alone in zip(written.ended, written.records, whole, strict=True):
            answer = alone.token_ids[alone.answer_mask].tolist()
            end = answer.index(first[2]) + 1 if first[2] in answer else len(answer)
            assert ended == (first[2] in answer)
            assert record.token_ids[record.answer_mask].tolist() == answer[:end]
            assert len(record.features) == len(record.last_hidden) == len(record.token_ids)
            assert close(record.features, alone.features[: len(record.token_ids)])


def test_sampling_follows_the_seed_and_the_temperature(target: LocalTarget) -> None:
    def texts(temperature: float, seed: int) -> list[list[int]]:
        return [record.token_ids.tolist() for record in target.write(PREFIXES, 8, temperature, seeded(seed)).records]

    assert texts(1.0, 3) == texts(1.0, 3)
    assert texts(1.0, 3) != texts(1.0, 4)
    assert texts(0.0, 3) == texts(0.0, 4) == texts(1e-4, 5)


def test_sampled_tokens_have_the_models_distribution(target: LocalTarget) -> None:
    records = target.write([[8, 9]] * 4000, 1, 1.0, seeded(1)).records
    drawn = torch.bincount(torch.tensor([int(record.token_ids[-1]) for record in records]), minlength=512) / 4000
    expected = target._model.lm_head(records[0].last_hidden[1]).detach().softmax(dim=-1)
    # A total variation of 4000 draws over these few likely tokens; a temperature of 0.8 or 1.25 gives twice that.
    assert 0.5 * float((drawn - expected).abs().sum()) < 0.06


def test_chat_template_surrounds_prompts_and_open_turns(target: LocalTarget) -> None:
    assert target.chat.decode(target.encode(Prompt(("Hello there",)))).endswith("Hello there\nassistant\n")
    opened = target.chat.decode(target.chat.encode_user_turn("Write a"))
    assert opened.endswith("user\nWrite a")


def test_layers_that_transformers_normalises_are_refused(folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"layers 0 to 2 \(found \[1, 3\]\)"):
        LocalTarget(folder, (1, 3))


def test_answers_are_a_feature_source(target: LocalTarget) -> None:
    spec = target.spec("made", 0.0, 1)
    counts: list[int] = []
    source = answer_prompts(target, [Prompt((text,)) for text in ("long one here", "b", "cc")], spec, 6, counts.append)
    assert sum(counts) == 3
    order = [2, 0]
    read = list(source.read(order))
    assert [len(record.token_ids) for record in read] == [source.lengths_tokens[index] for index in order]
    assert spec.target_sha256 == target.binding.target_sha256
    assert read[0].features.shape[1] == spec.hidden_size * len(LAYERS)


def test_self_written_prompts_are_ended_turns(target: LocalTarget, monkeypatch: pytest.MonkeyPatch) -> None:
    assert self_written(target, 5, "Say", 8, 1.0, 0, lambda n: None) == []  # this model never ends by itself
    printable = target.write([target.chat.encode_user_turn("Say")] * 5, 40, 1.0, seeded())
    tokens = torch.cat([record.token_ids[record.answer_mask][30:] for record in printable.records])
    monkeypatch.setattr(target, "_ends", tokens.unique())
    monkeypatch.setattr("sparktier.drafter.demo.self_prompts.LEAST_CHARS", 1)
    prompts = self_written(target, 5, "Say", 40, 1.0, 0, lambda n: None)
    assert prompts
    assert all(prompt.turns[0].startswith("Say") for prompt in prompts)


@pytest.mark.parametrize(("units", "computes"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_bf16_model_is_computed_in_fp32_where_the_cpu_is_slow_in_bf16(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, units: bool, computes: torch.dtype
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    monkeypatch.setattr(local_target, "has_bfloat16_units", lambda: units)
    target = LocalTarget(tmp_path, LAYERS)
    assert target._model.dtype == computes
    # What is kept takes the room that was planned for, and fits the engine's features.
    [record] = target.write(PREFIXES[:1], 3, 0.0, seeded()).records
    assert record.features.dtype == record.last_hidden.dtype == torch.bfloat16
    assert target.spec("set", 0.0, 0).dtype == "bfloat16"
