"""A request without a token, or whose own code raises, ends with a reason; its neighbours see nothing."""

from collections.abc import Callable
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.constrained.xgrammar_backend import XGrammarGrammar
from torch import Tensor
from xgrammar import GrammarCompiler, GrammarMatcher, TokenizerInfo, VocabType

from sparktier.configs.errors import REQUEST_ENDED
from sparktier.serving.engine.requests import grammar_faults, least_length, request_faults
from sparktier.serving.supervision.failure_reason import reason

VOCAB = 129
EOS = 128
COMPILER = GrammarCompiler(
    TokenizerInfo([*map(chr, range(EOS)), "<eos>"], VocabType.RAW, vocab_size=VOCAB, stop_token_ids=[EOS])
)


def grammar(compiled: Any) -> XGrammarGrammar:
    return XGrammarGrammar(GrammarMatcher(compiled), VOCAB, compiled, None)


def ebnf(text: str) -> XGrammarGrammar:
    return grammar(COMPILER.compile_grammar(text))


EMPTY = [
    COMPILER.compile_grammar("root ::= root"),
    COMPILER.compile_grammar('root ::= a\na ::= b "x"\nb ::= a'),
    COMPILER.compile_json_schema('{"$ref": "#"}'),
]


@pytest.mark.parametrize("compiled", EMPTY, ids=str)
def test_a_grammar_that_can_produce_nothing_is_refused(compiled: Any) -> None:
    backend = SimpleNamespace()
    refusing = grammar_faults._refusing_empty(lambda *_: grammar(compiled))
    assert refusing(backend, ("ebnf", ""), False).error_message == grammar_faults.NOTHING


@pytest.mark.parametrize("text", ['root ::= ""', 'root ::= "a" root', "root ::= [a-z]*", 'root ::= "b" | "a" root'])
def test_a_grammar_that_allows_a_token_or_its_end_passes(text: str) -> None:
    made = ebnf(text)
    assert grammar_faults._refusing_empty(lambda *_: made)(SimpleNamespace(), ("ebnf", ""), False) is made


def test_a_dead_end_is_seen_where_it_is() -> None:
    made = ebnf('root ::= "ab" dead\ndead ::= dead "x"')
    for token in (97, 98):
        assert not grammar_faults.allows_nothing(made, vocab_size=VOCAB)
        made.accept_token(token)
    assert grammar_faults.allows_nothing(made, vocab_size=VOCAB)


def test_an_error_inside_a_grammar_leaves_its_request_without_a_token() -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("inside C++")

    masks = torch.full((3, 5), -1, dtype=torch.int32)
    grammar_faults._filling(failing)(SimpleNamespace(), masks, 1)
    assert masks.any(dim=1).tolist() == [True, False, True]
    grammar_faults._traversing(failing)(None, None, None, None, masks[:1])
    assert masks.any(dim=1).tolist() == [False, False, True]
    with pytest.raises(ValueError, match="inside C"):
        grammar_faults._accepting(failing)(SimpleNamespace(), 3)


class Request(SimpleNamespace):
    def finished(self) -> bool:
        return self.finished_reason is not None


def request(rid: str, **fields: Any) -> Request:
    common = {"to_finish": None, "finished_reason": None, "is_retracted": False, "inflight_middle_chunks": 0}
    return Request(rid=rid, output_ids=[5], vocab_size=VOCAB, **{**common, "grammar": None, **fields})


def result(silent: list[bool], **fields: Any) -> Any:
    output = SimpleNamespace()
    request_faults.mark(output, torch.tensor(silent))
    return SimpleNamespace(logits_output=output, **{"copy_done": None, "accept_lens": None, **fields})


def finish(self: Any, new_accepted_len: int) -> None:
    """As SGLang's check: `to_finish` first, else 9 ends an answer, and 13 is one that it fails on."""
    if self.to_finish is not None:
        self.finished_reason, self.to_finish = self.to_finish, None
        return
    if 13 in self.output_ids:
        raise IndexError("tokenizer")
    if 9 in self.output_ids[-new_accepted_len:]:
        self.finished_reason = "nine"


ended = request_faults._ending_faulty(finish)
accept = request_faults._unless_silent(lambda self, request, tokens: tokens)


def test_only_silent_requests_end_and_others_go_on() -> None:
    over, part = request("over", finished_reason="x"), request("part", inflight_middle_chunks=1)
    batch = SimpleNamespace(reqs=[request("a"), request("b"), over, part])
    request_faults.end_silent(batch, result([False, True, True, True]))
    for each in batch.reqs:
        each.output_ids.append(0)
        ended(each, 1)
    quiet, silent, *others = batch.reqs
    assert [each.finished_reason for each in (quiet, *others)] == [None, "x", None]
    assert silent.finished_reason.status_code == HTTPStatus.INTERNAL_SERVER_ERROR
    assert silent.finished_reason.message.startswith(REQUEST_ENDED + "the model's logits are not finite after 1 tokens")
    assert silent.skip_radix_cache_insert
    assert accept(None, quiet, [1, 2]) == [1, 2]
    assert accept(None, silent, [1, 2]) == []


@pytest.mark.parametrize(
    ("drafts", "told"), [([97, 98], "its grammar allows no token after 3 tokens, and no end."), ([97, 9], "")]
)
def test_drafts_accepted_before_a_dead_end_are_emitted_and_may_end_the_answer(drafts: list[int], told: str) -> None:
    stuck = request("a", grammar=ebnf('root ::= "ab" dead\ndead ::= dead "x"'))
    step = result([True, False], accept_lens=torch.tensor([3, 4]))
    lengths = step.accept_lens
    request_faults.end_silent(SimpleNamespace(reqs=[stuck, request("b")]), step)
    assert step.accept_lens.tolist() == [2, 4]
    assert lengths.tolist() == [3, 4], "the device may still read them"
    for token in accept(None, stuck, drafts):
        stuck.output_ids.append(token)
        if token != 9:
            stuck.grammar.accept_token(token)
    ended(stuck, 2)
    if not told:
        assert stuck.finished_reason == "nine"
        return
    assert stuck.finished_reason.status_code == HTTPStatus.BAD_REQUEST
    assert stuck.finished_reason.message == REQUEST_ENDED + told


def test_a_request_whose_end_can_t_be_checked_ends() -> None:
    odd = request("a")
    odd.output_ids.append(13)
    ended(odd, 1)
    assert "IndexError" in odd.finished_reason.message


def test_a_step_that_raises_names_its_requests(caplog: pytest.LogCaptureFixture) -> None:
    def run_batch(self: Any, batch: Any) -> None:
        raise RuntimeError("forward")

    batch = SimpleNamespace(reqs=[request(f"request-{number}") for number in range(8)])
    with pytest.raises(RuntimeError, match="forward"):
        request_faults._naming_requests(run_batch)(None, batch)
    assert "sparktier: run_batch failed. Requests in the step: request-0, request-1" in caplog.text
    assert "and 2 more." in caplog.text
    [line] = [record.getMessage() for record in caplog.records]
    assert line in reason(f"(Rank pid=7) [2026-11-27 21:05:34] {line}\nRuntimeError: forward\n" + "a warning\n" * 50)


def sampler(chosen: Tensor) -> tuple[SimpleNamespace, Callable[..., Tensor]]:
    """A sampler of `chosen`, with its two hooks: SGLang's own takes the least token of two ranks."""
    itself = SimpleNamespace()
    sync = request_faults._agreeing(lambda _, tokens, other: tokens.copy_(torch.minimum(tokens, other)))

    def forward(_: Any, output: Any, other: Tensor) -> Tensor:
        assert output.next_token_logits.isfinite().any(dim=-1).all()
        sync(itself, chosen, other)
        return chosen

    return itself, request_faults._marking(forward)


def test_a_sampler_marks_silent_rows_and_every_rank_those_of_any() -> None:
    logits = torch.randn(4, 9)
    logits[1], logits[2, 3] = -torch.inf, torch.nan
    output = SimpleNamespace(next_token_logits=logits)
    itself, forward = sampler(torch.tensor([1, 2, 3, 4]))
    tokens = forward(itself, output, torch.tensor([1, 2, 3, -1]))
    assert tokens.tolist() == [1, 0, 0, 0]
    assert itself.silent.tolist() == [False, True, True, True]
    assert request_faults.is_marked(output)


def test_a_least_length_bars_ends_only_beside_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stock:
        def _prepare(self) -> None:
            self.stop_token_penalties = torch.tensor([[0.0, -torch.inf, 0.0]])

    monkeypatch.setattr(least_length, "BatchedMinNewTokensPenalizer", Stock)
    least_length.install()
    penalizer: Any = Stock()
    penalizer._prepare()
    free, bound = torch.tensor([-30.0, 40.0, -50.0]), torch.tensor([-torch.inf, 40.0, -torch.inf])
    for logits, expected in ((free, 0.0), (bound, 1.0)):
        for temperature in (1e-6, 1.0, 100.0):
            barred = torch.softmax((logits + penalizer.stop_token_penalties[0]) / temperature, dim=0)
            assert barred[1] == expected
