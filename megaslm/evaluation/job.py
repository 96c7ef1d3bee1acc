"""The `evaluate` verb: does the batches of all tasks, and writes their results."""

import time
from pathlib import Path

import torch

from megaslm.engine.distributed import join_world, on_first_rank, wait_for_all
from megaslm.engine.stop_signal import StopSignal
from megaslm.evaluation.output import claim, describe, finished, working_folder
from megaslm.evaluation.records import Batch, Results
from megaslm.evaluation.request import EvaluationRequest
from megaslm.evaluation.results import write_results
from megaslm.evaluation.work import Engine, EvaluationProcess, PlannedTask, batches_of
from megaslm.files import locked
from megaslm.generation.local import LocalGenerator
from megaslm.generation.server import ServerGenerator
from megaslm.generation.text_tokens import TextTokens
from megaslm.health.findings import Requirements
from megaslm.health.preflight import preflight
from megaslm.health.shared_folders import require_shared
from megaslm.jobs.ledger import Ledger, keeping_what_is_done, new_run_id
from megaslm.jobs.progress import Unwatched, Watcher
from megaslm.model.load import choose_precision, dtype_of
from megaslm.model.plain_lm import PlainLM
from megaslm.tasks.items import items_of
from megaslm.tasks.losses import require_losses

_UNWATCHED = Unwatched()


def evaluate(request: EvaluationRequest, watcher: Watcher = _UNWATCHED) -> Results:
    """Writes results.json and, for answers, one file of lines per task into `request.output`; gives the results.

    Called by every rank; ranks share the batches. An interrupted evaluation resumes: at most the batches under way are
    done again. The results do not depend on the number of ranks.

    Raises:
        UserMistake: a task's data or the model does not fit, or the output holds an evaluation of something else.
        SandboxError: a task runs programs, and nothing keeps them apart from this machine.
        Stopped: on SIGTERM.
    """
    with StopSignal() as stop:
        began = time.monotonic()
        world = join_world()
        for line in preflight(world, _requirements(request)):
            if world.is_first:
                watcher.say(line)
        planned = [
            PlannedTask(name, task, tuple(items_of(task, request.data, limit=request.limit)))
            for name, task in request.tasks.items()
        ]
        for each in planned if request.measure == "losses" else ():
            require_losses(f"task {each.name}", each.task, each.items)
        description = on_first_rank(
            lambda: describe(
                request,
                world.device,
                tasks={each.name: each.task_sha256 for each in planned},
                data={each.name: each.data_sha256 for each in planned},
            )
        )
        found = on_first_rank(lambda: finished(request.output, description))
        if found is not None:
            watcher.say(f"{request.output} was finished already")
            return found
        folder = working_folder(request.output)
        on_first_rank(
            lambda: claim(
                request.output,
                description,
                has_outcomes=lambda: Ledger(folder, Batch, place=str(request.output)).has_outcomes(),
            )
        )
        require_shared(folder, "output", world)
        run_id = on_first_rank(new_run_id)
        batches = [batch for each in planned for batch in batches_of(each, request)]
        ledger = Ledger(folder, Batch, place=str(request.output))
        busy = f"{request.output}: another evaluation is at work here; wait for it or stop it"
        with locked(folder / f"rank-{world.rank}.lock", busy=busy), keeping_what_is_done(request.output):
            process = EvaluationProcess(
                request,
                batches,
                ledger,
                run_id,
                world,
                lambda: _load(request, world.device),
                stop,
                watcher if world.is_first else None,
            )
            try:
                process.run()
            except BaseException as error:
                ledger.fail(run_id, error)
                raise
            # The first rank removes the ledger, in which another one may be looking at the last batch.
            wait_for_all()
            return on_first_rank(
                lambda: write_results(request, planned, batches, ledger, description, seconds=time.monotonic() - began)
            )


def _requirements(request: EvaluationRequest) -> Requirements:
    settings = {name: str(value) for name, value in vars(request).items() if name not in ("tasks", "suite")}
    files = {} if request.server is not None else {"config.json of the model": Path(request.model) / "config.json"}
    return Requirements(settings=settings, files=files)


def _load(request: EvaluationRequest, device: torch.device) -> Engine:
    if request.server is not None:
        return Engine(ServerGenerator(request.server, request.model, concurrency=request.batch_rows))
    folder = Path(request.model)
    dtype = dtype_of(choose_precision(request.precision, device))
    lm = PlainLM.load(folder, dtype=dtype, device=device)
    tokens = TextTokens.of_folder(folder)
    return Engine(LocalGenerator.of(lm, tokens, batch_rows=request.batch_rows), lm, tokens)
