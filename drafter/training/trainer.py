"""The training loop of one rank: reads packed rows; writes metrics and checkpoints.

Everything that varies by step comes from schedule.py, so a killed and resumed run, and a run on more ranks, follow the
same curve. Master weights are the model's own fp32 parameters; bf16 is autocast. Recipe: DeepSpec
`trainer/base_trainer.py`.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparktier.configs.errors import ArtifactError, ConfigError, Problem
from sparktier.drafter.data.features import FeatureSource
from sparktier.drafter.data.packing import FeatureRecord, PackedRow, block_labels, moved, pack, sample_anchors
from sparktier.drafter.data.target import Target
from sparktier.drafter.model.draft_model import BlockOutput, DraftModel
from sparktier.drafter.model.sampled_vocab import VocabSample, sample_vocab
from sparktier.drafter.training.distributed import DistributedContext
from sparktier.drafter.training.losses import LossSums, LossWeights, loss_sums, weight_sum
from sparktier.drafter.training.optimiser import Optimiser
from sparktier.drafter.training.progress import Watcher
from sparktier.drafter.training.schedule import generator, learning_rate_scale, rows_forever, rows_of_steps
from sparktier.drafter.training.train_settings import TrainSettings
from sparktier.drafter.training.training_run import TrainingRun, TrainingState

# Keeps the held-out blocks apart from every training step's.
_HELD_OUT_STREAM = 1 << 40
# Keeps the sample of the vocabulary apart from the draw of anchors.
_COLUMN_STREAM = 1 << 41


class _Pick(NamedTuple):
    """A row of a step, its anchors, and the columns of the vocabulary it is scored on."""

    row: PackedRow
    anchors: Tensor
    sample: VocabSample | None

    def to(self, device: torch.device) -> "_Pick":
        """Return it on `device`."""
        sample = None if self.sample is None else self.sample.to(device)
        return _Pick(self.row.to(device), moved(self.anchors, device), sample)


class Trainer:
    """Model, optimiser and data of one rank. `step` counts finished steps."""

    def __init__(
        self,
        settings: TrainSettings,
        model: DraftModel,
        target: Target,
        source: FeatureSource,
        context: DistributedContext,
    ) -> None:
        self.settings, self.context, self.source = settings, context, source
        self.model = model.to(context.device)
        self.binding = target.binding
        self.step = self._saved_step = 0
        self._weights = LossWeights(
            settings.cross_entropy, settings.total_variation, settings.confidence, settings.decay_rows
        )
        self._own = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._optimiser = Optimiser(self._own, settings.weight_decay)
        self._parallel: nn.Module = DistributedDataParallel(self.model) if context.world > 1 else self.model
        # Drawn at random: a source may be sorted by length or kind.
        count, stream = len(source.lengths_tokens), generator(settings.seed, _HELD_OUT_STREAM)
        drawn = torch.randperm(count, generator=stream).tolist()
        self._held_out = sorted(drawn[: settings.held_out_sequences])
        self._training = sorted(drawn[settings.held_out_sequences :])

    def restore(self, state: TrainingState) -> None:
        """Take over weights and moments of a checkpoint.

        Raises:
            ArtifactError: it is of another model.
        """
        wanted = {f"weight.{name}" for name in self._own} | self._optimiser.moment_names
        if wanted != state.tensors.keys():
            raise ArtifactError(f"{self.settings.run_dir}: its checkpoint is of another draft. Use a new run_dir.")
        with torch.no_grad():
            for name, parameter in self._own.items():
                parameter.copy_(state.tensors[f"weight.{name}"])
        self._optimiser.restore(state.tensors, state.step)
        self.step = self._saved_step = state.step

    def state(self) -> TrainingState:
        """Return what `restore` takes."""
        tensors = {f"weight.{name}": value.detach() for name, value in self._own.items()}
        tensors |= self._optimiser.moments()
        return TrainingState(self.step, {name: value.contiguous().cpu() for name, value in tensors.items()})

    def run(self, run: TrainingRun, progress: Watcher) -> None:
        """Train to the last step, logging, evaluating and saving on the way (files: rank 0).

        A checkpoint is saved only if its weights and its loss on a held-out sequence are finite.

        Raises:
            ConfigError: loss, gradients or weights are no longer finite.
            ArtifactError: the features are not finite, or a file can't be written.
        """
        settings, lead = self.settings, self.context.rank == 0
        for rows, last in self._batches():
            started_s = time.monotonic()
            figures = self._train_step(rows)
            figures["tokens_per_s"] = figures.pop("tokens") / (time.monotonic() - started_s)
            saves = last or self.step % settings.checkpoint_every_steps == 0
            if saves:
                self._require_finite_weights()
            if self.step % settings.evaluate_every_steps == 0 or last:
                figures |= self.held_out(self._held_out)
            elif saves:
                self.held_out(self._held_out[:1])
            if lead:
                run.log({"step": self.step, **figures})
                progress.update(self.step, figures)
            if saves:
                self._saved_step = self.step
                if lead:
                    run.save(self.state(), self.model, self.binding)

    def _batches(self) -> Iterator[tuple[list[PackedRow], bool]]:
        """Yield this rank's packed rows of each remaining step, on the host, and whether the step is the last."""
        settings = self.settings
        rows = rows_forever(self.source.lengths_tokens, self._training, settings.row_tokens, settings.seed)
        steps = rows_of_steps(rows, self.step, settings.steps, settings.rows_per_step)
        mine = [step[self.context.rank :: self.context.world] for step in steps]
        records = self.source.read([index for step in mine for row in step for index in row])
        for place, step in enumerate(mine):
            yield [pack(_take(records, row)) for row in step], place == len(mine) - 1

    def _train_step(self, rows: Sequence[PackedRow]) -> dict[str, float]:
        # Numbered over all ranks, so that the blocks of a step don't depend on how many ranks there are.
        numbers = range(self.context.rank, len(rows) * self.context.world, self.context.world)
        # All that depends on the rows' content is decided on the host, so that it never waits for a device.
        picks = [self._picked(row, number) for row, number in zip(rows, numbers, strict=True)]
        gamma, decay = self.model.config.block_size, self.settings.decay_rows
        own = sum(weight_sum(block_labels(pick.row, pick.anchors, gamma), decay) for pick in picks)
        denominator = float(self.context.total(torch.tensor(own, dtype=torch.float64)))
        figures = torch.zeros(6, dtype=torch.float64, device=self.context.device)
        for index, pick in enumerate(picks):
            with self._synchronised(index == len(picks) - 1):
                figures += self._pass(pick.to(self.context.device), denominator)
        tokens = figures.new_full((1,), sum(len(row.token_ids) for row in rows))
        means = _means(self.context.total(torch.cat((figures, tokens))), denominator)
        norm = float(nn.utils.clip_grad_norm_(self._own.values(), self.settings.grad_clip))
        if not (math.isfinite(means["loss"]) and math.isfinite(norm)):
            for row in rows:
                self._require_finite_features(row)
            raise self._diverged(f"loss {means['loss']:g} and a gradient of size {norm:g}", self.step + 1)
        return means | {"learning_rate": self._update()}

    def _picked(self, row: PackedRow, number: int) -> _Pick:
        return _Pick(row, self._anchors(row, self.step, number), self._vocab_sample(row, number))

    def _pass(self, pick: _Pick, denominator: float) -> Tensor:
        """Run one row forward and backward, and return its figures on the device. The host waits for nothing."""
        output = self._forward(self._parallel, pick.row, pick.anchors, pick.sample)
        sums = loss_sums(output, self.settings.decay_rows, self.settings.soft_labels)
        # DistributedDataParallel averages over ranks; the losses are sums.
        torch.autograd.backward(sums.total(self._weights) * (self.context.world / denominator))
        return _figures(sums, self._weights)

    def _update(self) -> float:
        settings = self.settings
        rate = settings.learning_rate * learning_rate_scale(self.step, settings.steps, settings.warmup_frac)
        self._optimiser.step(rate)
        self.step += 1
        return rate

    def _require_finite_features(self, row: PackedRow) -> None:
        if not (row.features.isfinite().all() and row.last_hidden.isfinite().all()):
            raise ArtifactError(
                f"features {self.source.spec.dataset}: must be finite (found NaN or infinity in a sequence of step "
                f"{self.step + 1}). Make the features again."
            )

    def _require_finite_weights(self) -> None:
        broken = [name for name, value in self._own.items() if not value.isfinite().all()]
        if broken:
            raise self._diverged(f"weights of {broken[0]} that are not finite", self.step)

    def _diverged(self, found: str, step: int) -> ConfigError:
        rule = "must be low enough for loss and weights to stay finite"
        kept = f"the checkpoint of step {self._saved_step}" if self._saved_step else "no checkpoint, as none was due"
        cure = f"Lower it, in a new run_dir or with init_from; this run keeps {kept}."
        return ConfigError([Problem("learning_rate", rule, f"{found} in step {step}", cure)])

    @torch.no_grad()
    def held_out(self, sequences: Sequence[int]) -> dict[str, float]:
        """Return loss and accepted lengths of held-out `sequences`: greedy, and expected under ratio rejection."""
        mine = sequences[self.context.rank :: self.context.world]
        decay, gamma = self.settings.decay_rows, self.model.config.block_size
        figures = torch.zeros(9, dtype=torch.float64)
        for index, record in zip(mine, self.source.read(mine), strict=True):
            row = pack([record])
            pick = _Pick(row, self._anchors(row, _HELD_OUT_STREAM, index), None)
            weight = weight_sum(block_labels(row, pick.anchors, gamma), decay)
            here = pick.to(self.context.device)
            output = self._forward(self.model, here.row, here.anchors)
            sums = loss_sums(output, decay, self.settings.soft_labels)
            share = torch.tensor([0.0, _greedy_length(output), weight])
            own = _figures(sums, self._weights).cpu()
            if not own.isfinite().all():
                self._require_finite_features(row)
            figures += torch.cat((own, share.double()))
        total = self.context.total(figures)
        means = _means(total[:7], float(total[8]))
        if not math.isfinite(means["loss"]):
            raise self._diverged(f"a held-out loss of {means['loss']:g}", self.step)
        return {
            "held_out_loss": means["loss"],
            "held_out_length": means["accepted_length"],
            "held_out_greedy_length": float(total[7] / total[5]),
        }

    def _anchors(self, row: PackedRow, stream: int, number: int) -> Tensor:
        return sample_anchors(row, self.settings.anchors_per_row, generator(self.settings.seed, stream, number))

    def _vocab_sample(self, row: PackedRow, number: int) -> VocabSample | None:
        count, vocab_size = self.settings.loss_columns, self.model.config.vocab_size
        if not 0 < count < vocab_size:
            return None
        draw = generator(self.settings.seed, _COLUMN_STREAM + self.step, number)
        return sample_vocab(count, vocab_size, row.token_ids, draw)

    def _forward(
        self, module: nn.Module, row: PackedRow, anchors: Tensor, sample: VocabSample | None = None
    ) -> BlockOutput:
        with torch.autocast(self.context.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            output: BlockOutput = module(row, anchors, sample)
        return output

    def _synchronised(self, last: bool) -> AbstractContextManager[None]:
        if last or not isinstance(self._parallel, DistributedDataParallel):
            return nullcontext()
        return self._parallel.no_sync()


def _take(records: Iterator[FeatureRecord], row: Sequence[int]) -> list[FeatureRecord]:
    return [next(records) for _ in row]


def _figures(sums: LossSums, weights: LossWeights) -> Tensor:
    values = (sums.total(weights), sums.cross_entropy, sums.total_variation, sums.confidence, sums.length, sums.blocks)
    return torch.stack([value.detach().double() for value in values])


def _means(figures: Tensor, denominator: float) -> dict[str, float]:
    loss, entropy, variation, confidence, length, blocks, tokens = figures.tolist()
    return {
        "loss": loss / denominator,
        "cross_entropy": entropy / denominator,
        "total_variation": variation / denominator,
        "confidence": confidence / denominator,
        "accepted_length": length / blocks,
        "tokens": tokens,
    }


def _greedy_length(output: BlockOutput) -> float:
    """Sum, over blocks, one bonus token and the leading rows whose likeliest token is the target's."""
    right = (output.draft_logits.argmax(dim=-1) == output.tokens) & output.valid
    return float(right.int().cumprod(dim=-1).sum() + output.valid[:, 0].sum())
