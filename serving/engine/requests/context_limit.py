"""Lets a prompt and its output together have as many tokens as the context.

SGLang reserves seven of those tokens, and writes KV slots past the end of its table for requests near the bound.
"""

from typing import Any

# Indices in the tuple that `TpModelWorker.get_worker_info` returns.
_LONGEST_REQUEST, _LONGEST_PROMPT = 4, 5


def longest_request(*, context_tokens: int, kv_tokens: int, reserved_tokens: int, page_tokens: int) -> int:
    """Return how many tokens a prompt and its output may have together.

    An empty cache of `kv_tokens` must also hold the `reserved_tokens` of a step, and the tokens by which SGLang rounds
    up to pages when it admits a request (`max_new_tokens_for_memory`).
    """
    return min(context_tokens, kv_tokens - max(reserved_tokens + page_tokens, 2 * page_tokens))


def install() -> None:
    """Replace SGLang's bounds in this process, a rank."""
    from sglang.srt.managers.tp_worker import TpModelWorker
    from sglang.srt.mem_cache import kv_cache_configurator
    from sglang.srt.mem_cache.allocation_sizing import get_alloc_page_size, get_alloc_reserve_per_decode

    stock_info, stock_headroom = TpModelWorker.get_worker_info, kv_cache_configurator.get_req_to_token_extra_context_len

    def get_worker_info(self: Any) -> tuple[Any, ...]:
        info = list(stock_info(self))
        longest = longest_request(
            context_tokens=self.model_config.context_len,
            kv_tokens=self.model_runner.effective_logical_max_total_num_tokens,
            reserved_tokens=get_alloc_reserve_per_decode(),
            page_tokens=get_alloc_page_size(),
        )
        # The scheduler allows outputs of one token less than is left, and prompts shorter than its bound.
        info[_LONGEST_REQUEST], info[_LONGEST_PROMPT] = longest + 1, longest
        return tuple(info)

    def headroom() -> Any:
        # SGLang reserves slots for two steps at once, counted from a request's last token.
        return max(stock_headroom(), get_alloc_reserve_per_decode() + get_alloc_page_size())

    TpModelWorker.get_worker_info = get_worker_info
    kv_cache_configurator.get_req_to_token_extra_context_len = headroom


def tell(tokenizer_manager: Any) -> None:
    """Let `tokenizer_manager` check requests against the bound that the ranks reported."""
    tokenizer_manager.context_len = tokenizer_manager.max_req_input_len
    tokenizer_manager.num_reserved_tokens = 0
