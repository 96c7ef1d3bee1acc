"""cost.json of a run or of an exported model, as `megaslm.training.saving` writes it and earlier builds did."""

from pathlib import Path

from pydantic import BaseModel, ValidationError

from megaslm.dataset.manifest import COST


class StageCost(BaseModel):
    """The cost of one stage."""

    seconds: float
    gpu_hours: float | None = None


class TrainingCost(StageCost):
    """The cost of a training, over all attempts."""

    tokens_seen: int | None = None
    tokens_selected: int | None = None
    ranks: int | None = None
    steps: int | None = None
    total_steps: int | None = None


class DatasetCost(BaseModel):
    """The cost of a scored dataset: of its scoring, and of the training of its reference where that is known."""

    scoring: StageCost | None = None
    reference_training: TrainingCost | None = None


class RunCost(BaseModel):
    """The cost of a run. `scoring` and `reference_training` are sums over its datasets; None where it reads none."""

    training: TrainingCost
    scoring: StageCost | None = None
    reference_training: StageCost | None = None
    datasets: dict[str, DatasetCost] = {}
    """By the setting that names each."""

    @property
    def is_complete(self) -> bool:
        """Whether the sums have the costs of all datasets. A run that reads none has nothing to lack."""
        return all(one.scoring and one.reference_training for one in self.datasets.values())


def read_cost(folder: Path) -> RunCost | None:
    """The cost in a folder; None where it has no cost.json, or one that is not MegaSLM's."""
    path = folder / COST
    try:
        return RunCost.model_validate_json(path.read_bytes()) if path.is_file() else None
    except ValidationError:
        return None
