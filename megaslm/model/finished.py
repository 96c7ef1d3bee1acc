"""Whether a model is that of a finished run."""

from pathlib import Path

from megaslm.dataset.cost_file import read_cost


def unfinished(steps: int, total_steps: int) -> str | None:
    """How far a run is whose model was saved after `steps` of `total_steps`; None where it is finished."""
    if steps >= total_steps:
        return None
    return f"step {steps:,} of {total_steps:,}: the run is not finished"


def unfinished_export(folder: Path) -> str | None:
    """How far the run was whose model `megaslm export` wrote to `folder`.

    None where it was finished, and where cost.json does not say: it is missing, of an earlier build or of another
    program.
    """
    cost = read_cost(folder)
    if cost is None or cost.training.steps is None or cost.training.total_steps is None:
        return None
    return unfinished(cost.training.steps, cost.training.total_steps)


def unfinished_reference(folder: Path) -> str | None:
    """A warning where a reference was exported from an unfinished run; else as `unfinished_export`."""
    how_far = unfinished_export(folder)
    if how_far is None:
        return None
    return (
        f"{folder} was exported at {how_far}, and all rows get the losses of a reference that is trained halfway; "
        "finish the run, export it again and score with that"
    )
