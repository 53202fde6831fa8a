"""How many engines this run has started, by kind: a start takes most of a minute, so a run says how many it made."""

from collections import Counter

# "deployment": one `sparktier up`. "stepped engine": one process that steps a rank by itself.
# "SGLang": one engine without our command. Where they are made is held by tests/house/test_engine_starts.py.
STARTED: Counter[str] = Counter()
