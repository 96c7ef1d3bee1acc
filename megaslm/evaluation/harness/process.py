"""The process that runs lm-eval: `python -m megaslm.evaluation.harness.process FOLDER`.

It is apart from the command because lm-eval decides at its import whether it may use the network, prints much, and
sets up logging. It reads the order in FOLDER and writes one file for each task that is done.
"""

import difflib
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from lm_eval import __version__, simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from megaslm.config.task import HarnessTask
from megaslm.errors import ConfigError, DataError, UserMistake
from megaslm.evaluation.harness.order import ORDER, REFUSAL, Order, outcome_file
from megaslm.evaluation.harness.outcome import outcome_of
from megaslm.files import write_file


def main() -> None:
    """Does the order; exit status 2 where it cannot be done, with the reason in a file."""
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    folder = Path(sys.argv[1])
    order = Order.model_validate_json((folder / ORDER).read_bytes())
    try:
        _do(order, folder)
    except UserMistake as error:
        traceback.print_exception(error)
        write_file(folder / REFUSAL, str(error))
        sys.exit(error.exit_status)


def _do(order: Order, folder: Path) -> None:
    manager = TaskManager(include_path=order.include_path)
    # Before the first task is measured, so that a mistake costs no hours.
    for name, setting in order.tasks.items():
        _check(name, setting, order, manager)
    lm = HFLM(
        pretrained=order.model,
        dtype=order.dtype,
        softmax_dtype="float32",
        device=order.device,
        batch_size=order.batch_rows,
    )
    for name, setting in order.tasks.items():
        found = simple_evaluate(
            model=lm,
            tasks=[name],
            num_fewshot=setting.shots,
            limit=order.limit,
            bootstrap_iters=0,
            write_out=True,
            verbosity="INFO",
            task_manager=manager,
            confirm_run_unsafe_code=order.unsafe_programs,
        )
        write_file(outcome_file(folder, name), outcome_of(name, setting, found).model_dump_json())


def _check(name: str, setting: HarnessTask, order: Order, manager: Any) -> None:
    """Raises UserMistake where lm-eval has no such task or metric, has not its data, or must not run it."""
    if name not in manager.all_tasks:
        close = ", ".join(difflib.get_close_matches(name, manager.all_tasks, n=5))
        raise ConfigError(
            f"lm-eval {__version__} has no task {name}{close and f' (close are {close})'}; `lm-eval ls tasks` lists "
            "all; a task of your own is a YAML file in the folder of --include-path"
        )
    for part in _loaded(name, order, manager).values():
        if getattr(part, "UNSAFE_CODE", False) and not order.unsafe_programs:
            raise ConfigError(
                f"task {name}: lm-eval runs the model's programs without a sandbox; leave the task out, or add "
                "--unsafe-exec on a machine that the programs may destroy"
            )
        if setting.shots and part.get_config("num_fewshot") == 0:
            raise ConfigError(
                f"task {name}: shots = {setting.shots}, but lm-eval's task file fixes 0 examples; leave shots out"
            )
        if setting.metric is not None:
            _check_metric(name, setting.metric, part)


def _check_metric(name: str, given: str, part: Any) -> None:
    metric, _, chosen = given.partition(",")
    filters = [each.name for each in part._filters]
    if metric not in part.aggregation() or (chosen and chosen not in filters):
        known = [each if of == "none" else f"{each},{of}" for each in part.aggregation() for of in filters]
        raise ConfigError(f"task {name}: metric = {given}: must be one of {', '.join(known)}")


def _loaded(name: str, order: Order, manager: Any) -> dict[str, Any]:
    """The parts of a task with their data; lm-eval and its libraries have no exceptions of their own for this."""
    try:
        parts: dict[str, Any] = manager.load([name])["tasks"]
    except Exception as error:
        traceback.print_exception(error)
        first = next(iter(str(error).splitlines()), "")
        if isinstance(error, ConnectionError):
            remedy = (
                "add --download once, where there is a network; the data is kept in HF_HOME"
                if not order.download
                else "see whether this machine reaches huggingface.co"
            )
        else:
            remedy = "correct the task's file, or put its data where the file says"
        raise DataError(f"task {name}: lm-eval cannot load it ({type(error).__name__}: {first}); {remedy}") from error
    return parts


def _end_with_the_command() -> None:
    """Ends this process when the command has ended, even by SIGKILL: its end of standard input closes.

    A command that ends during the imports above is noticed after them.
    """
    # Not by sys.stdin, whose lock would be held when the interpreter ends.
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
