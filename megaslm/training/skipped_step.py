"""Why a step was skipped, as a message that names the rows of the targets concerned."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from megaslm.engine.distributed import gather_objects
from megaslm.slm.choice import Choice, Every, HeadOutput, Known
from megaslm.slm.keys import row_of
from megaslm.slm.targets import Targets

_MOST_ROWS_NAMED = 10


def why_unsortable(targets: Targets, places: Sequence[int], row_name: Callable[[int], str]) -> str:
    """Why targets cannot be sorted, in one sentence, the same on all ranks. Contains collectives.

    Args:
        targets: of this rank in the step.
        places: indices of the targets that cannot be sorted.
        row_name: the name of a row in messages.
    """
    keys = targets.keys.flatten()
    return _sentence(unsortable=keys[list(places)], without_loss=keys[:0], row_name=row_name)


def why_left_out(
    targets: Targets, choices: Sequence[Choice], output: HeadOutput, row_name: Callable[[int], str]
) -> str:
    """Why the update was left out after the passes, in one sentence, the same on all ranks. Contains collectives.

    Args:
        targets: of this rank in the step.
        choices: the choice of each micro-batch.
        output: the head's output of the step.
        row_name: the name of a row in messages.
    """
    keys, losses = targets.keys.flatten(), output.losses.flatten()
    of_choices = zip(choices, losses.view(len(choices), -1), strict=True)
    unsortable = torch.cat([_unrankable(choice, part) for choice, part in of_choices])
    without_loss = output.mask.flatten() & ~torch.isfinite(losses)
    return _sentence(unsortable=keys[unsortable], without_loss=keys[without_loss], row_name=row_name)


def _unrankable(choice: Choice, losses: Tensor) -> Tensor:
    """(T,) bool. All false for a choice that was made before the passes, or that takes every target."""
    return torch.zeros_like(choice.mask) if isinstance(choice, Every | Known) else choice.unsortable(losses)


def _sentence(*, unsortable: Tensor, without_loss: Tensor, row_name: Callable[[int], str]) -> str:
    causes = ("{:,} targets cannot be sorted, their criterion is NaN or infinite", "{:,} losses are NaN or infinite")
    of_ranks = gather_objects([_counted(keys) for keys in (unsortable, without_loss)])
    for cause, found in zip(causes, zip(*of_ranks, strict=True), strict=True):
        targets = sum(count for count, _ in found)
        if targets:
            rows = sorted({row for _, first_rows in found for row in first_rows})
            named = ", ".join(map(row_name, rows[:_MOST_ROWS_NAMED])) + (", …" if len(rows) > _MOST_ROWS_NAMED else "")
            return f"{cause.format(targets)}, in the rows {named}"
    return "the gradient is NaN or infinite although every loss is a number"


def _counted(keys: Tensor) -> tuple[int, list[int]]:
    """The number of targets, and their first rows: one more than are named."""
    return len(keys), row_of(keys).unique()[: _MOST_ROWS_NAMED + 1].tolist()
