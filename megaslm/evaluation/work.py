"""The batches of an evaluation, and the process that does them: a rank."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

from megaslm.config.task import Task
from megaslm.engine.distributed import World
from megaslm.engine.stop_signal import StopSignal
from megaslm.errors import MegaSLMError, PromptTooLong
from megaslm.evaluation.answering import Answering, answer, failed, timed_out
from megaslm.evaluation.records import Answered, Batch
from megaslm.evaluation.request import EvaluationRequest
from megaslm.generation.log_likelihood import log_likelihoods
from megaslm.generation.sampling import Generator
from megaslm.generation.text_tokens import TextTokens
from megaslm.jobs.ledger import Drawn, Ledger, draw_all
from megaslm.jobs.progress import Tally, Watcher
from megaslm.jobs.run import JobRun
from megaslm.model.plain_lm import PlainLM
from megaslm.sandbox.sandbox import Sandbox
from megaslm.tasks.grading import Grades, extracted, grading
from megaslm.tasks.items import Item
from megaslm.tasks.losses import measured_items, pairs_of

_FEWER_EXAMPLES = "with --set 'examples=[]', with --set examples_from=null or with fewer examples in the task file"
_WHAT_IS_KEPT = "finished batches are kept; start it again for the rest"


@dataclass(frozen=True)
class PlannedTask:
    """A task with its items and the hashes of both."""

    name: str
    task: Task
    items: tuple[Item, ...]

    @cached_property
    def task_sha256(self) -> str:
        """Of the settings."""
        return hashlib.sha256(self.task.model_dump_json().encode()).hexdigest()

    @cached_property
    def data_sha256(self) -> str:
        """Of the questions and right answers."""
        lines = [[item.question, item.answer, item.solution, item.choices] for item in self.items]
        return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


@dataclass(frozen=True)
class PlannedBatch:
    """Items of one task that are done together, each with the number of its sample."""

    name: str
    of: PlannedTask
    items: tuple[tuple[Item, int], ...]


def batches_of(planned: PlannedTask, request: EvaluationRequest) -> Iterator[PlannedBatch]:
    """Batches of prompts of similar length, the longest first, so that a lack of memory shows at once."""
    samples = request.samples if request.measure == "answers" else 1
    ordered = sorted(planned.items, key=lambda item: (-len(item.prompt) - len(item.solution), item.number))
    prompts = [(item, sample) for item in ordered for sample in range(samples)]
    for number, start in enumerate(range(0, len(prompts), request.batch_rows)):
        items = tuple(prompts[start : start + request.batch_rows])
        yield PlannedBatch(f"{planned.name}-{number:06d}", planned, items)


@dataclass(frozen=True)
class Engine:
    """What answers or measures: a generator, and for losses the model itself."""

    generator: Generator
    lm: PlainLM | None = None
    tokens: TextTokens | None = None


class EvaluationProcess:
    """One rank. It draws batches until all are done by any rank."""

    def __init__(
        self,
        request: EvaluationRequest,
        batches: Sequence[PlannedBatch],
        ledger: Ledger[Batch],
        run_id: str,
        world: World,
        load: Callable[[], Engine],
        stop: StopSignal,
        watcher: Watcher | None,
    ) -> None:
        """`load` is called when there is a batch to do. Only one process gets `watcher`, and reports for all."""
        self._request, self._batches, self._ledger, self._run_id = request, batches, ledger, run_id
        self._world, self._load, self._stop, self._watcher = world, load, stop, watcher
        self._tally = Tally(ledger.folder, run_id, world.rank)
        self._run: JobRun[PlannedBatch] | None = None
        self._engine: Engine | None = None
        self._grades: dict[str, Grades] = {}
        self._sandbox: Sandbox | None = None

    def run(self) -> None:
        """Does batches until none is left.

        Raises:
            MegaSLMError: process after process died over a batch.
            PromptTooLong: a prompt does not fit into the model's context.
        """
        if self._watcher is not None:
            self._run = JobRun(
                self._ledger,
                self._run_id,
                self._batches,
                self._watcher,
                job="evaluate",
                unit="answers" if self._request.measure == "answers" else "items",
                size=lambda batch: len(batch.items),
                is_done=lambda batch: self._ledger.is_done(batch.name),
            )
        self._look()
        with ExitStack() as held:
            left = draw_all(
                self._batches, lambda batch: self._draw(batch, held), self._look, processes=self._world.size
            )
        self._tally.end(len(left))
        if self._run is not None:
            self._run.publish(at_once=True, all_done=not left)
        if left:
            raise MegaSLMError(
                f"processes died over {len(left)} batches, such as {left[0].name}: out of memory, or killed from "
                "outside; lower --batch-rows; what is done is kept: start it again for these"
            )

    def _draw(self, batch: PlannedBatch, held: ExitStack) -> Drawn:
        return self._ledger.draw(batch.name, lambda: self._do(batch, held), self._run_id, self._tally)

    def _do(self, batch: PlannedBatch, held: ExitStack) -> Batch:
        self._look()
        if self._engine is None:
            if self._watcher is not None:
                self._watcher.say("loads the model" if self._request.server is None else f"asks {self._request.server}")
            self._engine = self._load()
        if self._request.measure == "losses":
            outcome = self._measured(batch, self._engine)
            self._tally.report(items=len(outcome.measured))
            return outcome
        task = batch.of.task
        if task.interpreter and self._sandbox is None:
            self._sandbox = held.enter_context(self._new_sandbox())
            if self._watcher is not None:
                self._watcher.say(self._sandbox.describe())
        try:
            answers = answer(
                task,
                batch.items,
                self._engine.generator,
                temperature=self._request.temperature,
                top_p=self._request.top_p,
                seed=self._request.seed,
                sandbox=self._sandbox if task.interpreter else None,
            )
        except PromptTooLong as error:
            numbers = [batch.items[place][0].number for place in error.places]
            raise _of_items(
                error,
                batch,
                numbers,
                f", and with max_new_tokens = {task.max_new_tokens} it exceeds",
                f"evaluate with --set max_new_tokens=N, {_FEWER_EXAMPLES}",
            ) from error
        if task.grader not in self._grades:
            self._grades[task.grader] = held.enter_context(grading(task.grader))
        graded = tuple(self._graded(each, task, self._grades[task.grader]) for each in answers)
        self._tally.report(answers=len(graded), tokens=sum(each.tokens or 0 for each in graded))
        return Batch(answers=graded)

    def _measured(self, batch: PlannedBatch, engine: Engine) -> Batch:
        assert engine.lm is not None
        assert engine.tokens is not None
        items = [item for item, _ in batch.items]
        try:
            found = log_likelihoods(engine.lm, engine.tokens, pairs_of(items), batch_rows=len(items))
        except PromptTooLong as error:
            of_pairs = [item.number for item in items for _ in pairs_of([item])]
            numbers = [of_pairs[place] for place in error.places]
            what = " with its solution or choice, which exceeds"
            raise _of_items(error, batch, numbers, what, f"evaluate {_FEWER_EXAMPLES}") from error
        return Batch(measured=tuple(measured_items(items, [(-each.nats, each.tokens) for each in found])))

    def _new_sandbox(self) -> Sandbox:
        return Sandbox(
            workers=self._request.sandbox_workers, tier="unsafe" if self._request.unsafe_programs else "auto"
        )

    def _graded(self, answering: Answering, task: Task, grades: Grades) -> Answered:
        item = answering.item
        found = extracted(answering.text, task.grader)
        return Answered(
            item=item.number,
            sample=answering.sample,
            question=item.question,
            reference=item.answer,
            output=answering.text,
            answer=found,
            verdict=grades.verdict(found, item.answer) if found else "wrong",
            tokens=answering.tokens,
            ended=answering.ended,
            programs=len(answering.programs),
            programs_failed=failed(answering),
            programs_timed_out=timed_out(answering),
        )

    def _look(self) -> None:
        self._stop.raise_if_told(_WHAT_IS_KEPT)
        self._ledger.raise_if_failed(self._run_id)
        if self._run is not None:
            self._run.publish()


def _of_items(
    error: PromptTooLong, batch: PlannedBatch, numbers: Iterable[int], what: str, remedy: str
) -> PromptTooLong:
    """The error as the user of `evaluate` reads it: it names the task and the items."""
    of = sorted(set(numbers))
    return PromptTooLong(
        f"task {batch.of.name}: prompts are too long, those of the items {', '.join(map(str, of))}: the longest has "
        f"{error.longest_tokens} tokens{what} the model's context of {error.context_tokens}; {remedy}",
        of,
        longest_tokens=error.longest_tokens,
        context_tokens=error.context_tokens,
    )
