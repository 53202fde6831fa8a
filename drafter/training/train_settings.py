"""The settings of `sparktier train`: the shape of the draft and the course of the run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sparktier.configs.loading.loader import read_section
from sparktier.configs.settings.section import Section
from sparktier.drafter.model.config import MarkovType, Method

# YAML takes 6e-4 for text, as it has no decimal point.
Real = Annotated[float, Field(strict=False)]
Folder = Annotated[Path, Field(strict=False)]


class DraftShape(Section):
    """The draft to build; sizes that must equal the target's are taken from it. Only `dspark` has the two heads."""

    method: Method = "dspark"
    num_hidden_layers: int = Field(default=5, gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0, multiple_of=2)
    intermediate_size: int = Field(gt=0)
    rms_norm_eps: Real = Field(default=1e-6, gt=0)
    rope_theta: Real = Field(default=10_000.0, gt=0)
    max_position_embeddings: int = Field(default=32_768, gt=0)
    block_size: int = Field(default=7, gt=0)
    mask_token_id: int = Field(ge=0)
    markov_rank: int = Field(default=256, ge=0)
    markov_head_type: MarkovType = "vanilla"
    confidence_head: bool = True

    @model_validator(mode="after")
    def _shape_is_possible(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        if self.method != "dspark" and self.num_hidden_layers > 1:
            raise ValueError(f"num_hidden_layers of method {self.method} must be 1, not {self.num_hidden_layers}")
        if self.method == "mtp" and self.block_size > 1:
            raise ValueError(f"block_size of method mtp must be 1, not {self.block_size}")
        return self


class DataSettings(Section):
    """What a run that makes its own answers learns from.

    Prompts of the train split are answered at the `temperatures` in turn, up to `judged` of the calibrate and of the
    evaluate split at each of them. `engine` is a replica's own address; without one the target runs in this process,
    `batch` prompts side by side, and hands out the states after `target_layer_ids` (default: those of the draft to
    start from, else five spread as DeepSpec does). `thinking` is `enable_thinking` of the chat template.
    """

    prompts: Sequence[Folder] = Field(min_length=1)
    engine: str | None = Field(default=None, pattern="^https?://")
    temperatures: Sequence[Annotated[float, Field(strict=False, ge=0, le=2)]] = Field(default=(0.0, 1.0), min_length=1)
    answer_tokens: int = Field(default=512, ge=2)
    longest_prompt_tokens: int = Field(default=2048, gt=0)
    limit: int | None = Field(default=None, gt=0)
    judged: int = Field(default=128, ge=4)
    batch: int = Field(default=64, gt=0)
    target_layer_ids: Sequence[Annotated[int, Field(ge=0)]] | None = Field(default=None, min_length=1)
    thinking: bool | None = None


class TrainSettings(Section):
    """One run. Fine-tuning is the same with `init_from`, the folder of a draft checkpoint, in place of `draft`.

    A step takes `rows_per_step` packed rows of up to `row_tokens` tokens, spread over all ranks, and draws up to
    `anchors_per_row` blocks in each, scored on about `loss_columns` columns of the vocabulary (0: all). Cross entropy
    is against the target's tokens, with `soft_labels` against its distribution, as EAGLE-3's. Defaults are DeepSpec's
    (`config/dspark`) where it has them. With `data`, answers and features are made first, and the draft is calibrated
    and evaluated in the end.
    """

    target: Folder
    run_dir: Folder
    draft: DraftShape | None = None
    init_from: Folder | None = None
    data: DataSettings | None = None
    seed: int = 42
    steps: int = Field(gt=0)
    row_tokens: int = Field(default=4096, gt=0)
    rows_per_step: int = Field(default=512, gt=0)
    anchors_per_row: int = Field(default=512, gt=0)
    learning_rate: Real = Field(default=6e-4, gt=0)
    warmup_frac: Real = Field(default=0.04, ge=0, le=1)
    weight_decay: Real = Field(default=0.0, ge=0)
    grad_clip: Real = Field(default=1.0, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    cross_entropy: Real = Field(default=0.1, ge=0)
    total_variation: Real = Field(default=0.9, ge=0)
    confidence: Real = Field(default=1.0, ge=0)
    decay_rows: Real = Field(default=4.0, gt=0)
    soft_labels: bool = False
    loss_columns: int = Field(default=0, ge=0)
    held_out_sequences: int = Field(default=64, gt=0)
    evaluate_every_steps: int = Field(default=500, gt=0)
    checkpoint_every_steps: int = Field(default=500, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0)


def load_train_settings(path: Path) -> TrainSettings:
    """Read a run's settings from a YAML file.

    Raises:
        ConfigError: one or more rules are broken; it lists all of them.
    """
    return read_section(path, TrainSettings)
