"""Text files to a dataset: packed rows of tokens in shards, with a manifest."""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from megaslm.config.recipe import Recipe
from megaslm.config.share import Share
from megaslm.data.dataset.manifest import INPUTS, TOKENIZER, Manifest
from megaslm.data.preparing.inputs import Inputs, joined
from megaslm.data.preparing.prepare_task import Job, TaskProgress
from megaslm.data.preparing.provenance import manifest_of, require_enough, require_same
from megaslm.data.preparing.task_pool import run_tasks
from megaslm.data.preparing.workplace import Plan, Workplace, claimed
from megaslm.data.storage.output import output_at
from megaslm.data.text.tasks import Task, files_sha256, plan_tasks, recipe_sha256
from megaslm.data.tokenizing.tokenizer import TokenizerFacts, tokenizer_facts
from megaslm.data.tokenizing.tokenizer_origin import make_tokenizer
from megaslm.errors import DataError
from megaslm.jobs.durable import write_file
from megaslm.jobs.ledger import keeping_what_is_done
from megaslm.jobs.read_back import read_back


@dataclass(frozen=True)
class PrepareProgress:
    """How far a run has come."""

    tasks: int
    """In all, of this run's share."""
    tasks_done: int
    """Those of earlier runs included."""
    input_bytes: int
    """In all, as the files have them."""
    input_bytes_done: int
    """Those of earlier runs included."""
    input_bytes_before: int
    """Of earlier runs alone."""
    text_bytes: int = 0
    """UTF-8 bytes of the documents that this run kept."""
    tokens: int = 0
    """Valid targets that this run wrote."""
    seconds: float = 0.0
    """Since this run began with its tasks."""


OnProgress = Callable[[PrepareProgress], None]
_REMEDY = "remove the file, and the text is read once to compare it"


def prepare(
    recipe: Recipe,
    output: str | Path,
    *,
    working: Path | None = None,
    workers: int | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> Manifest:
    """Make the dataset of a recipe in `output`, a folder or a URL, and give its manifest.

    The dataset is the same, byte for byte, for any number of `workers` (null: one a core). A run that was interrupted
    goes on where it stopped; a finished dataset of the same recipe and files is left as it is. A URL needs `working`, a
    local folder for parts on their way there. With more than one worker, a script that calls this needs the usual
    `if __name__ == "__main__":`.

    Raises DataError for text, tokenizers and folders that do not serve, naming file and line; MegaSLMError where the
    disk is full or a worker dies again and again.
    """
    work = _Work(recipe, output, working)
    if (manifest := work.finished()) is not None:
        return manifest
    with work.claimed(alone=True) as workplace:
        work.do(work.tasks, workplace, workers, on_progress)
        return work.assemble(workplace)


def prepare_share(
    recipe: Recipe,
    output: str | Path,
    share: Share,
    *,
    working: Path | None = None,
    workers: int | None = None,
    on_progress: OnProgress = lambda progress: None,
) -> None:
    """Do a share of the tasks and leave `output` unfinished; the other shares may be done at the same time, elsewhere.

    Raises as `prepare` does.
    """
    work = _Work(recipe, output, working)
    if work.finished() is None:
        with work.claimed(alone=False) as workplace:
            work.do(share.of(work.tasks), workplace, workers, on_progress)


def finish(recipe: Recipe, output: str | Path, *, working: Path | None = None) -> Manifest:
    """Make a dataset of what all shares have done. Raises DataError where a task is not done, and says which share."""
    work = _Work(recipe, output, working)
    if (manifest := work.finished()) is not None:
        return manifest
    with work.claimed(alone=True) as workplace:
        missing = [task.number for task in work.tasks if not workplace.is_done(task.name)]
        if missing:
            shown = ", ".join(str(number) for number in missing[:10]) + (" …" if len(missing) > 10 else "")
            raise DataError(
                f"{output}: {len(missing)} of {len(work.tasks)} tasks are not done ({shown}; task n belongs to part "
                "n % COUNT + 1 of COUNT): run their parts again, or all that is missing with a plain `megaslm prepare`"
            )
        return work.assemble(workplace)


class _Work:
    """The making of one dataset."""

    def __init__(self, recipe: Recipe, output: str | Path, working: Path | None) -> None:
        self._passed_over: Counter[str] = Counter()
        self.tasks = plan_tasks(recipe, self._passed_over)
        self._recipe = recipe
        self._output, self._folder = output_at(str(output), working)
        self._plan = Plan(recipe_sha256=recipe_sha256(recipe), files_sha256=files_sha256(self.tasks))

    def finished(self) -> Manifest | None:
        """The manifest of the dataset, where it is there already and is the one that would be made."""
        manifest = self._output.finished()
        if manifest is not None:
            noted = self._output.beside(INPUTS)
            inputs = Inputs() if noted is None else read_back(Inputs, noted, f"{self._output.place}/{INPUTS}", _REMEDY)
            require_same(manifest, self._recipe, self.tasks, self._output.place, inputs)
            # A kill may have come between the manifest and this.
            self._tidy_up()
        return manifest

    @contextmanager
    def claimed(self, *, alone: bool) -> Iterator[Workplace]:
        """With the output claimed and its tokenizer there."""
        with keeping_what_is_done(self._folder), claimed(self._folder, alone=alone) as workplace:
            with workplace.setting_up():
                workplace.begin(self._plan, self.tasks, alone=alone)
                self._make_tokenizer(workplace)
                self._output.begin(self._plan.model_dump_json())
            yield workplace

    def _make_tokenizer(self, workplace: Workplace) -> None:
        if not (self._folder / TOKENIZER).is_dir():
            try:
                make_tokenizer(self._recipe, self.tasks, self._folder / TOKENIZER)
            except BaseException:
                # So that another recipe may be tried here; nothing was made by this one.
                workplace.forget_plan()
                raise

    def do(self, tasks: Sequence[Task], workplace: Workplace, workers: int | None, on_progress: OnProgress) -> None:
        """Those of the tasks that are not done."""
        waiting = [task for task in tasks if not workplace.is_done(task.name)]
        before = _input_bytes(tasks) - _input_bytes(waiting)
        progress = PrepareProgress(
            tasks=len(tasks),
            tasks_done=len(tasks) - len(waiting),
            input_bytes=_input_bytes(tasks),
            input_bytes_done=before,
            input_bytes_before=before,
        )
        started = time.monotonic()

        def add_up(running: list[TaskProgress], done: list[TaskProgress]) -> None:
            nonlocal progress
            progress = _added(replace(progress, tasks_done=progress.tasks_done + len(done)), done)
            on_progress(replace(_added(progress, running), seconds=time.monotonic() - started))

        jobs = [
            Job(task, self._recipe, self._facts, self._folder / TOKENIZER, self._folder, self._output)
            for task in waiting
        ]
        with self._saying_what_is_in_the_way(workplace):
            run_tasks(jobs, self._folder, workers or len(os.sched_getaffinity(0)), add_up)

    def assemble(self, workplace: Workplace) -> Manifest:
        """Join what the tasks wrote, all of which are done, and declare the dataset finished."""
        outcomes = [outcome for task in self.tasks if (outcome := workplace.outcome(task.name)) is not None]
        manifest = manifest_of(self._recipe, outcomes, self._folder / TOKENIZER, self._facts, self._passed_over)
        with self._saying_what_is_in_the_way(workplace):
            require_enough(self._recipe, manifest)
        inputs = joined(outcome.inputs for outcome in outcomes)
        write_file(self._folder / INPUTS, inputs.model_dump_json(indent=1) + "\n")
        self._output.finish(manifest)
        self._tidy_up()
        return manifest

    @contextmanager
    def _saying_what_is_in_the_way(self, workplace: Workplace) -> Iterator[None]:
        """A mistake in recipe or text is mended by another recipe, often, which what is done here is not for."""
        try:
            yield
        except DataError as error:
            if not workplace.has_outcomes():
                raise
            raise DataError(
                f"{error} ({self._folder} holds what this recipe has made so far: remove it before you prepare by "
                "another, or choose another output folder)"
            ) from error

    @cached_property
    def _facts(self) -> TokenizerFacts:
        return tokenizer_facts(self._folder / TOKENIZER)

    def _tidy_up(self) -> None:
        self._output.tidy_up()
        Workplace(self._folder).remove()


def _input_bytes(tasks: Sequence[Task]) -> int:
    return sum(task.input_bytes for task in tasks)


def _added(progress: PrepareProgress, tasks: list[TaskProgress]) -> PrepareProgress:
    return replace(
        progress,
        input_bytes_done=progress.input_bytes_done + sum(task.input_bytes for task in tasks),
        text_bytes=progress.text_bytes + sum(task.text_bytes for task in tasks),
        tokens=progress.tokens + sum(task.tokens for task in tasks),
    )
