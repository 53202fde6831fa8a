"""Slow plain accept rules: Python loops, float64, Python integers for the noise. The oracle of the batched rules.

Independent in construction: hashes by unbounded integers, log p + Gumbel instead of a race, explicit normalised
residuals, recursion over child lists. Used by tests and by the canary's replay, never on the hot path.
"""

import math
from collections.abc import Sequence

_WORD = 0xFFFFFFFF
Row = Sequence[float]


def hash32(seed: int, position: int, column: int) -> int:
    """MurmurHash3 x86-32 of the 16 bytes seed (little-endian 64 bits), position, column."""
    state = 0
    for word in (seed & _WORD, (seed >> 32) & _WORD, position & _WORD, column & _WORD):
        state ^= _rotl(word * 0xCC9E2D51 & _WORD, 15) * 0x1B873593 & _WORD
        state = (_rotl(state, 13) * 5 + 0xE6546B64) & _WORD
    state ^= 16
    state = (state ^ (state >> 16)) * 0x85EBCA6B & _WORD
    state = (state ^ (state >> 13)) * 0xC2B2AE35 & _WORD
    return state ^ (state >> 16)


def stream_seed(seed: int, stream: int, anchor_position: int) -> int:
    """The seed of a stream in the round of this anchor, as an unsigned 64-bit integer."""
    return _splitmix(_splitmix(seed + stream) ^ (anchor_position & (2**64 - 1)))


def coin(seed: int, counter: int) -> float:
    """A uniform in (0, 1)."""
    return (hash32(seed, counter, 0) + 0.5) / 2**32


def draw(weights: Row, seed: int, position: int) -> int:
    """argmax of log weight + Gumbel over the tokens with mass, lowest id among ties."""
    best, best_score = -1, -math.inf
    for token, weight in enumerate(weights):
        if weight <= 0:
            continue
        uniform = max(hash32(seed, position, token), 0.5) / _WORD
        score = math.log(weight) - math.log(max(-math.log(uniform), 2.0**-32))
        if score > best_score:
            best, best_score = token, score
    return best


def accept_matching(drafts: Sequence[int], target_tokens: Sequence[int], rows: int) -> list[int]:
    """The committed tokens of one request, the bonus last."""
    committed = []
    for row in range(rows):
        committed.append(target_tokens[row])
        if row == rows - 1 or drafts[row] != target_tokens[row]:
            break
    return committed


def accept_ratio(
    drafts: Sequence[int], q: Sequence[Row], p: Sequence[Row], rows: int, seed: int, positions: Sequence[int]
) -> list[int]:
    """The committed tokens of one request under min(1, p / q), the bonus last."""
    anchor = positions[0]
    committed: list[int] = []
    for row in range(rows - 1):
        token = drafts[row]
        if coin(stream_seed(seed, 2, anchor), positions[row]) >= _ratio(p[row][token], q[row][token]):
            leftover = _residual(p[row], q[row])
            return [*committed, draw(leftover, stream_seed(seed, 3, anchor), positions[row])]
        committed.append(token)
    return [*committed, draw(p[rows - 1], stream_seed(seed, 3, anchor), positions[rows - 1])]


def walk_matching(tokens: Sequence[int], parents: Sequence[int], rows: int, choices: Sequence[int]) -> list[int]:
    """Rows of the accepted path of one request, the anchor first; `choices` is the target's token in each row."""
    path = [0]
    while True:
        here = path[-1]
        step = [row for row in range(1, rows) if parents[row] == here and tokens[row] == choices[here]]
        if not step:
            return path
        path.append(step[0])


def walk_drawn(
    tokens: Sequence[int],
    parents: Sequence[int],
    rows: int,
    p: Sequence[Row],
    q: Sequence[Row],
    seed: int,
    anchor_position: int,
    node: int = 0,
) -> tuple[list[int], int]:
    """(accepted rows below `node`, bonus token) of one request whose children were drawn without replacement."""
    target: Row = p[node]
    draft = list(q[node])
    for row in (child for child in range(1, rows) if parents[child] == node):
        token, mass = tokens[row], sum(draft)
        undrawn = [value / mass for value in draft]
        if coin(stream_seed(seed, 2, anchor_position), row) * undrawn[token] < target[token]:
            below, bonus = walk_drawn(tokens, parents, rows, p, q, seed, anchor_position, row)
            return [row, *below], bonus
        target, draft[token] = _residual(target, undrawn), 0.0
    return [], draw(target, stream_seed(seed, 3, anchor_position), node)


def _ratio(p: float, q: float) -> float:
    if p == 0:
        return 0.0
    return p / q if q > 0 else math.inf


def _residual(p: Row, q: Row) -> Row:
    leftover = [max(a - b, 0.0) for a, b in zip(p, q, strict=True)]
    mass = sum(leftover)
    return [value / mass for value in leftover] if mass > 0 else p


def _rotl(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & _WORD


def _splitmix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31
