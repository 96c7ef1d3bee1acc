"""`megaslm doctor`: what keeps this machine, or a run on it, from working."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from megaslm.cli_output import JsonFile, Overrides, announce, loading, write_json
from megaslm.errors import ConfigError
from megaslm.launch_cli import look_at_training

if TYPE_CHECKING:
    from megaslm.config.load import Loaded
    from megaslm.config.schema import RunConfig
    from megaslm.doctor.check import Check, Diagnosis
    from megaslm.doctor.run import Stores
    from megaslm.health.findings import Requirements
    from megaslm.health.host_facts import RankFacts

_ENDING = ".doctor"
"""What the name of the dry run's folder has more than the run's."""


def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="A run's configuration, a YAML file; without it only the machine is checked.")
    ] = None,
    steps: Annotated[
        bool,
        typer.Option(
            "--steps",
            help="Also make two steps, a validation and a save, as train --smoke does, and remove them. This takes a "
            "minute or more, and the machine's GPUs; it is left out where an input is missing.",
        ),
    ] = False,
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Ranks of the run on this host.", show_default="one per GPU, or 2")
    ] = None,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Check this machine, or all that a run needs of it.

    Each finding says what to do. It takes some seconds beside the imports. It prints names of environment variables,
    and never their values.

    Status 2 where a problem keeps the run, or any run, from starting; warnings give 0.
    """
    from megaslm.doctor.check import Diagnosis

    if config is None and (steps or overrides):
        raise ConfigError(f"{'--steps' if steps else '--set'}: needs a run; name its configuration, a YAML file")
    announce("doctor", "looks at this machine" + ("" if config is None else f", and at what {config} needs"))
    diagnosis = Diagnosis(typer.echo)
    _look_without_torch(diagnosis)
    asked = None if config is None else _read(diagnosis, config, overrides or [])
    with loading("doctor"):
        from megaslm.doctor.software import imports

    if diagnosis.look("imports", imports, otherwise="problem"):
        _look_at_devices(diagnosis, asked, ranks)
        if asked is not None:
            _look_at_run(diagnosis, asked, ranks, with_steps=steps)
    diagnosis.end()
    write_json(json_file, diagnosis.as_json(config))
    if diagnosis.count("problem"):
        raise typer.Exit(2)


class _Asked(NamedTuple):
    """The run that is asked about."""

    file: Path
    overrides: Sequence[str]
    loaded: "Loaded[RunConfig]"

    @property
    def config(self) -> "RunConfig":
        """Its settings."""
        return self.loaded.value

    def command(self, verb: str, *options: str) -> str:
        """A command about this run, as a user would type it."""
        settings = [word for each in self.overrides for word in ("--set", each)]
        return shlex.join(["megaslm", verb, str(self.file), *options, *settings])


def _look_without_torch(diagnosis: "Diagnosis") -> None:
    from megaslm.doctor import host, software

    diagnosis.look("megaslm", software.installation)
    diagnosis.look("libraries", software.libraries)
    diagnosis.look("bytecode", software.bytecode)
    diagnosis.look("processors", host.processors)
    diagnosis.look("open files", host.open_files)
    diagnosis.look("temporary", host.temporary_folder)
    diagnosis.look("interfaces", host.interfaces)
    diagnosis.look("launcher", host.launcher)
    diagnosis.look("environment", host.environment)
    diagnosis.look("object storage", host.object_storage)


def _read(diagnosis: "Diagnosis", file: Path, overrides: Sequence[str]) -> _Asked | None:
    """The run of a file; None where it is not a run's."""
    from megaslm.config.load import load
    from megaslm.config.schema import RunConfig
    from megaslm.doctor.settings import settings

    found: list[_Asked] = []

    def look() -> "Iterator[Check]":
        loaded = load(RunConfig, file, overrides)
        found.append(_Asked(file, overrides, loaded))
        return settings(file, loaded)

    diagnosis.look("config", look)
    return found[0] if found else None


def _look_at_devices(diagnosis: "Diagnosis", asked: _Asked | None, ranks: int | None) -> None:
    from megaslm.doctor import devices

    seen: list[RankFacts] = []

    def look() -> "Iterator[Check]":
        seen.append(devices.facts_of(_requirements(asked)))
        return devices.code(seen[0])

    # The preflight of a run would fail in the same way.
    if diagnosis.look("code", look, otherwise="problem"):
        (facts,) = seen
        diagnosis.look("GPUs", lambda: devices.gpus(facts))
        diagnosis.look("resources", lambda: devices.resources(facts, ranks or devices.usual_ranks()))
    diagnosis.look("attention", devices.attention)
    diagnosis.look("compiler", devices.compiler)
    diagnosis.look("arithmetic", devices.arithmetic)
    diagnosis.look("sandbox", devices.sandbox)


def _requirements(asked: _Asked | None) -> "Requirements":
    from megaslm.health.findings import Requirements
    from megaslm.training.requirements import requirements_of

    # The room for checkpoints is one of the inputs that are looked at.
    return Requirements({}) if asked is None else replace(requirements_of(asked.config), checkpoints=None)


def _look_at_run(diagnosis: "Diagnosis", asked: _Asked, ranks: int | None, *, with_steps: bool) -> None:
    from megaslm.doctor import run
    from megaslm.doctor.check import Check
    from megaslm.doctor.devices import usual_ranks
    from megaslm.doctor.two_steps import DryRun, make
    from megaslm.observe.display import counted
    from megaslm.training.smoke_folder import smoke_folder

    config, stores, count = asked.config, run.Stores(), ranks or usual_ranks()
    is_there = diagnosis.look("inputs", lambda: _inputs(asked.loaded, stores, count))
    diagnosis.look("store", stores.checks)
    diagnosis.look("run folder", lambda: run.run_folder(Path(config.run_dir)))
    diagnosis.look("choices", lambda: run.choices(config))
    if is_there:
        diagnosis.look("model", lambda: run.model_and_data(config, stores))
        diagnosis.look("plan", lambda: _plan(asked, count))
    again = asked.command("doctor", "--steps", *([] if ranks is None else ["--ranks", str(ranks)]))
    if not with_steps:
        diagnosis.look("dry run", lambda: [Check("dry run", "ok", f"not made; `{again}` makes two steps")])
    elif diagnosis.count("problem"):
        left_out = Check(
            "dry run", "warning", "left out, because of the problems above", f"once they are gone: {again}"
        )
        diagnosis.look("dry run", lambda: [left_out])
    else:
        announce("doctor", f"makes two steps, a validation and a save on {counted(count, 'rank')}, by {asked.file}")
        aside = f"{config.run_dir.rstrip('/')}{_ENDING}"
        dry_run = DryRun(asked.file, asked.overrides, aside, smoke_folder(aside), count)
        diagnosis.look("dry run", lambda: make(dry_run), otherwise="problem")


def _inputs(loaded: "Loaded[RunConfig]", stores: "Stores", ranks: int) -> "Iterator[Check]":
    from megaslm.doctor.run import inputs
    from megaslm.launch.findings import Findings, Reach
    from megaslm.observe.display import counted

    findings = Findings(Reach.ALL, "", read_remote=stores.read)
    told = f"{counted(ranks, 'rank')} (--ranks sets another number)"
    # A run that has begun is looked at as its next start would.
    look_at_training(findings, loaded, ranks=ranks, ranks_in_words=told, resume=True)
    warnings = [*findings.hints(), *findings.warnings]
    return inputs([*findings.mistakes, *findings.problems], warnings, findings.unseen, ranks)


def _plan(asked: _Asked, ranks: int) -> "Iterator[Check]":
    from megaslm.doctor.run import memory
    from megaslm.planning.machine import machine_of
    from megaslm.planning.plan import Request, make_plan
    from megaslm.planning.work import DEFAULT_MFU

    planned = make_plan(asked.file, asked.overrides, Request(machine_of(None, ranks), DEFAULT_MFU))
    fit = asked.command("plan", "--fit", "--gpus", str(ranks))
    machine = planned.machine
    return memory(planned.memory.peak_bytes, machine.usable_bytes, machine.device, fit)
