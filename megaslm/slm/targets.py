"""The targets of a step: which are valid, their keys, and what the dataset stores for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from megaslm.slm.spans import span_means


@dataclass(frozen=True)
class Targets:
    """The targets of R rows, those of a step or of a micro-batch; or the same targets in groups of n.

    `valid`: (R, L) bool. `keys`: (R, L) int64, unique over the step. `columns`: what is stored of them by name, (R, L)
    or (R, L, K) each, see `MicroBatch`; and `domain`, (R, L) int64, the numbers of domains. `before`, `after`: (R, L)
    int64, see `SpanRule.bounds`, or None where each target is sorted by its own value.
    """

    valid: Tensor
    keys: Tensor
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    before: Tensor | None = None
    after: Tensor | None = None

    def in_groups(self, count: int) -> "Targets":
        """Views of the same targets as (count, n)."""
        return self._with(lambda part: part.reshape(count, -1, *part.shape[2:]))

    def in_domains(self, count: int) -> "Targets":
        """The same targets (count, n) times. In the group of a domain only its own are valid."""
        groups = self.in_groups(1)._with(lambda part: part.expand(count, *part.shape[1:]))
        own = groups.column("domain") == torch.arange(count, device=self.valid.device)[:, None]
        return replace(groups, valid=groups.valid & own)

    def micro_batches(self, count: int) -> list["Targets"]:
        """Views of `count` micro-batches, of equally many rows each."""
        size = len(self.valid) // count
        return [self[first : first + size] for first in range(0, len(self.valid), size)]

    def __getitem__(self, rows: slice) -> "Targets":
        return self._with(lambda part: part[rows])

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Targets":
        parts = {name: change(part) for name, part in vars(self).items() if isinstance(part, Tensor)}
        return Targets(**parts, columns={name: change(part) for name, part in self.columns.items()})

    def column(self, name: str) -> Tensor:
        """What is stored by this name.

        Raises:
            ValueError: nothing is.
        """
        if name not in self.columns:
            raise ValueError(f"this objective needs the column {name} of every micro-batch")
        return self.columns[name]

    def eligible(self, max_ref_loss: float | None) -> Tensor:
        """(R, L) bool: valid targets that may be selected, whose reference loss does not exceed the cap.

        A NaN reference loss stays eligible, so that the selection reports it.
        """
        return self.valid if max_ref_loss is None else self.valid & ~(self.column("ref_loss") > max_ref_loss)

    def over_spans(self, values: Tensor) -> Tensor:
        """The mean values of the targets' spans: float32 in nats, in and out of the targets' shape. Without spans the
        values themselves."""
        if self.before is None or self.after is None:
            return values
        return span_means(values, self.valid, self.before, self.after)


def in_any_group(marks: Tensor, count: int) -> Tensor:
    """(count,) bool: the targets that a (G, n) mask marks, where its groups hold each once or are those of
    `Targets.in_domains`."""
    return marks.view(-1, count).any(0)
