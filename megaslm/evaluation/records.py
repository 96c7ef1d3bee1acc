"""What an evaluation writes: one line per answer, and results.json."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from megaslm.tasks.losses import MeasuredItem

RESULTS = "results.json"


class Record(BaseModel):
    """Part of a file that an evaluation writes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Answered(Record):
    """One graded answer."""

    item: int
    """Its place in the task, from 0."""
    sample: int
    question: str
    reference: str
    """The right answer."""
    output: str
    """All that the model wrote, with the outputs of programs."""
    answer: str
    """What the grader read in it."""
    verdict: Literal["right", "wrong", "ungradable"]
    tokens: int | None
    ended: str
    """eos, stop or length."""
    programs: int
    programs_failed: int | None = None
    """Programs that ended in an error, were killed or timed out; null where an earlier build answered."""
    programs_timed_out: int


class HarnessItem(Record):
    """One item of a task of lm-eval."""

    item: int
    """Its place in the task, from 0."""
    task: str
    """The part of the task, such as a subject of MMLU; else the task."""
    document: int
    """Its place in the part, from 0."""
    document_sha256: str
    target: str
    """The right answer, or the index of the right choice."""
    responses: list[Any]
    """What lm-eval compares: the answer that it read in the output, or of each choice the log-likelihood in nats and
    whether it is greedy."""
    score: float
    """By the metric that is reported."""
    metrics: dict[str, float]
    """By each metric that has a number for one item."""


class Batch(Record):
    """The outcome of one batch of a task."""

    answers: tuple[Answered, ...] = ()
    measured: tuple[MeasuredItem, ...] = ()


class Estimate(Record):
    """A mean over items, with its standard error and its 95% interval; null where there are too few items.

    The interval is that of bootstrap resamples. For shares of equal items, such as 0 of n, it is Wilson's.
    """

    mean: float
    standard_error: float | None
    low: float | None
    high: float | None


class TaskResult(Record):
    """The result of one task."""

    items: int
    samples: int
    grader: str
    accuracy: Estimate | None = None
    """Of the answers, the mean over samples for each item."""
    pass_at: dict[int, Estimate] = {}
    """pass@k by k."""
    majority_at: dict[int, Estimate] = {}
    """maj@k by k."""
    empty: int = 0
    """Answers in which the grader found none."""
    truncated: int = 0
    """Outputs that reached the most tokens."""
    ungradable: int = 0
    """Answers over which the grader took too long or failed."""
    programs: int = 0
    """Programs that were run. The next three are null without an interpreter and where an earlier build answered."""
    answers_with_programs: int | None = None
    """Answers of which at least one program was run."""
    answers_with_done_programs: int | None = None
    """Answers of which at least one program ran to its end without an error."""
    programs_failed: int | None = None
    """Programs that ended in an error, were killed or timed out."""
    programs_timed_out: int = 0
    tokens: int | None = None
    """Generated tokens; null where a server does not say."""
    nats_per_token: Estimate | None = None
    """Of the written solutions, the mean over items of the loss per token."""
    bits_per_byte: float | None = None
    """Of all written solutions together."""
    choice_accuracy: Estimate | None = None
    """By the likelihood of the choices' texts."""
    choice_accuracy_per_byte: Estimate | None = None
    """By the likelihood per byte of the choices' texts."""
    metrics: dict[str, float] = {}
    """Metrics of lm-eval, as it reports them."""
    task_sha256: str
    """Of the task's settings."""
    data_sha256: str
    """Of the items' questions and right answers."""


class Description(Record):
    """What was measured, and how; a resumed evaluation must have the same."""

    model: str
    weights_sha256: str | None
    """null with a server."""
    server: bool
    measure: str
    precision: str
    tasks: dict[str, str]
    """The hash of each task's settings."""
    data: dict[str, str]
    """The hash of each task's items."""
    limit: int | None
    samples: int
    temperature: float
    top_p: float
    seed: int
    batch_rows: int
    megaslm_version: str


class ModelCost(Record):
    """What a model cost: its run, the scoring of the run's datasets and the training of their references."""

    tokens_seen: int
    """Of the run alone."""
    tokens_selected: int
    seconds: float
    gpu_hours: float
    """0 on CPUs."""
    is_complete: bool
    """False where a dataset does not say what its scoring or its reference cost, which is then left out."""


class Results(Record):
    """The content of results.json."""

    description: Description
    tasks: dict[str, TaskResult]
    cost: ModelCost | None = None
    """null where no cost.json is beside the model, and with a server."""
    seconds: float
    """Of the last run of the evaluation."""
