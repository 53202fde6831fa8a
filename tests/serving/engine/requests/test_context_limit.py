"""A prompt and its output may fill the context, wherever the cache that settings ask for is as large as they must."""

import pytest

from sparktier.configs.errors import ConfigError
from sparktier.configs.loading.loader import settings_from
from sparktier.configs.rules.layout import kv_tokens_of_longest
from sparktier.serving.engine.requests.context_limit import longest_request

CONTEXT_TOKENS = 2048
TREE = {"method": "tree", "draft_path": "/d", "block_tokens": 7, "tree_rows": 24}
CHAIN = {"method": "chain", "draft_path": "/d", "block_tokens": 7}


def layout(speculation: dict[str, object], page_tokens: int, **replicas: object) -> dict[str, object]:
    return {
        "model": {"path": "/m", "context_tokens": CONTEXT_TOKENS},
        "replicas": {"page_tokens": page_tokens, **replicas},
        "speculation": speculation,
    }


@pytest.mark.parametrize("page_tokens", [1, 16, 64])
@pytest.mark.parametrize("speculation", [{}, CHAIN, TREE], ids=["none", "chain", "tree"])
def test_the_least_cache_that_settings_allow_holds_the_context(
    speculation: dict[str, object], page_tokens: int
) -> None:
    settings = settings_from(layout(speculation, page_tokens))
    rows = settings.speculation.rows_per_request
    assert rows is not None
    least = kv_tokens_of_longest(settings)

    def longest(kv_tokens: int) -> int:
        return longest_request(
            context_tokens=CONTEXT_TOKENS, kv_tokens=kv_tokens, reserved_tokens=2 * rows, page_tokens=page_tokens
        )

    assert longest(least) == longest(10 * least) == CONTEXT_TOKENS
    assert longest(least - 1) == CONTEXT_TOKENS - 1
    assert settings_from(layout(speculation, page_tokens, kv_tokens=least))
    with pytest.raises(ConfigError, match=f"Use {least} or more"):
        settings_from(layout(speculation, page_tokens, kv_tokens=least - 1))
