"""SGLang's own requests, grammars and results under our hooks: what a step makes of a row without a token."""

from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.constrained.xgrammar_backend import XGrammarGrammarBackend
from sglang.srt.managers.schedule_batch import Req
from sglang.srt.managers.scheduler_components.batch_result_processor import SchedulerBatchResultProcessor
from sglang.srt.sampling.sampling_params import SamplingParams
from transformers import AutoTokenizer

from sparktier.serving.engine.requests import request_faults
from support.tiny_moe import VOCAB_SIZE, make_tiny_moe

EOS = 1
STRIDE = 4
LOOP = 'root ::= "ab" [a-z] loop\nloop ::= loop "x"'
DEAD_END = "its grammar allows no token after 3 tokens, and no end."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = AutoTokenizer.from_pretrained(make_tiny_moe(Path(tmp_path_factory.mktemp("faults")), layers=1, experts=2))
    made.additional_stop_token_ids = None
    return made


@pytest.fixture(scope="module")
def backend(tokenizer: Any) -> XGrammarGrammarBackend:
    return XGrammarGrammarBackend(tokenizer, vocab_size=VOCAB_SIZE, model_eos_token_ids=[EOS])


@pytest.fixture(autouse=True)
def hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Req, "update_finish_state", request_faults._ending_faulty(Req.update_finish_state))
    processor = SchedulerBatchResultProcessor
    monkeypatch.setattr(
        processor, "_accept_grammar_tokens", request_faults._unless_silent(processor._accept_grammar_tokens)
    )
    monkeypatch.setattr(
        processor, "advance_grammar_fsm", request_faults._ending_before_grammars(processor.advance_grammar_fsm)
    )


def ended(request: Req, accepted: list[int]) -> dict[str, Any]:
    """Why `request` ended in a step that accepted these drafts, after which its row was silent."""
    output = SimpleNamespace()
    request_faults.mark(output, torch.tensor([True]))
    result: Any = SimpleNamespace(
        logits_output=output,
        copy_done=None,
        accept_lens=torch.tensor([len(accepted) + 1]),
        next_token_ids=torch.tensor(accepted + [0] * (STRIDE - len(accepted))),
        speculative_output_stride=STRIDE,
        grammar_advanced=False,
    )
    mode = SimpleNamespace(is_decode=lambda: True, is_extend=lambda: False)
    processor: Any = SimpleNamespace()
    processor._accept_grammar_tokens = lambda *given: SchedulerBatchResultProcessor._accept_grammar_tokens(
        processor, *given
    )
    batch: Any = SimpleNamespace(reqs=[request], has_grammar=True, forward_mode=mode)
    SchedulerBatchResultProcessor.advance_grammar_fsm(processor, result, batch)
    plain = accepted[: int(result.accept_lens[0])] or [0]
    kept = plain if request.grammar is None else result.grammar_retained_tokens[0]
    request.output_ids.extend(kept)
    request.update_finish_state(len(kept))
    reason: dict[str, Any] = request.finished_reason.to_json()
    return reason


def asked(tokenizer: Any, grammar: Any = None, **params: Any) -> Req:
    sampling = SamplingParams(max_new_tokens=20, **params)
    sampling.normalize(tokenizer)
    request = Req("r", "", array("q", [20, 30]), sampling, vocab_size=VOCAB_SIZE, eos_token_ids={EOS})
    request.tokenizer, request.grammar = tokenizer, grammar
    return request


def letters(tokenizer: Any, text: str) -> list[int]:
    return [tokenizer.encode(letter)[0] for letter in text]


def test_a_dead_end_is_declared_after_the_drafts_before_it(tokenizer: Any, backend: XGrammarGrammarBackend) -> None:
    request = asked(tokenizer, backend.dispatch_ebnf(LOOP))
    reason = ended(request, letters(tokenizer, "abc"))
    assert (reason["type"], reason["status_code"]) == ("abort", 400)
    assert reason["message"].endswith(DEAD_END)
    assert tokenizer.decode(request.output_ids) == "abc"


def test_a_dead_end_at_once_takes_no_token(tokenizer: Any, backend: XGrammarGrammarBackend) -> None:
    grammar = backend.dispatch_ebnf(LOOP)
    request = asked(tokenizer, grammar)
    for token in letters(tokenizer, "abc"):
        grammar.accept_token(token)
        request.output_ids.append(token)
    assert ended(request, [])["message"].endswith(DEAD_END)
    assert tokenizer.decode(request.output_ids) == "abc"


def test_a_stop_before_a_dead_end_ends_the_answer(tokenizer: Any, backend: XGrammarGrammarBackend) -> None:
    request = asked(tokenizer, backend.dispatch_ebnf(LOOP), stop=["b"])
    assert ended(request, letters(tokenizer, "abc")) == {"type": "stop", "matched": "b"}
    assert ended(asked(tokenizer), [50, EOS]) == {"type": "stop", "matched": EOS}


def test_broken_logits_are_the_server_s_fault(tokenizer: Any) -> None:
    for accepted in ([], [50]):
        reason = ended(asked(tokenizer), accepted)
        assert (reason["type"], reason["status_code"]) == ("abort", 500)
        assert "not finite" in reason["message"]
