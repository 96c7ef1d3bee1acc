"""The cost of a model: cost.json, which `export` writes beside it."""

from pathlib import Path

from megaslm.dataset.cost_file import read_cost
from megaslm.evaluation.records import ModelCost


def model_cost(folder: Path) -> ModelCost | None:
    """The cost of the model in a folder; None where no cost.json of MegaSLM is beside it."""
    cost = read_cost(folder)
    if cost is None or cost.training.tokens_seen is None or cost.training.tokens_selected is None:
        return None
    stages = [stage for stage in (cost.training, cost.scoring, cost.reference_training) if stage is not None]
    hours = [stage.gpu_hours for stage in stages if stage.gpu_hours is not None]
    if len(hours) < len(stages):
        return None
    return ModelCost(
        tokens_seen=cost.training.tokens_seen,
        tokens_selected=cost.training.tokens_selected,
        seconds=sum(stage.seconds for stage in stages),
        gpu_hours=sum(hours),
        is_complete=cost.is_complete,
    )
