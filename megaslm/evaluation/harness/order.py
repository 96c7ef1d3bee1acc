"""What the process that runs lm-eval is asked to do, and what it gives back: files in the working folder."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from megaslm.config.task import HarnessTask
from megaslm.evaluation.records import HarnessItem, TaskResult

ORDER = "order.json"
REFUSAL = "refusal.txt"
"""Why the order cannot be done, for its user."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Order(_Message):
    """Tasks of lm-eval for one model."""

    model: str
    """A Hugging Face folder, as an absolute path."""
    tasks: dict[str, HarnessTask]
    """By lm-eval's names."""
    include_path: str | None
    """A folder with task files of one's own."""
    dtype: str
    """torch's name of the weights' type."""
    device: str
    batch_rows: int
    limit: int | None
    """The first items of each task; None for all."""
    download: bool
    """Whether lm-eval may fetch data that is not on this machine."""
    unsafe_programs: bool
    """Whether tasks may run model-written programs, which lm-eval does without a sandbox."""


class Outcome(_Message):
    """One task, done."""

    result: TaskResult
    items: tuple[HarnessItem, ...]
    rows: dict[str, dict[str, Any]]
    """lm-eval's own table: the metrics of the task, and of the tasks that it consists of."""


def outcome_file(folder: Path, task: str) -> Path:
    """The file of a task's outcome; it is there once the task is done."""
    return folder / f"task-{task}.json"
