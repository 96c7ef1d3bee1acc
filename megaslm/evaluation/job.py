"""The `evaluate` verb: does the batches of all tasks, and writes their results."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch

import megaslm
from megaslm.engine.distributed import join_world, on_first_rank, wait_for_all
from megaslm.engine.stop_signal import StopSignal
from megaslm.errors import ConfigError, DataError, ModelError, PeerFailed
from megaslm.evaluation.records import RESULTS, Batch, Description, Results
from megaslm.evaluation.request import EvaluationRequest
from megaslm.evaluation.results import write_results
from megaslm.evaluation.work import Engine, EvaluationProcess, PlannedTask, batches_of
from megaslm.files import locked, read_back, write_file
from megaslm.generation.local import LocalGenerator
from megaslm.generation.server import ServerGenerator
from megaslm.generation.text_tokens import TextTokens
from megaslm.health.findings import Requirements
from megaslm.health.preflight import preflight
from megaslm.health.shared_folders import require_shared
from megaslm.jobs.ledger import Ledger, keeping_what_is_done, new_run_id
from megaslm.jobs.progress import Unwatched, Watcher
from megaslm.model.folder import check_model_folder
from megaslm.model.load import choose_precision, dtype_of
from megaslm.model.plain_lm import PlainLM
from megaslm.model.weight_files import weights_sha256
from megaslm.tasks.items import items_of
from megaslm.tasks.losses import require_losses
from megaslm.tokenizer.folder_tokens import TOKENIZER_FILE

_WORKING = ".evaluate"
_DESCRIPTION = "description.json"
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
        folder = request.output / _WORKING
        on_first_rank(lambda: _claim(request.output, folder, description))
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
                if not isinstance(error, PeerFailed):
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


def describe(
    request: EvaluationRequest, device: torch.device, *, tasks: dict[str, str], data: dict[str, str]
) -> Description:
    """What is measured, and how; `tasks` and `data` are hashes of settings and of items. Raises ModelError."""
    weights = None
    if request.server is None:
        folder = Path(request.model)
        check_model_folder(folder)
        if not (folder / TOKENIZER_FILE).is_file():
            raise ModelError(
                f"{folder}: has no {TOKENIZER_FILE}; export the model again, or copy its tokenizer's files"
            )
        weights = weights_sha256(folder)
    return Description(
        model=request.model,
        weights_sha256=weights,
        server=request.server is not None,
        measure=request.measure,
        precision="server" if request.server is not None else choose_precision(request.precision, device),
        tasks=tasks,
        data=data,
        limit=request.limit,
        samples=request.samples,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        batch_rows=request.batch_rows,
        megaslm_version=megaslm.__version__,
    )


def finished(output: Path, description: Description) -> Results | None:
    """The results that are there already. Raises ConfigError where they are of another evaluation."""
    path = output / RESULTS
    if not path.is_file():
        return None
    results = read_back(Results, path.read_bytes(), str(path), "choose another output")
    require_equal(results.description, description, output)
    return results


def _claim(output: Path, folder: Path, description: Description) -> None:
    """Makes the working folder, or takes over that of the same evaluation, or of one that has not answered yet."""
    path = folder / _DESCRIPTION
    if path.is_file() and Ledger(folder, Batch, place=str(output)).has_outcomes():
        there = read_back(Description, path.read_bytes(), str(path), "choose another output")
        require_equal(there, description, output)
        return
    if not path.is_file() and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output}: exists and holds no evaluation; choose another output")
    folder.mkdir(parents=True, exist_ok=True)
    write_file(path, description.model_dump_json(indent=1))


def require_equal(there: Description, now: Description, output: Path) -> None:
    """Raises ConfigError where an output holds another evaluation than the one that is asked for."""
    before, after = there.model_dump(), now.model_dump()
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        first = f"{changed[0]}: {_shown(before[changed[0]], after[changed[0]])}"
        raise ConfigError(
            f"{output}: holds an evaluation with another {', '.join(changed)} ({first}); choose another output, or "
            "evaluate with the same"
        )


def _shown(before: object, after: object) -> str:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = sorted({key for key in {**before, **after} if before.get(key) != after.get(key)})
        return f"differs in {', '.join(keys)}"
    return f"{before} there, {after} now"


def _load(request: EvaluationRequest, device: torch.device) -> Engine:
    if request.server is not None:
        return Engine(ServerGenerator(request.server, request.model, concurrency=request.batch_rows))
    folder = Path(request.model)
    dtype = dtype_of(choose_precision(request.precision, device))
    lm = PlainLM.load(folder, dtype=dtype, device=device)
    tokens = TextTokens.of_folder(folder)
    return Engine(LocalGenerator.of(lm, tokens, batch_rows=request.batch_rows), lm, tokens)
