"""A task of `evaluate`: its data file, its prompt and its grader, one YAML in `configs/eval/tasks/` each."""

import re
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from megaslm.config.section import NonNegative, Positive, Section
from megaslm.config.template import template_parts

TASK_FILES = (".yaml", ".yml")
"""How the name of a task file ends."""
Grader = Literal["strict", "rho", "tora", "letter"]
"""How an answer is compared with the right one. `strict` is math-verify; `rho` and `tora` are rules of published
results; `letter` compares the letters of multiple choice."""
RecordFormat = Literal["jsonl", "json", "json-object", "json-files", "csv", "parquet", "xml", "text"]


class Example(Section):
    """A solved example of the prompt."""

    question: str
    solution: str
    """The reasoning and the answer, in the words that a model is to use."""


class ExamplesFromFile(Section):
    """Examples from a file of the task's own format, such as its train set: the first ones."""

    files: Annotated[tuple[str, ...], Field(min_length=1)]
    """Below the folder of --data."""
    count: Positive
    """How many."""


class Task(Section):
    """One set of problems with answers."""

    files: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files or globs below the folder of --data, in the format in which they are published."""
    format: RecordFormat
    """jsonl · json: one array of records · json-object: one object, whose values are records · json-files: one record a
    file · csv · parquet · xml · text: each match of `record_pattern`."""
    columns: tuple[str, ...] = ()
    """csv: the names of its columns, where the file has no line with them."""
    element: str = "Problem"
    """xml: the element that is a record. Its children and attributes are fields."""
    record_pattern: str | None = None
    """text: a regular expression, whose named groups are the fields of a record; `.` matches line ends too."""
    leave_out: dict[str, str] = Field(default_factory=dict)
    """Leave out a record where this field matches the regular expression somewhere."""
    source: str = ""
    """Where the data comes from, and its licence."""

    question: str
    """The question, with fields in braces."""
    when_present: dict[str, str] = Field(default_factory=dict)
    """Text after the question where this field is there and not empty, with fields in braces."""
    answer: str
    """The right answer, with fields in braces."""
    answer_pattern: str | None = None
    """A regular expression; its first group, where it is found in `answer`, is the right answer."""
    answer_in: Literal["text", "boxed"] = "text"
    """boxed: `answer` is a solution; the right answer is its last \\boxed{}."""
    solution: str | None = None
    """A written solution, with fields in braces, for the loss in nats and bits per byte."""
    choices: tuple[str, ...] = ()
    """Multiple choice by likelihood: the text of each choice, with fields in braces; the letters are A, B, C, …"""

    prompt: str = "Question: {question}\nAnswer:"
    """The prompt of a question, after the examples."""
    example: str = "Question: {question}\nAnswer: {solution}\n\n"
    """An example, as it stands in the prompt."""
    examples: tuple[Example, ...] = ()
    """Solved examples at the prompt's beginning."""
    examples_from: ExamplesFromFile | None = None
    """Examples from a file, instead of `examples`."""
    stop: tuple[str, ...] = ("\n\nQuestion:",)
    """Texts at which an answer ends."""
    max_new_tokens: Positive = 1024
    """Most tokens of an answer; of each turn, with the interpreter."""

    grader: Grader = "rho"
    """How answers are graded."""
    interpreter: bool = False
    """Whether programs in the answer are run, and their output is given to the model (ToRA)."""
    most_programs: NonNegative = 4
    """interpreter: how many programs one answer may run."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Task":
        for name, allowed in (("prompt", {"question"}), ("example", {"question", "solution"})):
            if unknown := sorted(_fields(name, getattr(self, name)) - allowed):
                raise ValueError(f"{name} names {', '.join(unknown)}; it has {' and '.join(sorted(allowed))}")
        texts = {f"when_present.{field}": text for field, text in self.when_present.items()}
        texts |= {"question": self.question, "answer": self.answer, "solution": self.solution or "{question}"}
        for name, text in [*texts.items(), *(("choices", choice) for choice in self.choices)]:
            _fields(name, text)
        if self.examples and self.examples_from is not None:
            raise ValueError("only one of examples and examples_from can be set")
        if self.columns and self.format != "csv":
            raise ValueError(f"columns is for format csv; found format {self.format}")
        for name, pattern in (("answer_pattern", self.answer_pattern), ("record_pattern", self.record_pattern)):
            if pattern is not None and _compiled(name, pattern).groups < 1:
                raise ValueError(f"{name} has no group; put what is to be found into parentheses")
        for field, pattern in self.leave_out.items():
            _compiled(f"leave_out.{field}", pattern)
        if (self.record_pattern is not None) != (self.format == "text"):
            raise ValueError(f"record_pattern and format text belong together; found format {self.format}")
        return self


def _fields(name: str, template: str) -> set[str]:
    try:
        return {part.field for part in template_parts(template) if part.field is not None}
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _compiled(name: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name} is not a regular expression: {error}") from error


def task_name(given: str) -> str:
    """The name of a task that is given by its name or by the path of its file."""
    return PurePath(given).stem if given.endswith(TASK_FILES) else given


class PublishedRow(Section):
    """Accuracies of a model as its authors published them, in percent."""

    model: str
    source: str
    """Paper and table."""
    accuracy: dict[str, float]
    """By task."""
    tokens_seen: Positive | None = None
    """Tokens of its continued pretraining."""
    tokens_selected: Positive | None = None
    """Those of them that it was trained on."""


class HarnessTask(Section):
    """How a task of lm-eval is measured."""

    shots: NonNegative | None = None
    """Solved examples in the prompt; null for as many as lm-eval's task file says."""
    metric: str | None = None
    """The metric that is reported as the accuracy, such as acc_norm, or `exact_match,FILTER`; null for the first one of
    lm-eval's task file."""


class Suite(Section):
    """Tasks that are reported together."""

    tasks: tuple[str, ...] = ()
    """Names of task files, without .yaml."""
    lm_eval: dict[str, HarnessTask] = Field(default_factory=dict)
    """Instead of `tasks`: tasks of lm-eval, by its names."""
    published: tuple[PublishedRow, ...] = ()
    """Rows of the table beside the measured one."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tasks, in the order of the table."""
        return tuple(map(task_name, self.tasks)) or tuple(self.lm_eval)

    @model_validator(mode="after")
    def _has_tasks(self) -> "Suite":
        if bool(self.tasks) == bool(self.lm_eval):
            raise ValueError("a suite has either tasks or lm_eval")
        return self
