"""The files of a finished evaluation, from the outcomes of its batches."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from megaslm.dataset.cost_file import read_cost
from megaslm.evaluation.records import RESULTS, Batch, Description, ModelCost, Results, TaskResult
from megaslm.evaluation.request import EvaluationRequest
from megaslm.evaluation.summary import of_answers, of_losses
from megaslm.evaluation.work import PlannedBatch, PlannedTask
from megaslm.files import write_file
from megaslm.jobs.ledger import Ledger


def write_results(
    request: EvaluationRequest,
    planned: Sequence[PlannedTask],
    batches: Sequence[PlannedBatch],
    ledger: Ledger[Batch],
    description: Description,
    *,
    seconds: float,
) -> Results:
    """Writes results.json and one file of lines per task into `request.output`, and removes the ledger.

    `batches` are all of the tasks', and done. `seconds`: the time of this run of the evaluation.
    """
    tasks: dict[str, TaskResult] = {}
    for each in planned:
        outcomes = [ledger.outcome(batch.name) for batch in batches if batch.of is each]
        hashes = {"task_sha256": each.task_sha256, "data_sha256": each.data_sha256}
        if request.measure == "losses":
            measured = [item for outcome in outcomes if outcome is not None for item in outcome.measured]
            tasks[each.name] = of_losses(each.task, measured, **hashes)
            lines = [item.model_dump_json() for item in sorted(measured, key=lambda item: item.item)]
        else:
            answers = [one for outcome in outcomes if outcome is not None for one in outcome.answers]
            tasks[each.name] = of_answers(each.task, answers, request.k, **hashes)
            lines = [one.model_dump_json() for one in sorted(answers, key=lambda one: (one.item, one.sample))]
        write_file(request.output / f"{each.name}.jsonl", "".join(f"{line}\n" for line in lines))
    cost = None if request.server is not None else model_cost(Path(request.model))
    results = Results(description=description, tasks=tasks, cost=cost, seconds=seconds)
    write_file(request.output / RESULTS, results.model_dump_json(indent=1) + "\n")
    shutil.rmtree(ledger.folder, ignore_errors=True)
    return results


def model_cost(folder: Path) -> ModelCost | None:
    """The cost of the model in a folder; None where no cost.json of MegaSLM is beside it."""
    cost = read_cost(folder)
    if cost is None or cost.training.tokens_seen is None or cost.training.tokens_selected is None:
        return None
    stages = [stage for stage in (cost.training, cost.scoring, cost.reference_training) if stage is not None]
    hours = [stage.gpu_hours for stage in stages if stage.gpu_hours is not None]
    if len(hours) < len(stages):
        return None
    return ModelCost(
        tokens_seen=cost.training.tokens_seen,
        tokens_selected=cost.training.tokens_selected,
        seconds=sum(stage.seconds for stage in stages),
        gpu_hours=sum(hours),
        is_complete=cost.is_complete,
    )
