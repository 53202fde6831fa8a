"""How FlashInfer splits a verify pass under CUDA graphs into tiles: what its plan decides, without a GPU.

FlashInfer 0.7.2's FA2 prefill, `include/flashinfer/attention/scheduler.cuh`: PrefillSplitQOKVIndptr and
PrefillBinarySearchKVChunkSize, and FA2DetermineCtaTileQ of `utils.cuh`, for pages of one token, no window, and heads
of at most 128 numbers, on Ampere and later. A mask changes nothing of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

_LEAST_CHUNK_TOKENS = 128
_BLOCKS_OF_A_MULTIPROCESSOR = 2


class Heads(NamedTuple):
    """Of a rank: query heads, and those of keys and values that they share."""

    query: int
    key_value: int

    @property
    def group(self) -> int:
        """Query heads that share a key; a request's query rows are packed with them."""
        return self.query // self.key_value


class Tiles(NamedTuple):
    """A pass as FlashInfer runs it, for each head of keys.

    tile_rows: packed rows of a tile. of_request: tiles over a request's rows, each of which reads all keys of the
    request. chunks: parts that a request's keys are cut into. grid: blocks that are launched, idle ones among them.
    """

    tile_rows: int
    of_request: tuple[int, ...]
    chunk_tokens: int
    chunks: tuple[int, ...]
    grid: int

    @property
    def blocks(self) -> int:
        """Blocks that do something."""
        return sum(tiles * chunks for tiles, chunks in zip(self.of_request, self.chunks, strict=True))

    def read_keys(self, keys: Sequence[int]) -> int:
        """Return how many keys all tiles read together, of requests with so many `keys`."""
        return sum(tiles * length for tiles, length in zip(self.of_request, keys, strict=True))


def split(
    *, rows: Sequence[int], keys: Sequence[int], heads: Heads, captured_rows: int, multiprocessors: int, uniform: bool
) -> Tiles:
    """Return the tiles of requests with so many query `rows` and `keys` each; both may be 0 for an empty slot.

    Args:
        rows, keys: of each slot of the graph.
        heads: of the rank.
        captured_rows: rows of the whole pass when the graph was captured.
        multiprocessors: of the GPU: 132 of an H100 or H200.
        uniform: whether the plan was told that each request has the same number of rows (`uniform_q_len`).
    """
    packed = [count * heads.group for count in rows]
    # Unless told better, one request may have all rows that the others leave.
    longest = packed[0] if uniform else (captured_rows - len(rows) + 1) * heads.group
    tile_rows = _tile_rows(longest)
    of_request = tuple(_parts(length, tile_rows) for length in packed)
    most_tiles = _parts(captured_rows * heads.group, tile_rows) + len(rows) - 1
    if uniform:
        most_tiles = len(rows) * _parts(longest, tile_rows)
    most_blocks = _BLOCKS_OF_A_MULTIPROCESSOR * multiprocessors // heads.key_value
    chunk_tokens = _chunk_tokens(of_request, keys, most_blocks)
    chunks = tuple(_parts(max(length, 1), chunk_tokens) for length in keys)
    return Tiles(tile_rows, of_request, chunk_tokens, chunks, max(most_blocks, most_tiles))


def _tile_rows(packed_rows: int) -> int:
    if packed_rows > 64:
        return 128
    return 64 if packed_rows > 16 else 16


def _chunk_tokens(tiles: Sequence[int], keys: Sequence[int], most_blocks: int) -> int:
    """Return the shortest chunks with which no more blocks are needed than run at once."""
    low, high = _LEAST_CHUNK_TOKENS, max((1, *keys))
    while low < high:
        middle = (low + high) // 2
        needed = sum(count * _parts(max(length, 1), middle) for count, length in zip(tiles, keys, strict=True))
        low, high = (middle + 1, high) if needed > most_blocks else (low, middle)
    return low


def _parts(whole: int, part: int) -> int:
    return -(-whole // part)
