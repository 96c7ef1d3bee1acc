"""Where the weights of a run come from, and whether a run can learn from its reference then."""

from collections.abc import Iterator
from pathlib import Path

from megaslm.config.schema import RunConfig
from megaslm.engine.distributed import on_first_rank
from megaslm.model.weight_files import weights_sha256
from megaslm.training.export import newest_weights
from megaslm.training.run_folder import RunFolder
from megaslm.training.training_data import TrainingData


def pretrained_folder(config: RunConfig) -> Path | None:
    """The Hugging Face folder that the run starts from: given, or made from another run's newest checkpoint.

    Called by every rank. None where the weights are drawn.
    """
    if config.model.from_pretrained is not None:
        return Path(config.model.from_pretrained)
    if config.model.from_run is not None:
        other = RunFolder(Path(config.model.from_run))
        return on_first_rank(lambda: newest_weights(other))
    return None


def doubts(config: RunConfig, data: TrainingData, origin: Path | None) -> Iterator[str]:
    """What a run is warned of: that its reference is the model it starts from, so that no target has an excess loss.

    Reads all weights of `origin`.
    """
    if origin is None or config.train.objective != "slm" or config.slm.score != "excess":
        return
    weights = weights_sha256(origin)
    for dataset in data.datasets:
        reference = dataset.manifest.reference
        if reference is not None and reference.weights_sha256 == weights:
            yield (
                f"{dataset.source.place} was scored by the very model that this run starts from ({origin}): its excess "
                "loss is 0 everywhere but for rounding, and what is selected first is chance; score the data with a "
                "reference that was trained on the text you want"
            )
