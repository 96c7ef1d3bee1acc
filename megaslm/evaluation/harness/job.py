"""`evaluate --lm-eval`: starts lm-eval, follows it, and writes its results like those of MegaSLM's own tasks."""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import torch

from megaslm.config.task import HarnessTask
from megaslm.engine.stop_signal import StopSignal
from megaslm.errors import ConfigError, MegaSLMError
from megaslm.evaluation.harness.order import ORDER, REFUSAL, Order, Outcome, outcome_file
from megaslm.evaluation.output import claim, describe, finished, working_folder
from megaslm.evaluation.records import RESULTS, Description, Results
from megaslm.evaluation.request import EvaluationRequest
from megaslm.files import locked, looked_in, read_back, write_file
from megaslm.jobs.ledger import keeping_what_is_done
from megaslm.jobs.progress import JobProgress, Watcher
from megaslm.model.load import choose_precision, dtype_of

TABLE = "lm-eval.json"
"""lm-eval's own numbers, also for the parts of a task, such as the subjects of MMLU."""
LOG = "lm-eval.log"
_KEPT = "finished tasks are kept; start it again for the rest"
_PROGRAM = "megaslm.evaluation.harness.process"
_LOOK_SECONDS, _END_SECONDS = 0.5, 10.0
_SHOWN_LINES, _LINE_CHARACTERS, _TAIL_BYTES = 12, 300, 20_000
_TASK_FILES = (".yaml", ".yml", ".py")
_PERCENT = re.compile(r"Running \w+ requests: +(\d+)%")


def evaluate_by_lm_eval(
    request: EvaluationRequest,
    tasks: Mapping[str, HarnessTask],
    watcher: Watcher,
    *,
    include_path: Path | None,
    download: bool,
) -> Results:
    """Runs lm-eval in a process and writes results.json, and one file of lines for each task; gives the results.

    `request.tasks` is empty; `tasks` are those of lm-eval.

    Done tasks are kept: an interrupted evaluation resumes with the next one.

    Raises:
        UserMistake: lm-eval is missing, or it has no such task or data, or the output holds another evaluation.
        MegaSLMError: lm-eval failed; the message ends with the end of its log.
        Stopped: on SIGTERM.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("lm-eval is not installed here; `make install EXTRAS=eval` installs it")
    if include_path is not None and not include_path.is_dir():
        raise ConfigError(
            f"--include-path {include_path}: is no folder{looked_in(include_path)}; name the folder of your "
            "lm-eval task files"
        )
    with StopSignal() as stop:
        began = time.monotonic()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        description = describe(request, device, tasks=_hashes(tasks, include_path), data={})
        if (found := finished(request.output, description)) is not None:
            watcher.say(f"{request.output} was finished already")
            return found
        folder = working_folder(request.output)
        claim(request.output, description, has_outcomes=lambda: any(folder.glob(outcome_file(folder, "*").name)))
        busy = f"{request.output}: another evaluation is at work here; wait for it or stop it"
        with locked(folder / "lm-eval.lock", busy=busy), keeping_what_is_done(request.output):
            left = {name: task for name, task in tasks.items() if not outcome_file(folder, name).is_file()}
            order = Order(
                model=str(Path(request.model).resolve()),
                tasks=left,
                include_path=None if include_path is None else str(include_path.resolve()),
                dtype=str(dtype_of(choose_precision(request.precision, device))).removeprefix("torch."),
                device=str(device),
                batch_rows=request.batch_rows,
                limit=request.limit,
                download=download,
                unsafe_programs=request.unsafe_programs,
            )
            if left:
                _run(order, folder, request.output / LOG, list(tasks), stop, watcher)
            return _write(request.output, folder, list(tasks), description, began)


def _hashes(tasks: Mapping[str, HarnessTask], include_path: Path | None) -> dict[str, str]:
    """Of what decides a task: its settings, lm-eval's version, task files of one's own."""
    own = [] if include_path is None else sorted(path for path in include_path.rglob("*") if path.suffix in _TASK_FILES)
    files = [[path.name, path.read_text(encoding="utf-8", errors="replace")] for path in own]
    version = importlib.metadata.version("lm_eval")
    return {
        name: hashlib.sha256(json.dumps([task.model_dump(), version, files]).encode()).hexdigest()
        for name, task in tasks.items()
    }


def _run(order: Order, folder: Path, log: Path, tasks: Sequence[str], stop: StopSignal, watcher: Watcher) -> None:
    write_file(folder / ORDER, order.model_dump_json())
    (folder / REFUSAL).unlink(missing_ok=True)
    watcher.say(f"runs lm-eval, which takes up to a minute to start; its log is {log}")
    began, told = time.monotonic(), set(tasks) - set(order.tasks)
    with log.open("ab") as written, _process(order, folder, written) as process:
        start = since = written.tell()
        while (status := process.poll()) is None:
            stop.raise_if_told(_KEPT)
            for name in [each for each in tasks if each not in told and outcome_file(folder, each).is_file()]:
                watcher.say(f"{name} is done")
                told.add(name)
                since = log.stat().st_size
            watcher.show(_progress(log, since, tasks, len(told), len(tasks) - len(order.tasks), began))
            time.sleep(_LOOK_SECONDS)
    if (folder / REFUSAL).is_file():
        raise ConfigError((folder / REFUSAL).read_text(encoding="utf-8"))
    if status != 0:
        raise MegaSLMError(
            f"lm-eval ended with status {status}; {_KEPT}. The end of its log {log}:\n{_end_of(log, start)}"
        )


@contextmanager
def _process(order: Order, folder: Path, log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    offline = {} if order.download else {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    unsafe = {"HF_ALLOW_CODE_EVAL": "1"} if order.unsafe_programs else {}
    # Its standard input stays open as long as this process lives.
    process = subprocess.Popen(
        [sys.executable, "-m", _PROGRAM, str(folder.resolve())],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, **offline, **unsafe, "TOKENIZERS_PARALLELISM": "false"},
        # Ctrl-C reaches this process alone, which then ends the other one.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()


def _progress(log: Path, since: int, tasks: Sequence[str], done: int, before: int, began: float) -> JobProgress:
    """In hundredths of tasks: lm-eval tells in percent how far it is with the current one."""
    found = _PERCENT.findall(_end_of(log, since))
    current = int(found[-1]) if found and done < len(tasks) else 0
    return JobProgress(
        job="evaluate",
        unit="hundredths",
        total=100 * len(tasks),
        before=100 * before,
        tasks=len(tasks),
        tasks_done=done,
        tasks_retried=0,
        tasks_left=0,
        counts={"hundredths": 100 * (done - before) + min(current, 99)},
        processes=1,
        seconds=time.monotonic() - began,
        written=datetime.now(UTC),
    )


def _end_of(log: Path, start: int) -> str:
    """The last lines that lm-eval wrote after the first `start` bytes; of a bar that is redrawn its last state."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
    shown = [line.rstrip("\r").rpartition("\r")[2][:_LINE_CHARACTERS] for line in lines if line.strip()]
    return "\n".join(shown[-_SHOWN_LINES:])


def _write(output: Path, folder: Path, tasks: Sequence[str], description: Description, began: float) -> Results:
    outcomes: dict[str, Outcome] = {}
    for name in tasks:
        path = outcome_file(folder, name)
        outcomes[name] = read_back(Outcome, path.read_bytes(), str(path), "remove it and evaluate again")
        write_file(output / f"{name}.jsonl", "".join(f"{item.model_dump_json()}\n" for item in outcomes[name].items))
    write_file(output / TABLE, json.dumps({name: outcome.rows for name, outcome in outcomes.items()}, indent=1) + "\n")
    results = Results(
        description=description,
        tasks={name: outcome.result for name, outcome in outcomes.items()},
        seconds=time.monotonic() - began,
    )
    write_file(output / RESULTS, results.model_dump_json(indent=1) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    return results
