"""The threshold of policy `dataset`: the loss that cuts off the easiest targets of all data of a run."""

from contextlib import suppress
from decimal import ROUND_HALF_UP

from megaslm.config.schema import RunConfig
from megaslm.dataset.loss_counts import LossCounts
from megaslm.dataset.manifest import SCORES
from megaslm.dataset.score_summary import ScoreSummary, parse_scores, read_scores
from megaslm.errors import DataError
from megaslm.storage.remote import NotThere, read_bytes
from megaslm.training.training_data import TrainingData, TrainingDataset


def with_dataset_threshold(config: RunConfig, data: TrainingData) -> RunConfig:
    """The run with the `slm.threshold` of its data under policy `dataset`; any other run as it is.

    N valid targets are in the training rows, each counted once. The K = ⌊k·N + ½⌋ of smallest reference loss are at or
    above the threshold, with those of equal loss. K is at least 1.

    Raises DataError where a dataset does not count its losses.
    """
    slm = config.slm
    if config.train.objective != "slm" or slm.policy != "dataset":
        return config
    counts = sum((_counts(dataset) for dataset in data.datasets), start=LossCounts.none())
    kept = int((slm.keep_ratio * counts.targets).to_integral_value(ROUND_HALF_UP))
    threshold = -counts.loss_at(max(1, kept))
    return config.model_copy(update={"slm": slm.model_copy(update={"threshold": threshold})})


def _counts(dataset: TrainingDataset) -> LossCounts:
    scores, found = _scores(dataset), LossCounts.none()
    for domain in dataset.domains:
        text = None if scores is None else scores.of_domain("train", domain).loss_counts
        if text is None:
            raise DataError(
                f"{dataset.setting} = {dataset.source.place} has no {SCORES} that counts the losses of {domain}, which "
                "slm.policy dataset needs; score the dataset again"
            )
        found += LossCounts.parse(text)
    return found


def _scores(dataset: TrainingDataset) -> ScoreSummary | None:
    if dataset.source.url is None:
        return read_scores(dataset.source.path)
    url = f"{dataset.source.url}/{SCORES}"
    with suppress(NotThere):
        return parse_scores(read_bytes(url), url)
    return None
