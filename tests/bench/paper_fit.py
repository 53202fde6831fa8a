"""Step times of DeepSeek-V4 on a GPU: fitted to the DSpark paper's MTP-1 lines, and by AISimulate's operator times.

`fit` reads the paper's digitised figures (a JSON that is not part of the project) and writes the points that it used
beside the tables, so that the tables can be checked without it. Nothing here looks at a line of DSpark.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from sparktier.configs.files import sha256_of, write_json
from sparktier.configs.step_times import REFERENCE_TABLES, StepTimeTable, write_table

PAPER = Path(__file__).resolve().parents[2] / "docs" / "measurements" / "paper"
POINTS = PAPER / "mtp1.json"
FIT = PAPER / "fit.json"
MODELS = {"flash": "DeepSeek-V4-Flash", "pro": "DeepSeek-V4-Pro"}
DEGREE = {"flash": 1, "pro": 2}
FROM_REQUESTS, UP_TO_REQUESTS = 10.0, 345.0
TAU1 = 1.85
"""Accepted length of MTP-1, drafted token and the one that every step yields; the paper doesn't tell it."""
# DSpark's drafter has three layers where MTP-1 has one (the paper, section on production).
DRAFT_LAYERS = 3.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, help="JSON of the paper's figures, read off its vector paths")
    options = parser.parse_args()
    figures = json.loads(options.figures.read_text())
    kept = points(figures)
    write_json(POINTS, kept)
    fits: dict[str, Any] = {}
    for model in MODELS:
        coefficients, worst = fitted(np.array(kept["mtp1_requests_tok_s"][model]), DEGREE[model])
        write_table(REFERENCE_TABLES / f"v4-{model}-fitted.json", fitted_table(model, coefficients, kept))
        write_table(REFERENCE_TABLES / f"v4-{model}-predicted.json", predicted_table(model, kept))
        fits[model] = {"step_ms_over_tau1_by_requests": coefficients.tolist(), "worst_error_frac": round(worst, 5)}
    names = [f"v4-{model}-{kind}.json" for model in MODELS for kind in ("fitted", "predicted")]
    write_json(
        FIT,
        {
            "what": "Step time over tau1, the accepted length of MTP-1, as a polynomial in requests per GPU.",
            "tau1": TAU1,
            "from_requests": FROM_REQUESTS,
            "up_to_requests": UP_TO_REQUESTS,
            "fits": fits,
            "sha256": {POINTS.name: sha256_of(POINTS)} | {name: sha256_of(REFERENCE_TABLES / name) for name in names},
        },
    )
    print(json.dumps(fits, indent=1))
    return 0


def points(figures: dict[str, Any]) -> dict[str, Any]:
    """Return what the tables are made of."""
    throughput = figures["fig8_throughput_[requests_per_gpu,tok_s_gpu]"]
    steps = next(value for name, value in figures.items() if name.startswith("aisimulate_0.13.0"))
    by_tokens = figures["aisimulate_sps_[tokens_per_gpu,ms]"]
    return {
        "source": {
            "mtp1": "DSpark paper, arXiv 2607.05147, figure 8: the lines MTP-1, read off the PDF's vector paths.",
            "aisimulate": "AISimulate 0.13.0 (PyPI, Apache-2.0), measured operator times of SGLang 0.5.14 on B200, "
            "expert parallel 8, attention-DP 8, 4000 prompt tokens; steps by requests per GPU, and without "
            "speculation by tokens per GPU.",
        },
        "mtp1_requests_tok_s": {model: throughput[f"{model}_mtp"] for model in MODELS},
        "aisimulate_mtp1_requests_ms": {model: steps[f"{name} nextn=1"] for model, name in MODELS.items()},
        "aisimulate_tokens_ms": {model: by_tokens[name] for model, name in MODELS.items()},
    }


def fitted(line: np.ndarray, degree: int) -> tuple[np.ndarray, float]:
    """Return the polynomial of step time over tau1 in ms, lowest power first, and its largest error.

    It is fitted to requests over throughput, each point weighted by its own size. `line` is [points, 2].
    """
    kept = line[(line[:, 0] >= FROM_REQUESTS) & (line[:, 0] <= UP_TO_REQUESTS)]
    requests, step_ms = kept[:, 0], 1000.0 * kept[:, 0] / kept[:, 1]
    powers = requests[:, None] ** np.arange(degree + 1)
    found, *_ = np.linalg.lstsq(powers / step_ms[:, None], np.ones(len(kept)), rcond=None)
    return found, float(np.abs(step_ms / (powers @ found) - 1.0).max())


def fitted_table(model: str, coefficients: np.ndarray, kept: dict[str, Any]) -> StepTimeTable:
    """Return the table whose time goes by rows alone, as in the paper's Algorithm 1; MTP-1 verifies two a request."""
    last = min(UP_TO_REQUESTS, kept["mtp1_requests_tok_s"][model][-1][0])
    requests = np.array([0.0, last]) if len(coefficients) == 2 else np.linspace(0.0, last, 9)
    rows = np.round(2 * requests).astype(int)
    powers = (rows[:, None] / 2.0) ** np.arange(1, len(coefficients))
    by_rows = TAU1 * (powers @ coefficients[1:])
    return _table(
        f"one GPU of {MODELS[model]} in production",
        "Fitted to the line MTP-1 of figure 8 of the DSpark paper alone (docs/measurements/paper), with an accepted "
        f"length of {TAU1}: time by rows alone, drafting inside it. Prefill was not published: base and rows "
        "are taken.",
        base_ms=float(TAU1 * coefficients[0]),
        by_rows=list(zip(rows.tolist(), by_rows.tolist(), strict=True)),
        draft_ms={0: [[1, 0.0]], 1: [[1, 0.0]], 2: [[1, 0.0]]},
    )


def predicted_table(model: str, kept: dict[str, Any]) -> StepTimeTable:
    """Return the table by AISimulate: rows by tokens of a step, and drafts by what MTP-1 adds to them."""
    tokens, ms = np.array(kept["aisimulate_tokens_ms"][model]).T
    mtp = np.array(kept["aisimulate_mtp1_requests_ms"][model])
    # What one layer drafts, as the rest of a step with two rows for each request; noise below zero is none.
    layer = np.maximum.accumulate(np.maximum(mtp[:, 1] - np.interp(2 * mtp[:, 0], tokens, ms), 0.0))
    requests = mtp[:, 0].astype(int).tolist()
    drafts = {
        rung: [[at, round(layers * one, 4)] for at, one in zip(requests, layer, strict=True)]
        for rung, layers in ((1, 1.0), (2, DRAFT_LAYERS))
    }
    return _table(
        f"one B200 of eight under {MODELS[model]}, by AISimulate",
        "AISimulate 0.13.0's measured operator times (docs/measurements/paper): a step by its tokens per GPU; drafts "
        "by what MTP-1 adds, three times that for DSpark's three layers. Nothing is fitted. Prefill: base and rows "
        "are taken.",
        base_ms=float(ms[0]),
        by_rows=[(int(at), round(float(one - ms[0]), 4)) for at, one in zip(tokens, ms, strict=True)],
        draft_ms={0: [[1, 0.0]], **drafts},
    )


def _table(device: str, source: str, *, base_ms: float, by_rows: list[Any], draft_ms: dict[int, Any]) -> StepTimeTable:
    by_rows = [(at, round(ms, 4)) for at, ms in by_rows]
    key = {"model_sha256": None, "draft_sha256": None, "device": device, "dtype": "fp8", "tensor_parallel": 1}
    return StepTimeTable.model_validate(
        {
            "key": {**key, "expert_parallel": 8, "sglang": "0.5.23", "sparktier": "0.1.0"},
            "source": source,
            "base_ms": round(base_ms, 4),
            "per_requests_ms": [[1, 0.0]],
            "per_rows_ms": by_rows,
            "draft_ms": draft_ms,
            "per_context_ms": 0.0,
            "prefill_ms": [(max(1, at), round(base_ms + ms, 4)) for at, ms in by_rows],
            "error_frac_p50": None,
            "error_frac_p90": None,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
