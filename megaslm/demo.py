"""The `demo` verb: the whole process on a small corpus, by the commands of any run, and its results."""

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from megaslm.config.load import load
from megaslm.config.schema import RunConfig
from megaslm.errors import ConfigError, MegaSLMError
from megaslm.observe.records import ValidationRecord, read_validations

LAUNCHER = Path("launcher/local.sh")
RECIPE = Path("data/demo.yaml")
TARGET = "target"
"""The held-out set of the domain that the reference was trained on."""
_MARKER = ".demo"


@dataclass(frozen=True)
class Stage:
    """One command of the demo."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class StageTime:
    """The duration of a stage, start-up included."""

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
    """Runs every stage, prints the comparison and writes summary.json beside the runs.

    Raises:
        ConfigError: the launcher and the configurations are not in the working directory.
        StageFailed: a stage failed.
    """
    for needed in (LAUNCHER, RECIPE, configs):
        if not needed.exists():
            raise ConfigError(f"{needed}: no such file; start the demo in MegaSLM's repository")
    runs = _Runs(
        configs, *(load(RunConfig, configs / f"{name}.yaml").value for name in ("base", "reference", "clm", "slm"))
    )
    console = Console(highlight=False)
    _start_afresh(runs.folder)
    stages = list(_stages(runs))
    times = [_run(stage, f"{number}/{len(stages)}", console) for number, stage in enumerate(stages, start=1)]
    summary = _summary(runs, times)
    content: dict[str, object] = asdict(summary)
    (runs.folder / "summary.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _show(summary, runs, console)
    return content


def _start_afresh(folder: Path) -> None:
    """Removes only the outputs of an earlier demo."""
    if folder.exists():
        if not (folder / _MARKER).is_file():
            raise ConfigError(f"{folder}: exists and was not made by the demo; move it away")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / _MARKER).touch()


def _stages(runs: _Runs) -> Iterator[Stage]:
    tokens, scored = str(runs.clm.data.train), str(runs.slm.data.train)
    reference_model = str(runs.folder / "reference-model")
    yield Stage("prepare", _alone("prepare", str(RECIPE), tokens))
    yield Stage("base", _launched("train", str(runs.configs / "base.yaml")))
    yield Stage("reference", _launched("train", str(runs.configs / "reference.yaml")))
    yield Stage("export reference", _alone("export", runs.reference.run_dir, reference_model))
    yield Stage("score", _launched("score", "--reference", reference_model, tokens, scored))
    yield Stage("clm", _launched("train", str(runs.configs / "clm.yaml")))
    yield Stage("slm", _launched("train", str(runs.configs / "slm.yaml")))
    yield Stage("export slm", _alone("export", runs.slm.run_dir, str(runs.folder / "slm-model")))


def _alone(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "megaslm", *arguments)


def _launched(*arguments: str) -> tuple[str, ...]:
    return (str(LAUNCHER), *arguments)


def _run(stage: Stage, place: str, console: Console) -> StageTime:
    shown = " ".join("megaslm" if part == sys.executable else part for part in stage.command)
    console.rule(f"[bold]{place} {stage.name}[/bold]", align="left")
    console.print(shown.replace("megaslm -m megaslm", "megaslm"), style="dim", soft_wrap=True)
    started = time.monotonic()
    status = subprocess.run(stage.command, check=False).returncode
    if status != 0:
        raise StageFailed(f"stage {stage.name} ended with status {status}: {' '.join(stage.command)}")
    return StageTime(stage.name, time.monotonic() - started)


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
        f"numbers      {folder / 'summary.json'}\n"
        f"curves       tensorboard --logdir {folder}\n"
        f"every step   {Path(runs.slm.run_dir) / 'metrics.jsonl'}\n"
        f"SLM's model  {folder / 'slm-model'} (loads with transformers)",
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
        f"SLM reached CLM's final loss after {summary.slm_tokens_to_reach_clm:,} of {summary.clm_tokens:,} "
        f"tokens ({share:.0%}), "
        f"the reference's training and the scoring not counted."
    )


def _cost(summary: Summary) -> str:
    seconds = {stage.name: stage.seconds for stage in summary.stages}
    whole = seconds["reference"] + seconds["export reference"] + seconds["score"] + seconds["slm"]
    return (
        f"CLM took {seconds['clm']:.0f} s; SLM took {seconds['slm']:.0f} s, or {whole:.0f} s including its reference "
        f"and the scoring."
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
