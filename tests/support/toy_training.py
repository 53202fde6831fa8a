"""A made-up target whose next token is a function of the last one, its features on disk, and a run that learns it.

Run as a program it trains: `python -m support.toy_training FOLDER STEPS [SETTING=JSON ...]`.
"""

import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save_file

from sparktier.drafter.data.feature_store import FeatureStore, FeatureWriter, Manifest
from sparktier.drafter.data.features import FeatureSpec
from sparktier.drafter.data.packing import FeatureRecord
from sparktier.drafter.data.target import read_target
from sparktier.drafter.training.distributed import init_distributed
from sparktier.drafter.training.train import train
from sparktier.drafter.training.train_settings import TrainSettings

VOCAB, HIDDEN, LAYERS = 64, 32, 3
SHAPE = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 32,
    "block_size": 4,
    "mask_token_id": 63,
    "markov_rank": 16,
}


def successor(token: int) -> int:
    """Return the toy target's greedy next token."""
    return (token * 5 + 3) % 61


def write_world(folder: Path, sequences: int = 48, seed: int = 0, answers: int = 0) -> None:
    """Write `folder/target` (tables only), `folder/store` (features of greedy answers) and `answers` others beside."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(VOCAB, HIDDEN, generator=generator)
    head = torch.nn.functional.normalize(torch.randn(VOCAB, HIDDEN, generator=generator), dim=1)
    (folder / "target").mkdir(parents=True)
    save_file({"model.embed_tokens.weight": embedding, "lm_head.weight": head}, folder / "target" / "model.safetensors")
    (folder / "target" / "config.json").write_text(json.dumps({"num_hidden_layers": LAYERS}))
    stores = {"store": sequences} | ({"answers": answers} if answers else {})
    records = {name: [_record(embedding, head, generator) for _ in range(count)] for name, count in stores.items()}
    binding = read_target(folder / "target").binding
    spec = FeatureSpec(
        target_layer_ids=(0, 2),
        hidden_size=HIDDEN,
        dtype="float32",
        temperature=0.0,
        dataset="toy",
        target_sha256=binding.target_sha256,
    )
    for name, written in records.items():
        lengths = tuple(len(record.token_ids) for record in written)
        manifest = Manifest(spec=spec, lengths_tokens=lengths, sequences_per_shard=8)
        writer = FeatureWriter(folder / name, manifest, free_bytes=10**12)
        for record in written:
            writer.append(record)


def _record(embedding: torch.Tensor, head: torch.Tensor, generator: torch.Generator) -> FeatureRecord:
    length = int(torch.randint(12, 24, (1,), generator=generator))
    tokens = [int(torch.randint(0, 61, (1,), generator=generator))]
    while len(tokens) < length:
        tokens.append(successor(tokens[-1]))
    noise = torch.randn(length, HIDDEN, generator=generator)
    return FeatureRecord(
        token_ids=torch.tensor(tokens),
        answer_mask=torch.arange(length) >= 3,
        features=torch.cat((embedding[torch.tensor(tokens)], noise), dim=1),
        last_hidden=20.0 * head[torch.tensor([successor(token) for token in tokens])],
    )


def toy_settings(folder: Path, steps: int, **changes: object) -> TrainSettings:
    """Return a run of seconds."""
    fields: dict[str, object] = {
        "target": folder / "target",
        "run_dir": folder / "run",
        "draft": SHAPE,
        "steps": steps,
        "row_tokens": 64,
        "rows_per_step": 2,
        "anchors_per_row": 16,
        "learning_rate": 2e-2,
        "precision": "fp32",
        "held_out_sequences": 4,
        "evaluate_every_steps": 5,
        "checkpoint_every_steps": 4,
    }
    return TrainSettings.model_validate(fields | changes)


def curve(run_dir: Path) -> list[dict[str, float]]:
    """Return metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "tokens_per_s"} for row in rows]


def main() -> None:
    """Train in the folder that the command line names."""
    torch.set_num_threads(1)
    folder, steps = Path(sys.argv[1]), int(sys.argv[2])
    changes = {key: json.loads(value) for key, value in (part.split("=", 1) for part in sys.argv[3:])}
    with init_distributed() as context:
        settings = toy_settings(folder, steps, **changes)
        train(settings, FeatureStore(folder / "store"), context, Console(stderr=True), {})


if __name__ == "__main__":
    main()
