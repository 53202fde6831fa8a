"""Several feature stores as one source, for answers at several temperatures or from several processes."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from sparktier.configs.errors import ArtifactError
from sparktier.drafter.data.feature_store import FeatureStore
from sparktier.drafter.data.features import FeatureSpec
from sparktier.drafter.data.packing import FeatureRecord

# Records of one training run may differ in these.
_FREE = {"temperature", "seed", "dataset"}


class JoinedStores:
    """Stores of the same target and layers, numbered consecutively in the given order (a `FeatureSource`)."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Open the stores; `spec` is the first one's.

        Raises:
            ArtifactError: there is none, or one is incomplete or of another target, layers or dtype.
        """
        if not folders:
            raise ArtifactError("features: at least one store must be given (found none). Make or name one.")
        self._stores = [FeatureStore(folder) for folder in folders]
        self.spec: FeatureSpec = self._stores[0].spec
        for store in self._stores:
            if store.spec.model_dump(exclude=_FREE) != self.spec.model_dump(exclude=_FREE):
                raise ArtifactError(
                    f"{store.folder}: must be of the target and layers of {folders[0]} (it differs). Leave it out."
                )
        self.lengths_tokens: Sequence[int] = [length for store in self._stores for length in store.lengths_tokens]
        self._ends = list(accumulate(len(store.lengths_tokens) for store in self._stores))

    def read(self, order: Sequence[int]) -> Iterator[FeatureRecord]:
        """Yield sequences in `order`."""
        for index in order:
            place = bisect_right(self._ends, index)
            first = self._ends[place - 1] if place else 0
            yield from self._stores[place].read([index - first])
