"""Training features from a running, sharded engine are those of a plain forward pass, and a drafter trains on them."""

import itertools
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM

from sparktier.configs.errors import ArtifactError, ReplicaError
from sparktier.drafter.data.answers import Answer, read_answers
from sparktier.drafter.data.feature_store import FeatureStore, FeatureWriter, Manifest
from sparktier.drafter.data.features import FeatureSource
from sparktier.drafter.data.packing import FeatureRecord
from sparktier.drafter.data.prompts import Prompt, write_prompts
from sparktier.drafter.training.distributed import DistributedContext
from sparktier.drafter.training.train import train
from sparktier.serving.cli.main import main
from sparktier.serving.clients.replica_keys import KEYS_FILE_ENV
from sparktier.serving.demo_model import ensure_demo_model
from sparktier.serving.drafting.feature_client import EngineFeatures, engine_facts
from support import replica_http
from support.deployment import Deployment, deployed, wait_until
from support.generation import Tokens, generate_all, random_prompts, set_plan
from support.oracles.plain_forward import PlainForward, assert_same_features
from support.toy_training import SHAPE, curve, toy_settings

pytestmark = pytest.mark.engine
LAYERS = (0, 2)
CHUNK = 64
CHAIN, TREE = 2, 3
PATH = "/sparktier/features"


@pytest.fixture(scope="module")
def plain(tiny: Path) -> PlainForward:
    return PlainForward(tiny)


def answers(sequences: Sequence[Tokens]) -> list[Answer]:
    """Sequences whose first third was the prompt."""
    return [Answer("", tuple(tokens[: len(tokens) // 3]), tuple(tokens[len(tokens) // 3 :])) for tokens in sequences]


def engine_features(url: str, asked: Sequence[Answer], ahead: int = 2) -> EngineFeatures:
    return EngineFeatures(url, asked, ahead, key=replica_http.key_of(url))


def made(url: str, sequences: Sequence[Tokens], *, ahead: int = 4) -> list[FeatureRecord]:
    return list(engine_features(url, answers(sequences), ahead).produce(iter(range(len(sequences)))))


def assert_records(
    records: Sequence[FeatureRecord], sequences: Sequence[Tokens], plain: PlainForward, layers: Sequence[int] = LAYERS
) -> None:
    for record, tokens in zip(records, sequences, strict=True):
        assert record.token_ids.tolist() == tokens
        assert record.answer_mask.tolist() == [place >= len(tokens) // 3 for place in range(len(tokens))]
        assert_same_features((record.features, record.last_hidden), plain(tokens, layers))


def test_features_are_those_of_a_plain_forward(sharded: Deployment, plain: PlainForward) -> None:
    sequences = random_prompts(12, seed=1, longest=500)
    assert max(map(len, sequences)) > 5 * CHUNK, "some take many chunks"
    records = made(sharded.replica_url(), sequences)
    assert_records(records, sequences, plain)
    for wrong in ((1, 2), (0, 1), (2, 0)):
        with pytest.raises(AssertionError, match="not close"):
            assert_records(records, sequences, plain, wrong)


def test_no_position_comes_from_the_prefix_cache(sharded: Deployment, plain: PlainForward) -> None:
    [tokens] = random_prompts(1, seed=2, longest=400)
    url = sharded.replica_url()
    generate_all(url, [tokens], tokens=4, at_once=1)
    [again] = generate_all(url, [tokens], tokens=4, at_once=1)
    assert again.meta["cached_tokens"] > 0, "what follows has a prefix to be found"
    sequences = [tokens, tokens, [*tokens, 7, 8, 9]]
    assert_records(made(url, sequences), sequences, plain)


def test_users_are_answered_alike_meanwhile(sharded: Deployment, plain: PlainForward) -> None:
    prompts, sequences = random_prompts(6, seed=3), random_prompts(20, seed=4, longest=400)
    url = sharded.replica_url()
    alone = generate_all(url, prompts, tokens=40, at_once=1)
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(made, url, sequences)
        beside = generate_all(url, prompts, tokens=40, at_once=6)
    assert [answer.tokens for answer in beside] == [answer.tokens for answer in alone]
    assert_records(busy.result(), sequences, plain)


def test_a_drafting_engine_hands_out_the_same(drafting: Deployment, predictable: Path) -> None:
    sequences = random_prompts(8, seed=5, longest=400)
    assert max(map(len, sequences)) > 256, "some take several chunks"
    url = drafting.replica_url()
    for rung in (CHAIN, TREE):
        assert set_plan(url, {"sparktier_rung": rung})
        with ThreadPoolExecutor(1) as pool:
            users = pool.submit(generate_all, url, random_prompts(8, seed=6), tokens=60, at_once=4)
            assert_records(made(url, sequences), sequences, PlainForward(predictable))
            assert all(answer.meta["spec_verify_ct"] > 0 for answer in users.result())


@pytest.mark.prove
def test_features_of_the_demo_model(tmp_path: Path) -> None:
    model = ensure_demo_model(progress=print)
    layers = [1, 12, 24]
    wide = {"model.dtype": "float32", "training.target_layer_ids": layers, "replicas.chunked_prefill_tokens": CHUNK}
    sequences = [[token * 50 + 3 for token in tokens] for tokens in random_prompts(4, seed=7, longest=200)]
    with deployed(model, tmp_path / "output", **wide) as demo:
        records = made(demo.replica_url(), sequences)
    assert_records(records, sequences, PlainForward(model), layers)


BAD_BODIES: dict[str, Any] = {
    "no JSON": b"{",
    "no object": [1, 2],
    "no ids": {"text": "hello"},
    "no list": {"token_ids": "hello"},
    "none": {"token_ids": []},
    "too many": {"token_ids": [1] * 512},
    "not in the vocabulary": {"token_ids": [1, 512]},
    "negative": {"token_ids": [-1]},
    "a fraction": {"token_ids": [1.0]},
    "a truth": {"token_ids": [True]},
    "null": {"token_ids": [1, None]},
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_bad_input_is_one_clear_error(sharded: Deployment, name: str) -> None:
    body = BAD_BODIES[name]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = replica_http.post(sharded.replica_url() + PATH, content=content, timeout=30.0)
    assert answer.status_code == 400
    message = answer.json()["error"]
    assert message.startswith("token_ids: must be a list of 1 to 511 token ids from 0 to 511 (found ")
    assert "\n" not in message


def test_what_doesn_t_fit_is_refused_before_any_work(sharded: Deployment) -> None:
    long = engine_features(sharded.replica_url(), answers([[5] * 512]))
    with pytest.raises(ArtifactError, match="takes up to 511 tokens"):
        long.require_fit(engine_facts(long.url, key=long.key))
    with pytest.raises(ReplicaError, match="found 512 of them"):
        list(long.produce(iter([0])))


def test_clients_can_t_reach_it(sharded: Deployment) -> None:
    for send in (httpx.get, httpx.post):
        assert send(sharded.url + PATH, timeout=30.0).status_code == 404
    with pytest.raises(ReplicaError, match="hand out features"):
        engine_facts(sharded.url, key="any")
    with pytest.raises(ReplicaError, match=r"the replica must know the admin key .*SPARKTIER_KEYS_FILE"):
        engine_facts(sharded.replica_url(), key=sharded.keys.requests)


def test_it_is_not_there_where_it_is_not_configured(pair: Deployment) -> None:
    assert replica_http.get(pair.replica_url() + PATH, timeout=30.0).status_code == 404


def test_a_trainer_that_goes_away_ends_its_work(sharded: Deployment, plain: PlainForward) -> None:
    sequences = random_prompts(64, seed=8, longest=500)
    url = sharded.replica_url()
    for _ in range(3):
        reading = engine_features(url, answers(sequences), ahead=40).produce(iter(range(64)))
        next(reading)
        reading.close()
    wait_until(lambda: sharded.running_requests() == 0, timeout_s=10, what=lambda: "an idle engine")
    # Both slots are free again, or this would wait for ever.
    assert_records(made(url, sequences[:4]), sequences[:4], plain)


@pytest.fixture(scope="module")
def corpus(sharded: Deployment) -> EngineFeatures:
    """The target's own greedy answers."""
    prompts = random_prompts(40, seed=9, longest=24)
    given = generate_all(sharded.replica_url(), prompts, tokens=24, at_once=8)
    found = [Answer("", tuple(prompt), tuple(answer.tokens)) for prompt, answer in zip(prompts, given, strict=True)]
    return engine_features(sharded.replica_url(), found)


def filled(corpus: EngineFeatures, folder: Path) -> FeatureStore:
    """A cache, whose filling broke once in the middle."""
    spec = engine_facts(corpus.url, key=corpus.key).spec(dataset="test", temperature=0.0)
    manifest = Manifest(spec=spec, lengths_tokens=corpus.lengths_tokens, sequences_per_shard=4)
    first = FeatureWriter(folder, manifest, free_bytes=10**9)
    for record in itertools.islice(corpus.produce(iter(range(40))), 18):
        first.append(record)
    second = FeatureWriter(folder, manifest, free_bytes=10**9)
    assert second.next_index == 16
    corpus.fill(second)
    return FeatureStore(folder)


def trained(tiny: Path, folder: Path, source: FeatureSource) -> list[dict[str, float]]:
    torch.set_num_threads(1)
    settings = toy_settings(folder, 12, target=tiny, run_dir=folder, draft={**SHAPE, "mask_token_id": 4})
    train(settings, source, DistributedContext(0, 1, torch.device("cpu")), Console(stderr=True, quiet=True), {})
    return curve(folder)


def test_training_from_the_engine_follows_training_from_a_cache(
    corpus: EngineFeatures, tiny: Path, tmp_path: Path
) -> None:
    store = filled(corpus, tmp_path / "store")
    cached = trained(tiny, tmp_path / "cached", store)
    streamed = trained(tiny, tmp_path / "streamed", corpus.stream(store.spec, in_flight=2))
    assert len(cached) == len(streamed) > 10
    for one, other in zip(cached, streamed, strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)
    # What streaming writes is the run itself: no scratch grows with the features.
    assert disk_bytes(tmp_path / "streamed") < 1.01 * disk_bytes(tmp_path / "cached")


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_one_command_makes_a_drafter_on_a_running_engine(
    drafting: Deployment, predictable: Path, bigrams: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers and features come from the replica; what it answered greedily is what plain transformers would have."""
    write_prompts(tmp_path / "asked.jsonl", [Prompt((f"Question {number}, please.",)) for number in range(120)])
    data = {"prompts": [str(tmp_path / "asked.jsonl")], "answer_tokens": 24, "limit": 12, "judged": 6}
    run = {
        "target": str(predictable), "run_dir": str(tmp_path / "run"), "data": data, "steps": 3, "row_tokens": 128,
        "rows_per_step": 2, "anchors_per_row": 8, "held_out_sequences": 2, "precision": "fp32", "learning_rate": 1e-5,
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    monkeypatch.setenv(KEYS_FILE_ENV, str(drafting.keys_file))
    command = ["train", str(tmp_path / "run.yaml"), "--start", str(bigrams), "--engine", drafting.replica_url()]
    assert main(command) == 0
    fits = json.loads((tmp_path / "run/draft/children.json").read_text())["fits"]
    assert [fit["temperature_class"] for fit in fits] == ["greedy", "warm"]
    rows = json.loads((tmp_path / "run/evaluation.json").read_text())["rows"]
    assert [(row["temperature"], row["answers"]) for row in rows] == [(0.0, 5), (1.0, 5)]
    greedy, sampled = (row["accepted_length"] for row in rows)
    assert greedy > 1.2
    assert sampled > 1.0
    plain = AutoModelForCausalLM.from_pretrained(predictable, dtype=torch.float32)
    asked = read_answers(tmp_path / "run/answers/evaluate-T0.jsonl")[0]
    found = plain.generate(torch.tensor([asked.prompt_ids]), max_new_tokens=8, do_sample=False)[0]
    assert tuple(found.tolist()) == (*asked.prompt_ids, *asked.answer_ids[:8])
    # Nothing is asked twice.
    written = {path: path.read_bytes() for path in (tmp_path / "run/answers").iterdir()}
    assert main(command) == 0
    assert {path: path.read_bytes() for path in (tmp_path / "run/answers").iterdir()} == written
