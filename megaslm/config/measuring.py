"""The sections of a run's configuration that say what is measured beside training: held-out text, tasks, probe rows."""

from typing import Literal

from pydantic import Field

from megaslm.config.section import Positive, Section, Split


class ValidationSet(Section):
    """One held-out set."""

    dataset: str
    """The dataset folder."""
    split: Split = "heldout"
    """The split to read."""
    domains: tuple[str, ...] | None = None
    """Domains to read; null means all. Losses are reported per domain and for all together."""
    max_rows: Positive | None = None
    """Most rows per domain, spread evenly over it; null means all."""


class ValidationTask(Section):
    """A task on which the model in training is measured."""

    task: str
    """Its name in configs/eval/tasks, or the path of a task file."""
    data: str = "data/eval"
    """The folder of its data, as --data of `megaslm evaluate`."""
    measure: Literal["answers", "losses"] = "answers"
    """answers: generate and grade · losses: of written solutions and of choices, as --measure of `megaslm evaluate`."""
    max_items: Positive = 64
    """The first items; each validation measures all of them."""
    max_new_tokens: Positive = 128
    """Most tokens of an answer."""


class ValidationSection(Section):
    """Losses on held-out text, over all targets or over those that a set's target mask leaves; accuracies and losses
    on tasks."""

    sets: dict[str, ValidationSet] = Field(default_factory=dict)
    """Named held-out sets."""
    tasks: dict[str, ValidationTask] = Field(default_factory=dict)
    """Named tasks: answers are generated, greedily, and graded, or losses are measured."""
    every_tokens: Positive | None = None
    """Targets between two validations; null validates only before the first step and at the end. One that would come
    less than a tenth of this interval before the end is left out."""
    batch_rows: Positive = 8
    """Rows per rank and forward pass."""


class ProbeSection(Section):
    """The losses of single tokens over the run, for `megaslm dynamics`."""

    every_tokens: Positive | None = None
    """Targets between two measurements of the probe rows, each of one forward pass over them. The first is before the
    first step, the last at the end. One that would come less than a tenth of this interval before the end is left out.
    null measures none."""
    rows: Positive = 64
    """Probe rows, shared evenly by the domains and spread evenly over each. They stay the same for the whole run."""
    dataset: str | None = None
    """The dataset of the probe rows, a folder or a URL; null means the run's training data. Held-out rows are taken,
    of a domain without any its training rows."""
