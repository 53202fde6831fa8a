"""A request that has no token to choose, or whose logits break, ends alone: plain decoding over two ranks.

Drafting has the same in test_ladder.py, and under the ratio rule in test_ratio_distribution.py.
"""

import pytest

from support.deployment import Deployment
from support.inputs.dead_ends import assert_every_request_ends_alone

pytestmark = pytest.mark.engine


def test_every_request_ends_alone(sharded: Deployment) -> None:
    assert_every_request_ends_alone(sharded)
