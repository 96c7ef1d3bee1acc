"""In which steps the backward pass leaves tokens out, and how far its gradient is off (`slm.backward: filtered`)."""

import math

from megaslm.model.filtered_backward import BackwardFilter
from megaslm.slm.topk import AllReduceSum

COMPARED_EVERY_STEPS = 50


class FilterWatch:
    """Compares both gradients in the first step of a run and then every `COMPARED_EVERY_STEPS` steps.

    Such a step trains on the exact gradient. The steps after it leave tokens out if the cosine is large enough.
    """

    def __init__(self, backward: BackwardFilter, *, least_cosine: float, cosine: float | None) -> None:
        """`cosine`: the last one that was measured, by an earlier attempt; None where there was none."""
        self.cosine = cosine
        self._backward, self._least_cosine = backward, least_cosine

    def begin(self, step: int) -> None:
        """To be called before the first forward pass of a step."""
        compares = (step - 1) % COMPARED_EVERY_STEPS == 0
        if compares:
            self._backward.forget()
        self._backward.compares = compares
        self._backward.leaves_out = not compares and self.cosine is not None and self.cosine >= self._least_cosine

    def end(self, all_reduce_sum: AllReduceSum) -> float | None:
        """The cosine of the step, over all ranks; None where it was not compared. The host waits for it.

        NaN, as in a step that was skipped, counts as 0.
        """
        if not self._backward.compares:
            return None
        cosine = float(self._backward.cosine(all_reduce_sum))
        self.cosine = 0.0 if math.isnan(cosine) else cosine
        return self.cosine
