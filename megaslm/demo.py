"""The `demo` verb: the whole process on a small corpus, by the commands of any run, and its results."""

import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from megaslm.config.load import load
from megaslm.config.recipe import Recipe
from megaslm.config.schema import RunConfig
from megaslm.config.section import Section
from megaslm.errors import ConfigError, MegaSLMError
from megaslm.files import looked_in, read_back, write_file
from megaslm.observe.display import duration
from megaslm.observe.records import ValidationRecord, read_validations

LAUNCHER = Path("launcher/local.sh")
RECIPE = Path("data/demo.yaml")
TARGET = "target"
"""The held-out set of the domain that the reference was trained on."""
_MARKER = ".demo"
_SUMMARY = "summary.json"
_REPORT = "report.html"


@dataclass(frozen=True)
class Stage:
    """One command of the demo. It resumes where it was interrupted."""

    name: str
    command: tuple[str, ...]
    output: Path
    """The folder that it writes."""
    settings: str
    """The settings that decide what it writes."""
    appears_whole: bool = False
    """Whether its output is there only once it is done. Such a stage cannot be run again."""

    @property
    def settings_sha256(self) -> str:
        """The fingerprint of its settings."""
        return hashlib.sha256(self.settings.encode()).hexdigest()


@dataclass(frozen=True)
class StageTime:
    """The duration of a stage over all attempts, start-up included."""

    name: str
    seconds: float


@dataclass(frozen=True)
class ModelResult:
    """A run's final loss on held-out text of the target domain."""

    name: str
    tokens: int
    """Targets read; where the run continues the base run, those of the base run included."""
    loss: float
    perplexity: float


@dataclass(frozen=True)
class Summary:
    """The demo's results, as written to summary.json."""

    models: tuple[ModelResult, ...]
    stages: tuple[StageTime, ...]
    slm_tokens_to_reach_clm: int | None
    """Targets read at SLM's first validation at or below CLM's final loss; None where there was none."""
    clm_tokens: int
    slm_minus_clm_loss: float
    """Negative where SLM's final loss is lower."""
    total_seconds: float


class StageFailed(MegaSLMError):
    """A command of the demo ended with another status than 0. It has printed why."""


class _Begun(BaseModel):
    """What is recorded of a stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float
    done: bool
    settings_sha256: str | None
    """Null where an earlier build did the stage."""


class _Record(BaseModel):
    """The content of `.demo`, which marks the folder as the demo's."""

    model_config = ConfigDict(extra="forbid")

    stages: dict[str, _Begun] = {}


class _Timed(BaseModel):
    name: str
    seconds: float


class _TimedStages(BaseModel):
    """What an earlier build's summary.json tells of the stages, all of which were done."""

    stages: tuple[_Timed, ...]


@dataclass(frozen=True)
class _Runs:
    configs: Path
    base: RunConfig
    reference: RunConfig
    clm: RunConfig
    slm: RunConfig

    @property
    def folder(self) -> Path:
        return Path(self.base.run_dir).parent


def run_demo(configs: Path) -> dict[str, object]:
    """Runs every stage that is not done yet, prints the comparison and writes summary.json beside the runs.

    Nothing is removed: other configurations read what the demo leaves.

    Raises:
        ConfigError: the launcher and the configurations are not in the working directory, or the folder holds something
            else or a demo with other settings.
        StageFailed: a stage failed.
    """
    for needed in (LAUNCHER, RECIPE, configs):
        if not needed.exists():
            raise ConfigError(f"{needed}: no such file{looked_in(needed)}; start the demo in MegaSLM's repository")
    runs = _Runs(
        configs, *(load(RunConfig, configs / f"{name}.yaml").value for name in ("base", "reference", "clm", "slm"))
    )
    console = Console(highlight=False)
    stages = list(_stages(runs))
    record = _begun(runs.folder)
    _require_same_settings(runs.folder, stages, record)
    for number, stage in enumerate(stages, start=1):
        _run(stage, f"{number}/{len(stages)}", runs.folder, record, console)
    times = [StageTime(stage.name, record.stages[stage.name].seconds) for stage in stages]
    summary = _summary(runs, times)
    content: dict[str, object] = asdict(summary)
    write_file(runs.folder / _SUMMARY, json.dumps(content, indent=1) + "\n")
    _show(summary, runs, console)
    return content


def _begun(folder: Path) -> _Record:
    """The stages that earlier attempts began. Makes the folder if there is none."""
    marker = folder / _MARKER
    if not folder.exists():
        folder.mkdir(parents=True)
        _write(folder, _Record())
    if not marker.is_file():
        raise ConfigError(f"{folder}: exists and was not made by the demo; move it away")
    remedy = f"remove {folder} and run the demo anew"
    content = marker.read_bytes()
    if content:
        return read_back(_Record, content, str(marker), remedy)
    # Earlier builds left the marker empty.
    summary = folder / _SUMMARY
    if not summary.is_file():
        return _Record()
    timed = read_back(_TimedStages, summary.read_bytes(), str(summary), remedy).stages
    return _Record(stages={each.name: _Begun(seconds=each.seconds, done=True, settings_sha256=None) for each in timed})


def _write(folder: Path, record: _Record) -> None:
    write_file(folder / _MARKER, record.model_dump_json(indent=1) + "\n")


def _require_same_settings(folder: Path, stages: Sequence[Stage], record: _Record) -> None:
    """Raises ConfigError where a stage was begun with other settings: its results would not fit the others."""
    for stage in stages:
        begun = record.stages.get(stage.name)
        if begun is not None and begun.settings_sha256 not in (None, stage.settings_sha256):
            raise ConfigError(
                f"{folder}: the settings of the demo's stage {stage.name!r} have changed since it was run; undo the "
                f"change to see its results, or `rm -r {folder}` and run all stages anew"
            )


def _stages(runs: _Runs) -> Iterator[Stage]:
    tokens, scored = str(runs.clm.data.train), str(runs.slm.data.train)
    reference_model, slm_model = (str(runs.folder / name) for name in ("reference-model", "slm-model"))

    def train(name: str, config: RunConfig) -> Stage:
        command = _launched("train", str(runs.configs / f"{name}.yaml"), "--resume")
        return Stage(name, command, Path(config.run_dir), _as_set(config))

    def export(name: str, run: RunConfig, model: str) -> Stage:
        return Stage(name, _alone("export", run.run_dir, model), Path(model), _as_set(run), appears_whole=True)

    recipe = _as_set(load(Recipe, RECIPE).value)
    score = _launched("score", "--reference", reference_model, tokens, scored)
    yield Stage("prepare", _alone("prepare", str(RECIPE), tokens), Path(tokens), recipe)
    yield train("base", runs.base)
    yield train("reference", runs.reference)
    yield export("export reference", runs.reference, reference_model)
    yield Stage("score", score, Path(scored), " ".join(score))
    yield train("clm", runs.clm)
    yield train("slm", runs.slm)
    yield export("export slm", runs.slm, slm_model)
    page = str(runs.folder / _REPORT)
    report = _alone("report", runs.clm.run_dir, runs.slm.run_dir, "--output", page)
    yield Stage("report", report, Path(page), " ".join(report), appears_whole=True)


def _as_set(settings: Section) -> str:
    """What the files say, without the defaults, which another version may have changed."""
    return json.dumps(settings.model_dump(mode="json", exclude_unset=True), sort_keys=True)


def _alone(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "megaslm", *arguments)


def _launched(*arguments: str) -> tuple[str, ...]:
    return (str(LAUNCHER), *arguments)


def _run(stage: Stage, place: str, folder: Path, record: _Record, console: Console) -> None:
    """Runs a stage, unless it is done, and records that it is done and how long it took."""
    shown = " ".join("megaslm" if part == sys.executable else part for part in stage.command)
    console.rule(f"[bold]{place} {stage.name}[/bold]", align="left")
    begun = record.stages.get(stage.name)
    if begun is not None and begun.done and stage.output.exists():
        console.print(f"{stage.output}: done before, in {duration(begun.seconds)}", soft_wrap=True)
        return
    console.print(shown.replace("megaslm -m megaslm", "megaslm"), style="dim", soft_wrap=True)
    started, before = time.monotonic(), 0.0 if begun is None else begun.seconds
    status: int | None = None
    try:
        # A kill may have come between the output and its record.
        is_there = stage.appears_whole and stage.output.exists()
        status = 0 if is_there else subprocess.run(stage.command, check=False).returncode
    finally:
        seconds = before + time.monotonic() - started
        record.stages[stage.name] = _Begun(seconds=seconds, done=status == 0, settings_sha256=stage.settings_sha256)
        _write(folder, record)
    if status != 0:
        raise StageFailed(
            f"stage {stage.name} ended with status {status}: {' '.join(stage.command)}; `megaslm demo` resumes with it"
        )


def _summary(runs: _Runs, times: Sequence[StageTime]) -> Summary:
    base, reference, clm, slm = (_target_records(run) for run in (runs.base, runs.reference, runs.clm, runs.slm))
    before = base[-1].tokens
    reached = next((record.tokens for record in slm if record.loss <= clm[-1].loss), None)
    return Summary(
        models=(
            _result("base", base, 0),
            _result("reference", reference, before),
            _result("CLM", clm, before),
            _result("SLM", slm, before),
        ),
        stages=tuple(times),
        slm_tokens_to_reach_clm=reached,
        clm_tokens=clm[-1].tokens,
        slm_minus_clm_loss=slm[-1].loss - clm[-1].loss,
        total_seconds=sum(stage.seconds for stage in times),
    )


def _target_records(run: RunConfig) -> list[ValidationRecord]:
    records = read_validations(Path(run.run_dir) / "metrics.jsonl")
    return [record for record in records if record.name == TARGET]


def _result(name: str, records: Sequence[ValidationRecord], before: int) -> ModelResult:
    last = records[-1]
    return ModelResult(name=name, tokens=before + last.tokens, loss=last.loss, perplexity=last.perplexity)


def _show(summary: Summary, runs: _Runs, console: Console) -> None:
    console.rule("[bold]results[/bold]", align="left")
    console.print(_model_table(summary))
    console.print(_verdict(summary), soft_wrap=True)
    console.print(_time_table(summary))
    console.print(_cost(summary), soft_wrap=True)
    folder = runs.folder
    console.print(
        f"report       {folder / _REPORT} (open it in a browser)\n"
        f"numbers      {folder / _SUMMARY}\n"
        f"curves       tensorboard --logdir {folder}\n"
        f"every step   {Path(runs.slm.run_dir) / 'metrics.jsonl'}\n"
        f"SLM's model  {folder / 'slm-model'} (loads with transformers)\n"
        f"once more    rm -r {folder} and the same command; until then the demo shows these results",
        soft_wrap=True,
    )


def _model_table(summary: Summary) -> Table:
    table = Table(title="Held-out target domain, all tokens", title_justify="left")
    table.add_column("model")
    for name in ("tokens read", "loss (nats)", "perplexity"):
        table.add_column(name, justify="right")
    for model in summary.models:
        table.add_row(model.name, f"{model.tokens:,}", f"{model.loss:.4f}", f"{model.perplexity:.2f}")
    return table


def _verdict(summary: Summary) -> str:
    difference = summary.slm_minus_clm_loss
    lower = "lower" if difference < 0 else "higher"
    ended = (
        f"At equal tokens and schedule SLM ended {abs(difference):.4f} nats {lower} than CLM "
        f"(perplexity × {math.exp(difference):.3f}). "
    )
    if summary.slm_tokens_to_reach_clm is None:
        return ended + "SLM did not reach CLM's final loss."
    share = summary.slm_tokens_to_reach_clm / summary.clm_tokens
    return ended + (
        f"It reached CLM's final loss by the validation after {summary.slm_tokens_to_reach_clm:,} of "
        f"{summary.clm_tokens:,} tokens ({share:.0%}). The reference's training and the scoring are not counted."
    )


def _cost(summary: Summary) -> str:
    seconds = {stage.name: stage.seconds for stage in summary.stages}
    whole = seconds["reference"] + seconds["export reference"] + seconds["score"] + seconds["slm"]
    return (
        f"CLM took {duration(seconds['clm'])}; SLM took {duration(seconds['slm'])}, or {duration(whole)} including its "
        "reference and the scoring."
    )


def _time_table(summary: Summary) -> Table:
    table = Table(title="Seconds, start-up included", title_justify="left")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    for stage in summary.stages:
        table.add_row(stage.name, f"{stage.seconds:.1f}")
    table.add_section()
    table.add_row("all", f"{summary.total_seconds:.1f}")
    return table
