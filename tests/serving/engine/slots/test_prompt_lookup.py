"""What one rank keeps of its requests for a lookup: always the tokens of the request that has the slot now."""

from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparktier.kernels.lookup.counting import no_counts
from sparktier.kernels.lookup.matching import LONGEST_MATCH, SHORTEST_MATCH
from sparktier.kernels.reference import lookup as reference
from sparktier.kernels.select import select_rows
from sparktier.serving.engine.slots.prompt_lookup import PromptLookup

CPU = torch.device("cpu")
SLOTS, CONTEXT, TOKENS, VOCAB = 3, 60, 5, 3
TEXT = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12)
# Of a slot: a request comes with a prompt, or once more with all it has said; or it says some tokens in a step.
EVENT = st.tuples(st.integers(0, SLOTS - 1), st.sampled_from(["new", "again", "says"]), TEXT)


def request(tokens: list[int], *, answered: int = 0) -> Any:
    """One of SGLang's, the last `answered` of whose tokens are its answer."""
    at = len(tokens) - answered
    return SimpleNamespace(origin_input_ids=tokens[:at], output_ids=tokens[at:])


def fresh_lookup() -> PromptLookup:
    return PromptLookup(SLOTS, context_tokens=CONTEXT, tokens=TOKENS, vocabulary=VOCAB, device=CPU)


def drafts(lookup: PromptLookup, texts: dict[int, list[int]]) -> dict[int, list[int]]:
    """What is drafted for each slot, all in one batch."""
    slots, lengths = torch.tensor(list(texts)), torch.tensor([len(text) for text in texts.values()])
    anchors = torch.tensor([text[-1] for text in texts.values()])
    candidates = lookup.alone(anchors, slots, lengths, tokens=TOKENS)
    budgets = torch.full_like(anchors, TOKENS + 1)
    tree = select_rows(candidates=candidates, row_budgets=budgets, width=TOKENS + 1).tree
    rows = zip(tree.tokens.tolist(), tree.row_counts.tolist(), strict=True)
    return dict(zip(texts, (tokens[1:count] for tokens, count in rows), strict=True))


@settings(max_examples=50)
@given(st.lists(EVENT, min_size=1, max_size=12))
def test_drafts_come_from_the_request_that_has_the_slot_now(events: list[tuple[int, str, list[int]]]) -> None:
    """Prompts, steps, retraction, and other requests in slots whose last one had said more."""
    lookup, texts = fresh_lookup(), dict[int, list[int]]()
    for slot, what, tokens in events:
        if what == "says" and slot in texts and len(texts[slot]) + len(tokens) < CONTEXT:
            lengths = torch.tensor([len(texts[slot])])
            # Rows of a step are as long as the longest: what is behind the accepted tokens is padding.
            padded = torch.tensor([[*tokens, -1, -1]])
            lookup.add_tokens(torch.tensor([slot]), lengths, padded)
            texts[slot] = [*texts[slot], *tokens]
        elif what == "again" and slot in texts:
            # Another one had the slot while it was retracted.
            lookup.add_requests([request([0] * (CONTEXT - 1))], [slot])
            lookup.add_requests([request(texts[slot], answered=len(texts[slot]) // 2)], [slot])
        else:
            lookup.add_requests([request(tokens)], [slot])
            texts[slot] = tokens
        found = drafts(lookup, texts)
        for other, text in texts.items():
            expected = reference.look_up(
                text, tokens=TOKENS, shortest=SHORTEST_MATCH, longest=LONGEST_MATCH, vocabulary=VOCAB
            )
            assert found[other] == expected.drafts


def test_what_was_drafted_for_one_request_is_not_counted_of_the_next_in_its_slot() -> None:
    lookup = fresh_lookup()
    lookup.add_requests([request([0, 1, 2, 0, 1])], [1])
    drafts(lookup, {1: [0, 1, 2, 0, 1]})
    lookup.add_requests([request([0, 1, 2, 0, 1, 2, 2, 2, 2])], [1])
    drafts(lookup, {1: [0, 1, 2, 0, 1, 2, 2, 2, 2]})
    assert torch.equal(lookup.counts[:-1], no_counts(CPU)[:-1])


def test_drafts_are_counted_by_what_the_request_said_in_their_place() -> None:
    lookup = fresh_lookup()
    text = [0, 1, 2, 0, 1]
    lookup.add_requests([request(text)], [1])
    assert drafts(lookup, {1: text})[1][:2] == [2, 0]
    lookup.add_tokens(torch.tensor([1]), torch.tensor([5]), torch.tensor([[2, 1]]))
    drafts(lookup, {1: [*text, 2, 1]})
    assert lookup.counts[:-1].sum(dim=0).tolist() == [2, 1], "2 was right, 0 was not"


def test_ranks_that_commit_the_same_tokens_hold_the_same() -> None:
    """Whatever else is drafted beside it: what ranks may differ in is the drafter's rounding."""
    generator = torch.Generator().manual_seed(0)
    ranks, text = [fresh_lookup(), fresh_lookup()], torch.randint(2, (20,), generator=generator).tolist()
    for rank in ranks:
        rank.add_requests([request(text)], [2])
    for _ in range(10):
        said = torch.randint(2, (1, 3), generator=generator)
        for rank in ranks:
            drafts(rank, {2: text})
            rank.add_tokens(torch.tensor([2]), torch.tensor([len(text)]), said)
        text = [*text, *said[0].tolist()]
    held = [vars(rank) for rank in ranks]
    assert int(ranks[0].counts.sum()) > 10
    for name, value in held[0].items():
        assert torch.equal(value, held[1][name]) if isinstance(value, torch.Tensor) else value == held[1][name], name
