"""The attention mask of a verify pass, in which a row sees its ancestors: as bit words, and as FlashInfer's bytes.

Columns of a request are its prefix, then the rows of its tree. A padding row sees exactly one column, the anchor's: a
softmax over no column is not a number.
"""

import torch
from torch import Tensor

from sparktier.kernels.draft_tree import DraftTree

WORD_BITS = 32
_BYTE_BITS = 8


def ancestor_words(*, tree: DraftTree) -> Tensor:
    """[batch, rows, ceil(rows / 32)] int32: bit j % 32 of word j // 32 is set where the row sees row j.

    A live row sees itself and its ancestors, a padding row the anchor. Paths are joined by pointer doubling, so the
    number of steps depends on the width only and nothing is read back from the device.
    """
    rows = torch.arange(tree.tokens.shape[1], device=tree.tokens.device)
    own = torch.where(tree.live, rows, 0)
    word_ids = torch.arange(-(-len(rows) // WORD_BITS), device=rows.device)
    words = (own.unsqueeze(2) // WORD_BITS == word_ids).long() << (own.unsqueeze(2) % WORD_BITS)
    hop = tree.parents.clamp(min=0)
    for _ in range((len(rows) - 1).bit_length()):
        words = words | words.gather(1, hop.unsqueeze(2).expand_as(words))
        hop = hop.gather(1, hop)
    return ((words ^ (1 << 31)) - (1 << 31)).to(torch.int32)


def unpacked(*, words: Tensor) -> Tensor:
    """The words as plain flags: [batch, rows, rows] bool, row sees row."""
    columns = torch.arange(words.shape[1], device=words.device)
    return (words[..., columns // WORD_BITS].long() >> (columns % WORD_BITS)) & 1 == 1


def visible(
    *, words: Tensor, row_counts: Tensor, prefix_lens: Tensor, requests: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:
    """Does the row see the column? Elementwise over requests, rows, columns [n] int64 -> [n] bool."""
    prefix = prefix_lens[requests]
    drafted = (columns - prefix).clamp(min=0)
    # Padding may have more rows, and so more columns, than trees are wide.
    word = words[requests, rows.clamp(max=words.shape[1] - 1), (drafted // WORD_BITS).clamp(max=words.shape[2] - 1)]
    in_tree = (columns >= prefix) & ((word >> (drafted % WORD_BITS)) & 1 == 1)
    return in_tree | ((columns < prefix) & (rows < row_counts[requests]))


def mask_byte_indptr(*, prefix_lens: Tensor, query_lens: Tensor) -> Tensor:
    """Where each request's packed bytes start: [batch + 1] int32. Every request starts on a byte of its own."""
    sizes = (query_lens * (prefix_lens + query_lens) + _BYTE_BITS - 1) // _BYTE_BITS
    return torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).to(torch.int32)


def packed_mask(
    *, words: Tensor, row_counts: Tensor, prefix_lens: Tensor, query_lens: Tensor, indptr: Tensor, total_bytes: int
) -> Tensor:
    """The mask as FlashInfer's fa2 kernels read it: [total_bytes] uint8, row-major per request, lowest bit first.

    Args:
        words, row_counts: of the trees; rows from `row_counts` up to `query_lens` are padding.
        prefix_lens, query_lens: [batch] int64; keys of a request are prefix + query.
        indptr: [batch + 1] int32, `mask_byte_indptr` of the same lengths.
        total_bytes: its last entry or more, known on the host; bytes beyond are 0.
    """
    if words.is_cuda:
        from sparktier.kernels.mask_triton import packed_mask_triton

        lengths = {"row_counts": row_counts, "prefix_lens": prefix_lens, "query_lens": query_lens}
        return packed_mask_triton(words=words, **lengths, indptr=indptr, total_bytes=total_bytes)
    places = torch.arange(total_bytes, device=words.device)
    indptr = indptr.long()
    requests = torch.searchsorted(indptr[1:], places, right=True).clamp(max=len(prefix_lens) - 1)
    bits = torch.arange(_BYTE_BITS, device=words.device)
    flat = ((places - indptr[requests]) * _BYTE_BITS).unsqueeze(1) + bits
    keys = (prefix_lens + query_lens)[requests].unsqueeze(1)
    inside = flat < query_lens[requests].unsqueeze(1) * keys
    seen = visible(
        words=words,
        row_counts=row_counts,
        prefix_lens=prefix_lens,
        requests=requests.unsqueeze(1).expand_as(flat),
        rows=flat // keys,
        columns=flat % keys,
    )
    return ((seen & inside).long() << bits).sum(dim=1).to(torch.uint8)


def flat_mask(*, words: Tensor, row_counts: Tensor, prefix_lens: Tensor) -> Tensor:
    """Each request's [rows, prefix + rows] one after the other, live rows only: [n] bool, FlashInfer's `custom_mask`.

    Reads n back from the device, as FlashInfer does to pack it.
    """
    keys = prefix_lens + row_counts
    ends = (row_counts * keys).cumsum(0)
    places = torch.arange(int(ends[-1]), device=words.device)
    requests = torch.searchsorted(ends, places, right=True)
    inside = places - (ends - row_counts * keys)[requests]
    return visible(
        words=words,
        row_counts=row_counts,
        prefix_lens=prefix_lens,
        requests=requests,
        rows=inside // keys[requests],
        columns=inside % keys[requests],
    )
