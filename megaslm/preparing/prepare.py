"""Makes a dataset of text files: packed rows of tokens in shards, with a manifest."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path

from megaslm.config.cluster import Share
from megaslm.config.recipe import Recipe
from megaslm.corpus.readers import is_divisible
from megaslm.corpus.tasks import Task, files_sha256, plan_tasks, recipe_sha256
from megaslm.dataset.manifest import INPUTS, TOKENIZER, Manifest
from megaslm.dataset.output import output_at
from megaslm.errors import DataError, MegaSLMError
from megaslm.files import read_back, write_file
from megaslm.jobs.ledger import MOST_DEATHS, Drawn, draw_all, keeping_what_is_done, new_run_id
from megaslm.jobs.progress import Tally, Unwatched, Watcher
from megaslm.jobs.ray_workers import RayCluster
from megaslm.jobs.run import JobRun
from megaslm.observe.display import counted, size
from megaslm.preparing.inputs import Inputs, joined
from megaslm.preparing.prepare_task import PrepareSpec, run_task
from megaslm.preparing.provenance import PrepareLedger, PreparePlan, manifest_of, require_enough, require_same
from megaslm.preparing.tokenizer_training import make_tokenizer
from megaslm.tokenizer.tokenizer import TokenizerFacts, tokenizer_facts

# Modules that take seconds to import.
_PRELOADED = ("megaslm.preparing.prepare", "megaslm.dataset.mosaic")
WORTH_DIVIDING_BYTES = 32_000_000
"""Of the input of a job. A single worker prepares less in seconds."""
_UNWATCHED = Unwatched()
_REMEDY = "remove the file, and the text is read once to compare it"


def prepare(
    recipe: Recipe,
    output: str | Path,
    *,
    working: Path | None = None,
    workers: int | None = None,
    watcher: Watcher = _UNWATCHED,
    ray: RayCluster | None = None,
) -> Manifest:
    """Make the dataset of a recipe in `output`, a folder or a URL. Returns its manifest.

    The dataset is the same, byte for byte, for any number of `workers` (None: one per core), here or on a `ray`
    cluster. An interrupted job resumes when it is run again. A finished dataset of the same recipe and files is left
    unchanged. A URL needs `working`, a local folder for parts before they are sent. With more than one worker, a script
    that calls this needs the usual `if __name__ == "__main__":`.

    Raises DataError, naming file and line, for unusable text, tokenizers and folders; MegaSLMError where the disk is
    full or a worker dies repeatedly; Stopped on Ctrl-C, after which finished tasks are kept.
    """
    work = _PrepareJob(recipe, output, working, watcher)
    if (manifest := work.finished()) is not None:
        return manifest
    with work.claimed(alone=True) as ledger:
        work.do(work.tasks, ledger, workers, ray)
        return work.assemble(ledger)


def prepare_share(
    recipe: Recipe,
    output: str | Path,
    share: Share,
    *,
    working: Path | None = None,
    workers: int | None = None,
    watcher: Watcher = _UNWATCHED,
    ray: RayCluster | None = None,
) -> None:
    """Do a share of the tasks and leave `output` unfinished. Other machines may do the other shares at the same time.

    Raises as `prepare` does.
    """
    work = _PrepareJob(recipe, output, working, watcher)
    if work.finished() is None:
        with work.claimed(alone=False) as ledger:
            work.do(share.of(work.tasks), ledger, workers, ray)


def finish(
    recipe: Recipe, output: str | Path, *, working: Path | None = None, watcher: Watcher = _UNWATCHED
) -> Manifest:
    """Join the shares into a dataset. Raises DataError, naming the shares, where a task is not done."""
    work = _PrepareJob(recipe, output, working, watcher)
    if (manifest := work.finished()) is not None:
        return manifest
    with work.claimed(alone=True) as ledger:
        missing = [task.number for task in work.tasks if not ledger.is_done(task.name)]
        if missing:
            shown = ", ".join(str(number) for number in missing[:10]) + (" …" if len(missing) > 10 else "")
            raise DataError(
                f"{output}: {len(missing)} of {len(work.tasks)} tasks are not done ({shown}; task n belongs to part "
                "n % COUNT + 1 of COUNT): run these parts again, or all missing tasks with a plain `megaslm prepare`"
            )
        return work.assemble(ledger)


class _PrepareJob:
    def __init__(self, recipe: Recipe, output: str | Path, working: Path | None, watcher: Watcher) -> None:
        self._watcher = watcher
        self._passed_over: Counter[str] = Counter()
        self.tasks = plan_tasks(recipe, self._passed_over)
        self._recipe = recipe
        self._output, self._folder = output_at(str(output), working)
        self._plan = PreparePlan(recipe_sha256=recipe_sha256(recipe), files_sha256=files_sha256(self.tasks))

    def finished(self) -> Manifest | None:
        """The manifest of the dataset, if it is finished already and is the one that the recipe makes."""
        manifest = self._output.finished()
        if manifest is not None:
            noted = self._output.beside(INPUTS)
            inputs = Inputs() if noted is None else read_back(Inputs, noted, f"{self._output.place}/{INPUTS}", _REMEDY)
            require_same(manifest, self._recipe, self.tasks, self._output.place, inputs)
            # A kill may have come between the manifest and the clean-up.
            self._tidy_up()
            self._watcher.say(f"{self._output.place} was finished already, by this recipe from these files")
        return manifest

    @contextmanager
    def claimed(self, *, alone: bool) -> Iterator[PrepareLedger]:
        """Claims the output, to start or to resume there, and makes its tokenizer."""
        ledger = PrepareLedger(self._folder)
        busy = f"{self._folder}: another process is preparing this dataset; wait for it or stop it"
        with keeping_what_is_done(self._folder):
            ledger.require_ours()
            if not alone:
                ledger.give_way(self._plan)
            with ledger.claimed(alone=alone, busy=busy):
                with ledger.setting_up():
                    ledger.begin(self._plan, self.tasks, alone=alone)
                    self._make_tokenizer(ledger)
                    self._output.begin(self._plan.model_dump_json())
                yield ledger

    def _make_tokenizer(self, ledger: PrepareLedger) -> None:
        if not (self._folder / TOKENIZER).is_dir():
            settings = self._recipe.tokenizer.train_sentencepiece
            if settings is not None:
                self._watcher.say(
                    f"trains the tokenizer: {settings.vocab_size:,} pieces, on up to {size(settings.sample_bytes)} of "
                    "the text"
                )
            try:
                make_tokenizer(self._recipe, self.tasks, self._folder / TOKENIZER)
            except BaseException:
                # Nothing was made by this recipe yet, so another one may be tried here.
                ledger.forget_plan()
                raise

    def do(
        self,
        tasks: Sequence[Task],
        ledger: PrepareLedger,
        workers: int | None,
        ray: RayCluster | None,
    ) -> None:
        """Does those of the tasks that are not done."""
        run = JobRun(
            ledger,
            new_run_id(),
            tasks,
            self._watcher,
            job="prepare",
            unit="input_bytes",
            size=lambda task: task.input_bytes,
            is_done=lambda task: ledger.is_done(task.name),
        )
        waiting = run.waiting
        if not waiting:
            return
        specs = [
            PrepareSpec(task, self._recipe, self._facts, self._folder / TOKENIZER, self._folder, self._output)
            for task in waiting
        ]
        cores = len(os.sched_getaffinity(0)) if ray is None else ray.cpus
        asked = workers or cores
        count = min(asked, len(waiting))
        self._watcher.say(_who_works(waiting, asked, self._recipe))
        work = partial(_work, specs, ledger, run.id, count)
        with self._saying_what_is_in_the_way(ledger):
            if count == 1 and ray is None:
                work(0, run.publish)
            else:
                run.in_processes(count, work, ray=ray, preload=_PRELOADED)
        ledger.look_again()
        undone = [task for task in waiting if not ledger.is_done(task.name)]
        run.publish(at_once=True, all_done=not undone)
        left = [task for task in undone if ledger.is_left(task.name, run.id)]
        if left:
            raise MegaSLMError(_why_left(left, self._folder))
        if undone:
            raise MegaSLMError(
                f"{self._folder}: {len(undone)} tasks are not done, and no worker could report why (perhaps the disk "
                "is full); what is done is kept: run it again"
            )

    def assemble(self, ledger: PrepareLedger) -> Manifest:
        """Join the parts of all tasks, which are done, and finish the dataset."""
        self._watcher.say(f"joins the parts of {counted(len(self.tasks), 'task')} into {self._output.place}")
        outcomes = [outcome for task in self.tasks if (outcome := ledger.outcome(task.name)) is not None]
        manifest = manifest_of(self._recipe, outcomes, self._folder / TOKENIZER, self._facts, self._passed_over)
        with self._saying_what_is_in_the_way(ledger):
            require_enough(self._recipe, manifest)
        inputs = joined(outcome.inputs for outcome in outcomes)
        write_file(self._folder / INPUTS, inputs.model_dump_json(indent=1) + "\n")
        self._output.finish(manifest)
        self._tidy_up()
        return manifest

    @contextmanager
    def _saying_what_is_in_the_way(self, ledger: PrepareLedger) -> Iterator[None]:
        """Adds to an error that a corrected recipe cannot use the work done here so far."""
        try:
            yield
        except DataError as error:
            if not ledger.has_outcomes():
                raise
            raise DataError(
                f"{error} ({self._folder} holds the work of this recipe so far: remove it before you prepare another "
                "recipe, or choose another output folder)"
            ) from error

    @cached_property
    def _facts(self) -> TokenizerFacts:
        return tokenizer_facts(self._folder / TOKENIZER)

    def _tidy_up(self) -> None:
        self._output.tidy_up()
        PrepareLedger(self._folder).remove()


def _input_bytes(tasks: Sequence[Task]) -> int:
    return sum(task.input_bytes for task in tasks)


def _who_works(waiting: Sequence[Task], workers: int, recipe: Recipe) -> str:
    """How many workers have a task and, if some have none, why."""
    line = f"{counted(len(waiting), 'task')} for {counted(workers, 'worker')}"
    if len(waiting) >= workers or _input_bytes(waiting) < WORTH_DIVIDING_BYTES:
        return line
    files = {file_range.file.path: task.source for task in waiting for file_range in task.ranges}
    line = f"{line}: the text has {size(_input_bytes(waiting))} in {counted(len(files), 'file')}"
    if len(files) == len(waiting) and not any(is_divisible(path, source) for path, source in files.items()):
        return (
            f"{line}, and a file is one task, as it is compressed or can only be read from its beginning; divide the "
            "text into more files to give every worker a task"
        )
    return (
        f"{line}, and a task holds up to part_bytes = {recipe.part_bytes:,}; lower part_bytes to give every worker a "
        "task"
    )


def _why_left(tasks: Sequence[Task], folder: Path) -> str:
    places = [f"task {task.number}: {_place_of(task)}" for task in tasks[:10]] + ["…"][: len(tasks) > 10]
    return (
        f"{folder}: worker processes died {MOST_DEATHS} times over {'; '.join(places)}: out of memory, or killed from "
        "outside; all other tasks are done and kept: run it again for these, with fewer --workers if memory is short, "
        "or leave these files out in another recipe"
    )


def _place_of(task: Task) -> str:
    first, last = task.ranges[0], task.ranges[-1]
    upto = "" if first.file == last.file else f" to {last.file.path}"
    return f"{first.file.path}{upto}, from byte {first.start}"


def _work(
    specs: Sequence[PrepareSpec],
    ledger: PrepareLedger,
    run_id: str,
    processes: int,
    number: int,
    on_progress: Callable[[], None] = lambda: None,
) -> None:
    """Draws tasks until none are left, as the process `number` of `processes`."""
    tally = Tally(ledger.folder, run_id, number)

    def look() -> None:
        on_progress()
        ledger.raise_if_failed(run_id)

    def draw(spec: PrepareSpec) -> Drawn:
        def report(**counts: int) -> None:
            tally.report(**counts)
            look()

        return ledger.draw(spec.task.name, lambda: run_task(spec, report), run_id, tally)

    tally.end(left=len(draw_all(specs, draw, look, processes=processes)))
