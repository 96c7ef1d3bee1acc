"""What the YAML files of the suite say: its sizes, its arms, and the models that the arms need."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from megaslm.config.load import load
from megaslm.config.section import NonNegative, Positive, Section
from megaslm.errors import ConfigError

HERE = Path(__file__).parent
BASELINE = "clm"
"""The arm that all others are compared with."""
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


class Suite(Section):
    """Sizes, and what all runs share."""

    seeds: Seeds
    corpus_bytes: Positive
    """Bytes of text in the corpus. A run should read no more than one epoch of it."""
    heldout_bytes: Positive
    """Bytes of each held-out text."""
    vocab_size: Positive
    validation_rows: ValidationRows
    run: dict[str, Any]
    """Settings of a run, without its data and its folder."""

    @property
    def seq_len(self) -> int:
        return int(self.run["data"]["seq_len"])


class Training(Section):
    """An arm, or a model that arms need."""

    headline: Positive | None = None
    """Its place among the headline arms, which have more seeds and are trained first; null for the other arms."""
    starts_from: str | None = "base"
    """The model whose weights it begins with; null for random weights."""
    reads: Annotated[tuple[Literal["corpus", "curated"], ...], Field(min_length=1)] = ("corpus",)
    """What it is trained on; of several texts every row is read equally often."""
    scored_by: str | None = None
    """The model whose losses on the corpus it selects by."""
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
