"""Our account of FlashInfer's tiles is that of the installed source, and says what captured shapes are worth."""

import importlib.util
import random
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sglang.kernels.ops.speculative.ragged_verify_kernels import PaddedToBucket

from support.oracles.flashinfer_tiles import Heads, Tiles, split

# A rank of Qwen3-30B-A3B on one H100.
HEADS, MULTIPROCESSORS, WIDTH, MOST_USERS = Heads(32, 4), 132, 12, 16
# Requests that SGLang captures graphs for.
CAPTURED_USERS = (1, 2, 4, 8, 12, 16)
# What the three functions use of CUDA and of FlashInfer's headers: a GPU of sm_90.
PROGRAM = """
#include <algorithm>
#include <cstdint>
#include <iostream>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>
#define FLASHINFER_ERROR(message) throw std::runtime_error(message)
#define FLASHINFER_CHECK(condition, ...) if (!(condition)) throw std::runtime_error("check")
enum { cudaDevAttrMaxSharedMemoryPerBlockOptin };
inline void cudaGetDevice(int*) {}
inline void cudaDeviceGetAttribute(int* value, int, int) { *value = 232448; }
inline std::pair<int, int> GetCudaComputeCapability() { return {9, 0}; }
template <typename A, typename B> constexpr A ceil_div(const A x, const B y) { return (x + y - 1) / y; }
FUNCTIONS
int main() {
  int slots, heads, kv_heads, captured, sms, uniform;
  while (std::cin >> slots >> heads >> kv_heads >> captured >> sms >> uniform) {
    std::vector<int32_t> qo(slots + 1, 0), kv(slots + 1, 0);
    for (int i = 0; i < slots; ++i) { int n; std::cin >> n; qo[i + 1] = qo[i] + n; }
    for (int i = 0; i < slots; ++i) { int n; std::cin >> n; kv[i + 1] = kv[i] + n; }
    auto plan = PrefillSplitQOKVIndptr<int32_t>(qo.data(), kv.data(), captured, slots, heads, kv_heads, 128, 1,
                                                2 * sms / kv_heads, true, -1, -1, false, uniform, 128, 2);
    std::vector<int> tiles(slots, 0), chunks(slots, 0);
    auto& request = std::get<5>(plan); auto& tile = std::get<6>(plan); auto& chunk = std::get<7>(plan);
    for (size_t i = 0; i < request.size(); ++i) {
      tiles[request[i]] = std::max(tiles[request[i]], tile[i] + 1);
      chunks[request[i]] = std::max(chunks[request[i]], chunk[i] + 1);
    }
    std::cout << std::get<3>(plan) << " " << std::get<4>(plan) << " " << std::get<2>(plan) << " " << std::get<1>(plan);
    for (int n : tiles) std::cout << " " << n;
    for (int n : chunks) std::cout << " " << n;
    std::cout << std::endl;
  }
}
"""


def upstream() -> str:
    """The three functions as they are installed."""
    package = importlib.util.find_spec("flashinfer")
    assert package is not None
    assert package.origin is not None
    headers = Path(package.origin).parent / "data/include/flashinfer"
    scheduler, utils = (headers / "attention/scheduler.cuh").read_text(), (headers / "utils.cuh").read_text()
    found = [
        re.search(r"inline uint32_t FA2DetermineCtaTileQ\(.*?\n}\n", utils, re.DOTALL),
        re.search(r"inline auto PrefillBinarySearchKVChunkSize\(.*?\n}\n", scheduler, re.DOTALL),
        re.search(r"template <typename IdType>\ninline auto PrefillSplitQOKVIndptr\(.*?\n}\n", scheduler, re.DOTALL),
    ]
    return "\n".join(match.group() for match in found if match)


def random_case(chance: random.Random) -> dict[str, object]:
    heads = Heads(*chance.choice([(32, 4), (16, 2), (8, 8), (64, 8), (40, 8)]))
    uniform = chance.random() < 0.4
    slots = chance.choice([1, 2, 7, 16, 48])
    rows = [chance.choice([1, 6, 12, 24])] * slots if uniform else [chance.randint(0, 24) for _ in range(slots)]
    rows[0] = max(rows[0], 1)
    keys = [chance.choice([0, 1, 100, 1_000, 8_000, 60_000]) + count for count in rows]
    spare = 0 if uniform else chance.choice([0, 5, 100])
    # A graph has a row for each slot at least.
    captured = max(sum(rows) + spare, slots)
    multiprocessors = chance.choice([108, 132, 148])
    return {
        "rows": rows,
        "keys": keys,
        "heads": heads,
        "captured_rows": captured,
        "multiprocessors": multiprocessors,
        "uniform": uniform,
    }


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles FlashInfer's own planner, which needs g++")
def test_tiles_are_those_of_the_installed_planner(tmp_path: Path) -> None:
    source, program = tmp_path / "planner.cpp", tmp_path / "planner"
    source.write_text(PROGRAM.replace("FUNCTIONS", upstream()))
    subprocess.run(["g++", "-std=c++17", "-O0", "-o", str(program), str(source)], check=True, capture_output=True)
    chance = random.Random(0)
    cases = [random_case(chance) for _ in range(500)]
    lines = [_line(**case) for case in cases]
    done = subprocess.run([str(program)], input="\n".join(lines), capture_output=True, text=True, check=True)
    for case, line in zip(cases, done.stdout.splitlines(), strict=True):
        tile_rows, chunk_tokens, grid, blocks, *each = map(int, line.split())
        slots = len(each) // 2
        found = split(**case)
        # A slot without a row has no tile, whatever its keys.
        chunks = tuple(count if tiles else 0 for tiles, count in zip(found.of_request, found.chunks, strict=True))
        assert (found.tile_rows, found.chunk_tokens, found.grid, found.blocks) == (
            tile_rows,
            chunk_tokens,
            grid,
            blocks,
        )
        assert (found.of_request, chunks) == (tuple(each[:slots]), tuple(each[slots:]))


def _line(
    *, rows: list[int], keys: list[int], heads: Heads, captured_rows: int, multiprocessors: int, uniform: bool
) -> str:
    told = rows[0] if uniform else 0
    return " ".join(map(str, (len(rows), *heads, captured_rows, multiprocessors, told, *rows, *keys)))


def bucketed(users: int, rows: int, keys: int) -> tuple[Tiles, list[int]]:
    """A pass in the smallest of SGLang's buckets, which are multiples of the window's width; and each slot's keys."""
    bucket = next(size * WIDTH for size in CAPTURED_USERS if size * WIDTH >= users * rows)
    slots = min(bucket, MOST_USERS)
    live = torch.full((users,), rows, dtype=torch.int32)
    counts = PaddedToBucket.torch(verify_lens=live, graph_num_tokens=bucket, bs=users, padded_bs=slots).tolist()
    lengths = [keys + count if i < users else count for i, count in enumerate(counts)]
    given = {"captured_rows": bucket, "multiprocessors": MULTIPROCESSORS, "uniform": False}
    return split(rows=counts, keys=lengths, heads=HEADS, **given), lengths


def exact(users: int, rows: int, keys: int) -> tuple[Tiles, list[int]]:
    """A pass in a graph of its own for so many requests of so many rows."""
    lengths = [keys + rows] * users
    given = {"captured_rows": users * rows, "multiprocessors": MULTIPROCESSORS, "uniform": True}
    return split(rows=[rows] * users, keys=lengths, heads=HEADS, **given), lengths


@given(users=st.integers(1, MOST_USERS), rows=st.sampled_from([1, 3, 6, 12]), keys=st.integers(1, 100_000))
def test_a_graph_by_requests_and_rows_reads_each_request_s_keys_once(users: int, rows: int, keys: int) -> None:
    tiles, lengths = exact(users, rows, keys)
    assert set(tiles.of_request) == {1}
    assert tiles.read_keys(lengths) == sum(lengths)
    bucket, others = bucketed(users, rows, keys)
    assert bucket.read_keys(others) >= tiles.read_keys(lengths)


@pytest.mark.parametrize(
    ("users", "rows", "in_bucket", "spare_rows"),
    [(1, 1, 1, 11), (1, 6, 3, 6), (1, 12, 6, 0), (4, 1, 1, 8), (4, 12, 1, 0), (16, 1, 1, 8), (16, 12, 1, 0)],
)
def test_what_graphs_by_requests_and_rows_save(users: int, rows: int, in_bucket: int, spare_rows: int) -> None:
    # `off` saves rows, which would have been routed to experts; one user's chains and trees save reads of all keys.
    bucket, lengths = bucketed(users, rows, 8_000)
    assert bucket.of_request[0] == in_bucket
    assert sum(_rows(lengths, users, 8_000)) - users * rows == spare_rows


def _rows(lengths: Sequence[int], users: int, keys: int) -> list[int]:
    return [length - keys if i < users else length for i, length in enumerate(lengths)]
