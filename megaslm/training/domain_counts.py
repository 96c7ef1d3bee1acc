"""How much of each domain a run has read."""

from collections.abc import Mapping, Sequence

from megaslm.data.loading.mixture import Mixture


class DomainCounts:
    """Rows read of each domain, over all ranks, from the first step on."""

    def __init__(self, mixture: Mixture, seq_len: int, rows_read: Mapping[str, int]) -> None:
        """Goes on from what `rows_read` was; a domain that it lacks has had none."""
        self._mixture = mixture
        self._seq_len = seq_len
        self._rows_read = {name: rows_read.get(name, 0) for name in mixture.domains}

    def add(self, rows: Sequence[int]) -> None:
        """Counts a step, in the order of the domains' numbers."""
        for name, count in zip(self._mixture.domains, rows, strict=True):
            self._rows_read[name] += count

    @property
    def rows_read(self) -> dict[str, int]:
        """What `__init__` takes."""
        return dict(self._rows_read)

    @property
    def tokens(self) -> dict[str, int]:
        """Targets read of each domain."""
        return {name: rows * self._seq_len for name, rows in self._rows_read.items()}

    @property
    def passes(self) -> dict[str, float]:
        """How often each domain was read on average: rows read by rows that it has."""
        return {
            name: self._rows_read[name] / stream.rows
            for name, stream in zip(self._mixture.domains, self._mixture.streams, strict=True)
        }
