"""What an evaluation is asked to do."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megaslm.config.schema import Precision
from megaslm.config.task import Suite, Task


@dataclass(frozen=True)
class EvaluationRequest:
    """One call of `evaluate`."""

    model: str
    """A Hugging Face folder; with `server`, the name by which it knows the model."""
    tasks: dict[str, Task]
    """By name."""
    data: Path
    """The folder of the tasks' files."""
    output: Path
    measure: Literal["answers", "losses", "lm-eval"] = "answers"
    """Generated answers and their grades, or the losses of written solutions and of choices, or lm-eval's metrics."""
    suite: Suite | None = None
    """Tasks and published accuracies that the table at the end shows."""
    server: str | None = None
    """URL of an OpenAI-compatible completions server; None generates in this process."""
    precision: Precision = "auto"
    limit: int | None = None
    """The first items of each task; None for all."""
    samples: int = 1
    """Answers to each item."""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    k: tuple[int, ...] = field(default=(1,))
    """pass@k and maj@k are reported for these k."""
    batch_rows: int = 16
    """Prompts in a batch."""
    sandbox_workers: int = 4
    unsafe_programs: bool = False
    """Run model-written programs without a sandbox."""
