"""What was spent before a selective run: the training of the reference, and the scoring of the corpus."""

from dataclasses import dataclass
from pathlib import Path

from megaslm.config.schema import RunConfig
from megaslm.dataset.cost_file import RunCost, StageCost, TrainingCost
from megaslm.dataset.fit import reads_reference
from megaslm.dataset.score_summary import ScoreSummary, read_scores
from megaslm.errors import MegaSLMError
from megaslm.model.forward_flops import FORWARD_AND_BACKWARD, forward_flops_per_token, stated_shape
from megaslm.model.stated_config import stated_config


@dataclass(frozen=True)
class StageSpent:
    """What one stage took. None where it is unknown."""

    tokens: float | None = None
    selected_tokens: float | None = None
    seconds: float | None = None
    gpu_hours: float | None = None
    """None on CPUs too."""
    flops: float | None = None


NOTHING = StageSpent(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Before:
    """What was spent before a run, once for all runs on the same corpus."""

    corpus: tuple[str, ...]
    """The scored datasets, paths and URLs; none for a run that needs no reference."""
    reference_training: StageSpent
    scoring: StageSpent
    notes: tuple[str, ...] = ()
    """What is unknown."""

    def total(self, axis: str) -> float | None:
        """The sum of both on an axis; None where one of them is unknown."""
        parts = [getattr(stage, axis) for stage in (self.reference_training, self.scoring)]
        return None if None in parts else float(sum(parts))


def before(config: RunConfig, cost: RunCost | None, started_in: Path) -> Before:
    """What was spent before a run, as its cost.json and the scores.json of its datasets tell.

    `started_in` is the folder from which the run was started: its paths are relative to that.
    """
    if not reads_reference(config):
        return Before((), NOTHING, NOTHING)
    corpus = tuple(place if "://" in place else str(started_in / place) for place in corpus_of(config))
    datasets = {} if cost is None else cost.datasets
    # A sum over datasets lacks those whose costs are unknown. Earlier builds wrote the sums alone.
    sums = () if cost is None else (cost.scoring, cost.reference_training)
    has_all = cost is not None and cost.is_complete and all(one is not None and one.seconds > 0 for one in sums)
    scoring, training = (cost.scoring, cost.reference_training) if cost is not None and has_all else (None, None)
    notes = [] if has_all else ["what its reference and the scoring took is not known: cost.json does not tell"]
    operations = _Operations.of(config, corpus, started_in)
    if operations is None:
        notes.append(
            f"the FLOPs of its reference are not known: neither scores.json of {', '.join(corpus)} nor the folder "
            "slm.reference is to be found"
        )
    trained_on = [one.reference_training for one in datasets.values() if one.reference_training is not None]
    return Before(corpus, _training(training, trained_on, operations), _scoring(scoring, operations), tuple(notes))


def corpus_of(config: RunConfig) -> tuple[str, ...]:
    """The datasets that a run reads."""
    data = config.data
    return (data.train,) if data.train is not None else tuple(stream.dataset for stream in data.streams.values())


@dataclass(frozen=True)
class _Operations:
    """Operations of the reference."""

    forward_per_token: float
    scored_tokens: float | None
    """Targets that it scored; None without a scores.json."""

    @classmethod
    def of(cls, config: RunConfig, corpus: tuple[str, ...], started_in: Path) -> "_Operations | None":
        """By the scores.json of one dataset; else by the reference's folder. None for several datasets, whose
        references may differ."""
        if len(corpus) != 1:
            return None
        scores = _scores(Path(corpus[0]))
        if scores is not None:
            return cls(scores.forward_flops_per_token, float(scores.targets))
        folder = config.slm.reference
        forward = None if folder is None else forward_flops_in(started_in / folder, config.data.seq_len)
        return None if forward is None else cls(forward, None)


def forward_flops_in(model: Path, seq_len: int) -> float | None:
    """Operations of the forward pass of the model in a folder, per token; None where its config.json does not tell."""
    try:
        shape = stated_shape(stated_config(model))
    except MegaSLMError:
        return None
    return None if shape is None else forward_flops_per_token(shape, seq_len)


def _scores(dataset: Path) -> ScoreSummary | None:
    try:
        return read_scores(dataset)
    except (MegaSLMError, OSError):
        return None


def _training(total: StageCost | None, trained_on: list[TrainingCost], operations: _Operations | None) -> StageSpent:
    if total is None:
        return StageSpent()
    # Datasets that one reference scored state the same training. Only then is the number of its tokens sure.
    first = trained_on[0] if trained_on and all(other == trained_on[0] for other in trained_on) else None
    tokens = None if first is None else first.tokens_seen
    return StageSpent(
        tokens=tokens,
        selected_tokens=None if first is None else first.tokens_selected,
        seconds=total.seconds,
        gpu_hours=total.gpu_hours or None,
        flops=None
        if tokens is None or operations is None
        else tokens * operations.forward_per_token * FORWARD_AND_BACKWARD,
    )


def _scoring(total: StageCost | None, operations: _Operations | None) -> StageSpent:
    tokens = None if operations is None else operations.scored_tokens
    return StageSpent(
        tokens=tokens,
        seconds=None if total is None else total.seconds,
        gpu_hours=None if total is None else total.gpu_hours or None,
        flops=None if tokens is None or operations is None else tokens * operations.forward_per_token,
    )
