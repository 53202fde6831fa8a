"""Keeps the promise that a prompt and its output together may have as many tokens as the context.

SGLang keeps seven of them back, and writes a step's KV slots past the end of its table for what then comes close.
"""

from typing import Any

# Places in the tuple that `TpModelWorker.get_worker_info` returns.
_LONGEST_REQUEST, _LONGEST_PROMPT = 4, 5


def longest_request(*, context_tokens: int, kv_tokens: int, reserved_tokens: int, page_tokens: int) -> int:
    """Return how many tokens a prompt and its output may have together.

    In an empty cache of `kv_tokens` there must also be room for the `reserved_tokens` of a step, and for what SGLang
    rounds up to pages where it admits a request (`max_new_tokens_for_memory`).
    """
    return min(context_tokens, kv_tokens - max(reserved_tokens + page_tokens, 2 * page_tokens))


def install() -> None:
    """Replace SGLang's bounds in this process, which holds a rank."""
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
        # The scheduler grants an output of one token less than is left, and no prompt as long as the bound.
        info[_LONGEST_REQUEST], info[_LONGEST_PROMPT] = longest + 1, longest
        return tuple(info)

    def headroom() -> Any:
        # Slots are reserved for two steps at once, counted from a request's last token.
        return max(stock_headroom(), get_alloc_reserve_per_decode() + get_alloc_page_size())

    TpModelWorker.get_worker_info = get_worker_info
    kv_cache_configurator.get_req_to_token_extra_context_len = headroom


def tell(tokenizer_manager: Any) -> None:
    """Have `tokenizer_manager` check requests against the same bound, once the ranks have reported it."""
    tokenizer_manager.context_len = tokenizer_manager.max_req_input_len
    tokenizer_manager.num_reserved_tokens = 0
