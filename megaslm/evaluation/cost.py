"""The cost of a model: cost.json, which `export` writes beside it."""

from pathlib import Path

from pydantic import BaseModel, ValidationError

from megaslm.dataset.manifest import COST
from megaslm.evaluation.records import ModelCost

_BEFORE_TRAINING = frozenset({"scoring", "reference_training"})


class _Stage(BaseModel):
    seconds: float
    gpu_hours: float


class _Training(_Stage):
    tokens_seen: int
    tokens_selected: int


class _Cost(BaseModel):
    """The parts of cost.json that are added up. A run without a reference has `training` alone."""

    training: _Training
    scoring: _Stage | None = None
    reference_training: _Stage | None = None
    datasets: dict[str, dict[str, object]] = {}


def model_cost(folder: Path) -> ModelCost | None:
    """The cost of the model in a folder; None where no cost.json of MegaSLM is beside it."""
    path = folder / COST
    try:
        cost = _Cost.model_validate_json(path.read_bytes()) if path.is_file() else None
    except ValidationError:
        return None
    if cost is None:
        return None
    stages = [stage for stage in (cost.training, cost.scoring, cost.reference_training) if stage is not None]
    return ModelCost(
        tokens_seen=cost.training.tokens_seen,
        tokens_selected=cost.training.tokens_selected,
        seconds=sum(stage.seconds for stage in stages),
        gpu_hours=sum(stage.gpu_hours for stage in stages),
        is_complete=all(stages.keys() >= _BEFORE_TRAINING for stages in cost.datasets.values()),
    )
