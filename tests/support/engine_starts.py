"""How many engines this run has started, by kind: a start takes most of a minute, so a run says how many it made."""

from collections import Counter

# "deployment": one `sparktier up`. "stepped engine": one process that steps a rank by itself.
STARTED: Counter[str] = Counter()
