"""What the YAML files of the suite say: its sizes, its arms, and the models that the arms need."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from megaslm.config.load import load
from megaslm.config.section import NonNegative, Positive, Section
from megaslm.errors import ConfigError

HERE = Path(__file__).parent
BASELINE = "clm"
"""The arm that all others are compared with."""
AT = "@"
"""Between the name of a pair and the size of its models."""
CONTROL = "random-0.6"
"""The arm that drops tokens without looking at them."""


class Seeds(Section):
    """How often an arm is trained. The seeds count from 1; shared models have seed 0."""

    headline: Positive
    other: NonNegative


class ValidationRows(Section):
    """Rows of each held-out text whose loss is measured over and over."""

    target: Positive
    near: Positive
    corpus: Positive


class Scaling(Section):
    """Models of other sizes than the suite's own. The pair NAME at a size is called NAME@SIZE."""

    pairs: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: Positive
    sizes: dict[str, dict[str, Any]]
    """The shape of each size, over `run.model.from_scratch`."""


class Suite(Section):
    """Sizes, and what all runs share."""

    seeds: Seeds
    corpus_bytes: Positive
    """Bytes of text in the corpus. A run should read no more than one epoch of it."""
    heldout_bytes: Positive
    """Bytes of each held-out text."""
    vocab_size: Positive
    validation_rows: ValidationRows
    scaling: Scaling | None = None
    run: dict[str, Any]
    """Settings of a run, without its data and its folder."""

    @property
    def seq_len(self) -> int:
        return int(self.run["data"]["seq_len"])

    def sized_pairs(self, pairs: Iterable[str]) -> list[str]:
        """The names of those of the pairs that are measured at other sizes, with each size."""
        if self.scaling is None:
            return []
        return [f"{pair}{AT}{size}" for pair in self.scaling.pairs if pair in pairs for size in self.scaling.sizes]

    def for_pair(self, pair: str) -> "Suite":
        """The suite whose models have the size of a pair."""
        size = pair.partition(AT)[2]
        if self.scaling is None or not size:
            return self
        shape = {"model": {"from_scratch": self.scaling.sizes[size]}}
        return self.model_copy(update={"run": merged(self.run, shape)})


class Training(Section):
    """An arm, or a model that arms need."""

    headline: Positive | None = None
    """Its place among the headline arms, which have more seeds and are trained first; null for the other arms."""
    starts_from: str | None = "base"
    """The model whose weights it begins with; null for random weights."""
    reads: Annotated[tuple[Literal["corpus", "curated", "scarce"], ...], Field(min_length=1)] = ("corpus",)
    """What it is trained on; of several texts every row is read equally often."""
    scored_by: str | None = None
    """The model whose losses it selects by: that of seed 0, or of its own seed where it also starts from it."""
    top_logits: NonNegative = 0
    """How many of that model's most likely tokens the texts that it is trained on hold per target."""
    length: Annotated[float, Field(gt=0)] = 1.0
    """Its tokens, relative to `run.train.total_tokens` of the suite."""
    run: dict[str, Any] = Field(default_factory=dict)
    """Its settings over those of the suite."""


def read_suite(*, quick: bool) -> Suite:
    return load(Suite, HERE / ("quick.yaml" if quick else "suite.yaml")).value


def read_models() -> dict[str, Training]:
    return _read(HERE / "models")


def read_arms(folder: Path = HERE / "arms") -> dict[str, Training]:
    """The arms by their names, which are those of their files, the headline arms first, by their places.

    Raises ConfigError where a file is wrong, or names a model that there is not.
    """
    arms, models = _read(folder), read_models()
    for name, arm in arms.items():
        for key in ("starts_from", "scored_by"):
            model = getattr(arm, key)
            if model is not None and model not in models:
                raise ConfigError(f"{folder / name}.yaml: {key} = {model}: must be one of {', '.join(models)}")
    return dict(sorted(arms.items(), key=lambda item: item[1].headline or len(arms) + 1))


def merged(base: dict[str, Any], *changes: dict[str, Any]) -> dict[str, Any]:
    """The settings with the changes laid over them; mappings are merged, all else is replaced."""
    result = dict(base)
    for change in changes:
        for key, value in change.items():
            below = result.get(key)
            result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _read(folder: Path) -> dict[str, Training]:
    return {path.stem: load(Training, path).value for path in sorted(folder.glob("*.yaml"))}
