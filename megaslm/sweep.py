"""The `sweep` verb: one run for each value of a setting, in turns or as jobs of a cluster, and their report."""

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from rich.console import Console
from rich.table import Table

from megaslm.config.load import load
from megaslm.config.run_files import CONFIG
from megaslm.config.schema import RunConfig
from megaslm.config.source import dump
from megaslm.errors import ConfigError, MegaSLMError, Stopped
from megaslm.inspect.run_facts import RunFacts, run_facts
from megaslm.launch.start import load_cluster

REPORT = "report.html"
_ENDING = ".sweep"
_QUEUES = ("slurm", "kubernetes")
_STOPPED = 75
_UNFIT = re.compile(r"[^\w.+-]")
Option = Literal["--over", "--keep-ratio"]


class SweepFailed(MegaSLMError):
    """A run of the sweep, or the report, ended with another status than 0. It has printed why."""


@dataclass(frozen=True)
class SweptRun:
    """One run of a sweep."""

    value: str
    """The value of the setting, as it was given."""
    folder: Path
    overrides: tuple[str, ...]
    """What differs from the sweep's configuration, as `--set` takes it."""

    def facts(self) -> RunFacts | None:
        """The run so far; None before it has begun."""
        return run_facts(self.folder) if (self.folder / CONFIG).is_file() else None


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, which share all settings but one."""

    config: Path
    key: str
    folder: Path
    """The folder of the runs and of their report."""
    runs: tuple[SweptRun, ...]

    def command(self, run: SweptRun, cluster: Path) -> tuple[str, ...]:
        """The command that trains a run, or resumes it."""
        settings = [word for override in run.overrides for word in ("--set", override)]
        launch = (sys.executable, "-m", "megaslm", "launch", "--cluster", str(cluster))
        return (*launch, "train", str(self.config), "--resume", *settings)


def plan_sweep(config: Path, setting: str, overrides: Sequence[str], *, option: Option = "--over") -> Sweep:
    """The runs of a sweep; nothing is written.

    `setting` is `KEY=VALUE,VALUE,...`. `option` gave it; `--keep-ratio` has the values alone.

    Raises ConfigError where a run's configuration is wrong, or two are the same.
    """
    key, _, text = setting.partition("=")
    values = [value.strip() for value in text.split(",")]
    given, form = (setting, "KEY=VALUE,VALUE") if option == "--over" else (text, "VALUE,VALUE")
    asked = f"{option} {given}"
    if not key or len(values) < 2 or not all(values):
        raise ConfigError(f"{asked}: must be {form} with two values or more")
    if key == "run_dir":
        raise ConfigError("--over run_dir: every run of a sweep has a folder of its own; name another setting")
    folder = Path(load(RunConfig, config, overrides).value.run_dir + _ENDING)
    runs: list[SweptRun] = []
    seen: dict[str, str] = {}
    for value in values:
        changed = (*overrides, f"{key}={value}")
        settings = dump(load(RunConfig, config, changed).value)
        if settings in seen:
            raise ConfigError(f"{asked}: {seen[settings]} and {value} give the same run; leave one of them out")
        seen[settings] = value
        place = folder / f"{key.rpartition('.')[2]}-{_UNFIT.sub('_', value)}"
        if place in (run.folder for run in runs):
            raise ConfigError(f"{asked}: two runs would have the folder {place}; leave one out, and train it by itself")
        runs.append(SweptRun(value, place, (*changed, f"run_dir={place}")))
    return Sweep(config, key, folder, tuple(runs))


def run_sweep(sweep: Sweep, cluster: Path, say: Callable[[str], None]) -> list[dict[str, object]]:
    """Trains every run that is not finished, then writes the report.

    A run that fails does not keep the others from being trained. On a cluster with a queue the runs that have not begun
    are submitted, and the report is written once all have finished.

    Returns:
        The state and the newest held-out losses of each run.

    Raises:
        ConfigError: the cluster's file is wrong.
        Stopped: a run was told to stop; the same sweep resumes with it.
        SweepFailed: a run or the report failed.
    """
    has_queue = load_cluster(cluster).kind in _QUEUES
    failed = []
    for number, run in enumerate(sweep.runs, start=1):
        place = f"{number}/{len(sweep.runs)} · {sweep.key} = {run.value}"
        facts = run.facts()
        if facts is not None and facts.is_finished:
            say(f"{place} · {run.folder} is finished")
            continue
        if has_queue and facts is not None:
            say(
                f"{place} · {run.folder} has begun and is not submitted again; where no job trains it any more, submit "
                f"it by `{shlex.join(sweep.command(run, cluster))}`"
            )
            continue
        say(f"{place} → {run.folder}")
        status = _call(sweep.command(run, cluster))
        if status == _STOPPED:
            raise Stopped(f"{run.folder}: was told to stop; the same sweep resumes with it")
        if status:
            failed.append(f"{sweep.key} = {run.value} ({run.folder}, status {status})")
    states = [(run, run.facts()) for run in sweep.runs]
    _show(sweep, states)
    if failed:
        say(f"{len(failed)} of {len(sweep.runs)} runs failed; the same sweep tries them again")
    begun = [run for run, facts in states if facts is not None]
    if all(facts is not None and facts.is_finished for _, facts in states) or (begun and not has_queue):
        if _call(_report(sweep, begun)):
            failed.append(f"the report of {sweep.folder}")
    elif has_queue:
        say("once all runs have finished, the same sweep writes their report")
    if failed:
        raise SweepFailed(f"{sweep.folder}: failed: {', '.join(failed)}; each has printed why")
    return [_result(run, facts) for run, facts in states]


def _report(sweep: Sweep, runs: Sequence[SweptRun]) -> tuple[str, ...]:
    folders = [str(run.folder) for run in runs]
    return (sys.executable, "-m", "megaslm", "report", *folders, "--output", str(sweep.folder / REPORT))


def _call(words: tuple[str, ...]) -> int:
    """Runs a command, and returns its exit status, negative for a signal."""
    with _passing_signals() as started:
        process = subprocess.Popen(words)
        started.append(process)
        return process.wait()


@contextmanager
def _passing_signals() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Passes SIGTERM, SIGUSR1 and SIGHUP on to the process in the list, which answers them by saving.

    A terminal sends SIGINT to that process too, so it is only kept from ending this one.
    """
    started: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in started:
            if number != signal.SIGINT:
                process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield started
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _result(run: SweptRun, facts: RunFacts | None) -> dict[str, object]:
    return {
        "value": run.value,
        "run": str(run.folder),
        "is_finished": facts is not None and facts.is_finished,
        "losses": {} if facts is None else {found.place: found.loss for found in facts.validations},
    }


def _show(sweep: Sweep, states: Sequence[tuple[SweptRun, RunFacts | None]]) -> None:
    """Prints the runs with their newest losses on held-out text."""
    places = list(dict.fromkeys(found.place for _, facts in states if facts for found in facts.validations))
    table = Table(title=f"{sweep.config} over {sweep.key}", title_justify="left")
    table.add_column(sweep.key)
    for column in ("tokens", *(f"loss, {place}" for place in places)):
        table.add_column(column, justify="right", overflow="fold")
    for run, facts in states:
        losses = {found.place: f"{found.loss:.4f}" for found in facts.validations} if facts else {}
        tokens = "not begun" if facts is None else f"{facts.last_step.tokens if facts.last_step else 0:,}"
        finished = "" if facts is None or facts.is_finished else f" of {facts.total_tokens:,}"
        table.add_row(run.value, tokens + finished, *(losses.get(place, "") for place in places))
    Console(highlight=False).print(table)
