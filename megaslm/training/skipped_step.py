"""Why a step was skipped: the targets that are to blame, and the rows they are in."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megaslm.engine.distributed import gather_objects
from megaslm.slm.choice import Choice, Every, HeadOutput, Known
from megaslm.slm.keys import row_of
from megaslm.slm.targets import Targets

_MOST_ROWS_NAMED = 10


def why_unrankable(targets: Sequence[Targets], places: Sequence[int], row_name: Callable[[int], str]) -> str:
    """One sentence, the same on all ranks; contains collectives.

    Args:
        targets: of this rank's micro-batches.
        places: which of them, counted through, cannot be ranked.
        row_name: what a message calls a row.
    """
    keys = _keys(targets)
    return _sentence(unrankable=keys[list(places)], without_loss=keys[:0], row_name=row_name)


def why_left_out(
    targets: Sequence[Targets], choices: Sequence[Choice], outputs: Sequence[HeadOutput], row_name: Callable[[int], str]
) -> str:
    """The same for a step whose update was left out after its passes.

    Args:
        targets: of this rank's micro-batches.
        choices: how to choose of each.
        outputs: what the head gave for each.
        row_name: what a message calls a row.
    """
    keys = _keys(targets)
    chosen = torch.cat([output.mask.flatten() for output in outputs])
    finite = torch.isfinite(torch.cat([output.losses.flatten() for output in outputs]))
    unrankable = torch.cat([_unrankable(*pair) for pair in zip(choices, outputs, strict=True)])
    return _sentence(unrankable=keys[unrankable], without_loss=keys[chosen & ~finite], row_name=row_name)


def _keys(targets: Sequence[Targets]) -> Tensor:
    return torch.cat([part.keys.flatten() for part in targets])


def _unrankable(choice: Choice, output: HeadOutput) -> Tensor:
    """(T,) bool; a choice that does not wait for the losses was made before the passes, or not at all."""
    if isinstance(choice, Every | Known):
        return torch.zeros_like(choice.mask)
    return choice.unrankable(output.losses.flatten())


def _sentence(*, unrankable: Tensor, without_loss: Tensor, row_name: Callable[[int], str]) -> str:
    causes = ("{:,} targets cannot be ranked, their score is NaN or infinite", "{:,} losses are NaN or infinite")
    of_ranks = gather_objects([_counted(keys) for keys in (unrankable, without_loss)])
    for cause, found in zip(causes, zip(*of_ranks, strict=True), strict=True):
        targets = sum(count for count, _ in found)
        if targets:
            rows = sorted({row for _, first_rows in found for row in first_rows})
            named = ", ".join(map(row_name, rows[:_MOST_ROWS_NAMED])) + (", …" if len(rows) > _MOST_ROWS_NAMED else "")
            return f"{cause.format(targets)}, in the rows {named}"
    return "the gradient is NaN or infinite although every loss is a number"


def _counted(keys: Tensor) -> tuple[int, list[int]]:
    """How many targets these are, and the first of their rows, one more than are named."""
    return len(keys), row_of(keys).unique()[: _MOST_ROWS_NAMED + 1].tolist()
