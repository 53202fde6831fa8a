"""Files and settings with which `train`, `evaluate`, `calibrate` and `bench` can't do their work: rows for the table of
`bad_surroundings`."""

import json
import math
import shutil
from collections.abc import Callable, Sequence

import yaml
from safetensors.torch import load_file, save_file

from sparktier.drafter.data.target import read_target
from sparktier.drafter.model.checkpoint import NOTE, save_draft
from support.drafts import loud_model, tiny_config
from support.inputs.bad_surroundings import DEMO, Place, Row
from support.toy_training import SHAPE, write_world

Change = Callable[[Place], object]


def _cut(place: Place, name: str, size_bytes: int) -> None:
    path = place.folder / name
    path.write_bytes(path.read_bytes()[:size_bytes])


def _train(change: Change = lambda place: None, **settings: object) -> Callable[[Place], Sequence[str]]:
    """Return what trains on a small store, once `change` has spoilt something."""

    def make(place: Place) -> Sequence[str]:
        write_world(place.folder, sequences=8)
        run = {
            "target": str(place.folder / "target"), "run_dir": str(place.folder / "run"), "draft": SHAPE, "steps": 4,
            "row_tokens": 64, "rows_per_step": 2, "anchors_per_row": 8, "held_out_sequences": 2, "precision": "fp32",
        }  # fmt: skip
        place.file("run.yaml", yaml.safe_dump(run | settings))
        change(place)
        return ["train", str(place.folder / "run.yaml"), "--features", str(place.folder / "store")]

    return make


def _without_binding(place: Place, **changes: object) -> None:
    """Make the store's manifest say nothing of its target, and something else of its features."""
    path = place.folder / "store" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["spec"] |= {"target_sha256": "", **changes}
    path.write_text(json.dumps(manifest))


def _another_target(place: Place) -> None:
    shutil.rmtree(place.folder / "store")
    write_world(place.folder / "other", sequences=8, seed=1)
    shutil.move(place.folder / "other" / "store", place.folder / "store")


def _remove(place: Place, name: str) -> None:
    (place.folder / name).unlink()


def _stream(url: str, prompt_ids: str) -> Callable[[Place], Sequence[str]]:
    """Return what trains on features that a replica makes of one answer."""

    def make(place: Place) -> Sequence[str]:
        line = f'{{"digest": "a", "prompt_ids": {prompt_ids}, "answer_ids": [1, 2]}}\n'
        answers = place.file("answers.jsonl", line)
        return [*_train()(place)[:2], "--engine", url, "--answers", str(answers)]

    return make


# Training: its settings, its features, its target and its folder.
_TRAINING = [
    Row("infinite learning rate", _train(learning_rate=math.inf), ["learning_rate", "finite number", "found inf"]),
    Row("no steps", _train(steps=0), ["steps", "more than 0", "found 0"]),
    Row("odd heads", _train(draft=SHAPE | {"head_dim": 15}), ["draft.head_dim", "multiple of 2", "found 15"]),
    Row("mask token of nobody", _train(draft=SHAPE | {"mask_token_id": 64}), ["draft.mask_token_id", "0 to 63", "64"]),
    Row("all held out", _train(held_out_sequences=8), ["held_out_sequences", "8 sequences", "Lower it"]),
    Row("learning rate blows up", _train(learning_rate=1e30), ["learning_rate", "in step", "Lower it", "checkpoint"]),
    Row("a cut shard", _train(lambda p: _cut(p, "store/shard-00000.safetensors", 2000)), ["shard-00000", "extract"]),
    Row("an empty shard", _train(lambda p: _cut(p, "store/shard-00000.safetensors", 0)), ["shard-00000", "extract"]),
    Row("no shards", _train(lambda p: _remove(p, "store/shard-00000.safetensors")), ["1 shards", "found 0", "again"]),
    Row("a cut manifest", _train(lambda p: _cut(p, "store/manifest.json", 40)), ["manifest.json", "JSON", "Restore"]),
    Row("a deep manifest", _train(lambda p: p.file("store/manifest.json", "[" * 10**5)), ["manifest.json", "deep"]),
    Row("features of another target", _train(_another_target), ["another target", "train a drafter"]),
    Row("features of another width", _train(lambda p: _without_binding(p, hidden_size=16)), ["width 32", "width 16"]),
    Row("a cut target", _train(lambda p: _cut(p, "target/model.safetensors", 500)), ["model.safetensors", "Restore"]),
    Row("a target of no layers", _train(lambda p: p.file("target/config.json", "{}")), ["num_hidden_layers", "None"]),
    Row("run folder is a file", _train(lambda p: p.file("run", "mine")), ["run.json", "can be written", "File exists"]),
    Row("run folder of others", _train(lambda p: p.file("run/run.json", "{}")), ["run.json", "settings", "new"]),
    Row("no address", _stream("localhost", "[1]"), ["--engine", "http://host:port", "localhost"]),
    Row("answers of no ids", _stream("http://x", "[1e999]"), ["answers.jsonl:1", "token ids", "[inf]"]),
]  # fmt: skip


def _bench(**files: str | bytes) -> Callable[[Place], Sequence[str]]:
    """Return what benchmarks on prompt files with these contents, each in a folder of its own."""

    def make(place: Place) -> Sequence[str]:
        paths = [place.file(f"{folder}/prompts.jsonl", content) for folder, content in files.items()]
        return ["bench", "speculation", DEMO, *(f"--prompts={path}" for path in paths)]

    return make


def _prompts_are_a_folder(place: Place) -> Sequence[str]:
    (place.folder / "prompts.jsonl").mkdir()
    return ["bench", "speculation", DEMO, "--prompts", str(place.folder / "prompts.jsonl")]


_FINE = '{"turns": ["hi"]}\n'
# A benchmark reads its prompts before it deploys for a minute.
_PROMPTS = [
    Row("no prompts", _bench(a="\n\n"), ["prompts.jsonl", "at least one", "found none", "Add one"]),
    Row("two of one name", _bench(a=_FINE, b=_FINE), ["b/prompts.jsonl", "differ in name", "Rename one"]),
    Row("half an emoji", _bench(a=_FINE + '{"turns": ["\\ud83d"]}'), ["prompts.jsonl:2", "\\ud83d", "delete the line"]),
    Row("deep prompts", _bench(a="[" * 10**5), ["prompts.jsonl:1", "nest", "Make lines"]),
    Row("an array of prompts", _bench(a=f"[{_FINE}]"), ["prompts.jsonl:1", "JSON", "Make lines"]),
    Row("prompts in UTF-16", _bench(a=_FINE.encode("utf-16")), ["prompts.jsonl", "UTF-8", "iconv"]),
    Row("prompts are a folder", _prompts_are_a_folder, ["prompts.jsonl", "Is a directory", "Check the path"]),
]


def _drafter(command: Sequence[str], change: Change = lambda place: None) -> Callable[[Place], Sequence[str]]:
    """Return `command` on a small target's drafter and store, once `change` has spoilt something."""

    def make(place: Place) -> Sequence[str]:
        write_world(place.folder, sequences=8)
        size = {"vocab_size": 64, "num_target_layers": 3, "target_layer_ids": (0, 2), "mask_token_id": 63}
        save_draft(
            loud_model(tiny_config(**size)), place.folder / "draft", read_target(place.folder / "target").binding
        )
        change(place)
        config = {
            "model": {"path": str(place.folder / "target")},
            "speculation": {"method": "chain", "draft_path": str(place.folder / "draft")},
        }
        words = {"STORE": str(place.folder / "store"), "FILE": str(place.file("file", "mine"))}
        return [command[0], place.config(yaml.safe_dump(config)), *(words.get(word, word) for word in command[1:])]

    return make


def _config(**changes: object) -> Change:
    def change(place: Place) -> None:
        path = place.folder / "draft" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def _nan_weights(place: Place) -> None:
    path = place.folder / "draft" / "model.safetensors"
    tensors = load_file(path)
    tensors["fc.weight"][0, 0] = math.nan
    save_file(tensors, path)
    (path.parent / NOTE).unlink()


def _one_answer(place: Place) -> None:
    shutil.rmtree(place.folder / "store")
    write_world(place.folder / "one", sequences=1)
    shutil.move(place.folder / "one" / "store", place.folder / "store")
    _without_binding(place)


_STORED = ["evaluate", "--features", "STORE"]
_YARN = {"rope_type": "yarn", "factor": 4.0}
_DRAFTERS = [
    Row("scaled rope", _drafter(_STORED, _config(rope_parameters=_YARN)), ["config.json", "rope_type", "yarn"]),
    Row("nested rope", _drafter(_STORED, _config(rope_parameters={"full_attention": {}})), ["full_attention", "Train"]),
    Row("half a head rotates", _drafter(_STORED, _config(partial_rotary_factor=0.5)), ["partial_rotary_factor", "0.5"]),
    Row("unsaid window", _drafter(_STORED, _config(use_sliding_window=True, layer_types=None)), ["use_sliding_window"]),
    Row("null size", _drafter(_STORED, _config(head_dim=None)), ["head_dim", "found None", "Use a DSpark draft"]),
    Row("nested is text", _drafter(_STORED, _config(dflash_config="x")), ["dflash_config", "must be an object"]),
    Row("a drafter of NaN", _drafter(_STORED, _nan_weights), ["fc.weight", "finite", "earlier checkpoint"]),
    Row("a cut drafter", _drafter(_STORED, lambda p: _cut(p, "draft/model.safetensors", 99)), ["digest", "Restore"]),
    Row("drafter is a file", _drafter([*_STORED, "--draft", "FILE"]), ["a draft's config.json", "Not a directory"]),
    Row("features of other layers", _drafter(_STORED, lambda p: _without_binding(p, target_layer_ids=[0, 1])),
        ["store", "[0, 2]", "found [0, 1]", "for this drafter"]),
    Row("one answer", _drafter(["calibrate", "--features", "STORE"], _one_answer), ["at least 4 answers", "found 1"]),
    Row("output is a file", _drafter(["calibrate", "--features", "STORE", "--out", "FILE"]), ["new or empty folder"]),
    Row("hotter than a request", _drafter([*_STORED, "--temperature", "3"]), ["--temperature", "0.001 to 2", "'3'"]),
    Row("colder than numbers", _drafter([*_STORED, "--temperature", "1e-40"]), ["--temperature", "0.001 to 2"]),
]  # fmt: skip

DRAFTER_ROWS: list[Row] = [*_TRAINING, *_PROMPTS, *_DRAFTERS]
