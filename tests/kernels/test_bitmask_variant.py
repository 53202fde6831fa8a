"""The road not taken for tree masks: a FlashInfer variant that reads ancestor words. It must at least compile.

See docs/decisions/0003-tree-mask-in-flashinfer.md, which says why the product does not use it and when it should.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import flashinfer
import pytest

NVCC = shutil.which("nvcc")

# A row's own bit says that it is no padding; prefix columns ask for that bit, tree columns for their own.
VARIANT = r"""
struct DraftTreeAttention : AttentionVariantBase {
  static constexpr bool use_softmax = true;
  const int32_t* words;
  uint32_t qo_len, kv_len, prefix_len, words_per_row, window_left;
  float sm_scale_log2;

  template <typename Params>
  __device__ __host__ DraftTreeAttention(const Params& params, uint32_t batch_idx, uint8_t*) {
    qo_len = params.get_qo_len(batch_idx);
    kv_len = params.get_kv_len(batch_idx);
    prefix_len = kv_len - qo_len;
    window_left = kv_len;
    words_per_row = uint32_t(params.words_per_row);
    words = params.ancestor_words + uint64_t(batch_idx) * uint32_t(params.rows_per_request) * words_per_row;
    sm_scale_log2 = params.sm_scale * math::log2e;
  }

  REGISTER_LOGITS_MASK(params, batch_idx, qo_idx, kv_idx, qo_head_idx, kv_head_idx, {
    if (qo_idx >= qo_len || kv_idx >= kv_len) return false;
    const uint32_t row = kv_idx < prefix_len ? qo_idx : kv_idx - prefix_len;
    return (words[qo_idx * words_per_row + row / 32] >> (row % 32)) & 1;
  })
};
"""

GENERATE = """
import sys, torch
from flashinfer.jit.attention.modules import gen_customize_batch_prefill_module
gen_customize_batch_prefill_module(
    "fa2", "draft_tree", *[torch.bfloat16] * 3, torch.int32, 128, 128, ["ancestor_words"], ["int32_t"],
    ["sm_scale", "rows_per_request", "words_per_row"], ["double"] * 3, "DraftTreeAttention", sys.argv[1],
)
"""


def generated_kernel(folder: Path) -> Path:
    """The CUDA source that FlashInfer's own generator writes for the variant under MaskMode::kCustom."""
    places = {"FLASHINFER_WORKSPACE_BASE": str(folder), "FLASHINFER_CUDA_ARCH_LIST": "8.0"}
    command = [sys.executable, "-c", GENERATE, VARIANT]
    subprocess.run(command, env={**os.environ, **places}, check=True, capture_output=True, timeout=120)
    return next(folder.rglob("batch_prefill_paged_kernel_mask_2.cu"))


@pytest.mark.prove
@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize("architecture", ["80", "90a", "100a"])
def test_variant_compiles(tmp_path: Path, architecture: str) -> None:
    source = generated_kernel(tmp_path)
    data = Path(flashinfer.__file__).parent / "data"
    toolkit = [f"-I{data / 'cccl' / part}" for part in ("cub", "libcudacxx/include", "thrust")]
    headers = [f"-isystem={data / part}" for part in ("include", "csrc", "cutlass/include")]
    command = [str(NVCC), "-c", str(source), "-o", str(tmp_path / "kernel.o"), "-std=c++17", "-O3", "-Xptxas", "-v"]
    command += ["--expt-relaxed-constexpr", "-static-global-template-stub=false", f"-I{source.parent}"]
    command += [f"-gencode=arch=compute_{architecture},code=sm_{architecture}", *toolkit, *headers]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    assert len(re.findall(r"Used \d+ registers", done.stderr)) >= 6
