"""The verbs. Each verb imports its heavy dependencies itself, so that --help answers at once."""

import shlex
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megaslm import __version__
from megaslm.checkpoint_cli import checkpoint_app
from megaslm.cli_help import VerbApp
from megaslm.cli_output import (
    JsonFile,
    Overrides,
    announce,
    complain,
    end_third_party_output,
    leave_out_needless_lines,
    loading,
    say,
    say_interrupted,
    say_on_stderr,
    say_warnings,
    take_seat,
    write_json,
    write_whole_lines,
)
from megaslm.dataset_cli import inspect, verify
from megaslm.doctor_cli import doctor
from megaslm.errors import INTERRUPTED, ConfigError, MegaSLMError, PeerFailed
from megaslm.evaluate_cli import evaluate, sample
from megaslm.jobs_cli import attach, mask, prepare, score
from megaslm.launch_cli import TAKES_THE_REST, launch, look_at_training, refuse_early
from megaslm.plan_cli import plan
from megaslm.report_cli import dynamics, report

if TYPE_CHECKING:
    from megaslm.launch.findings import Findings

app = VerbApp(
    invoke_without_command=True,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = VerbApp(help="Look at configurations.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(checkpoint_app, name="checkpoint")


def main() -> None:
    """Runs a verb.

    The exit status is 0 on success, 2 on the user's mistake, 75 when told to stop, 130 on Ctrl-C where there is nothing
    to resume, 1 on a fault.
    """
    write_whole_lines()
    leave_out_needless_lines()
    try:
        app()
        status = 0
    except SystemExit as leaving:
        status = int(leaving.code or 0)
        if status == INTERRUPTED:
            say_interrupted()
    except PeerFailed as error:
        status = error.exit_status
    except MegaSLMError as error:
        complain(error)
        status = error.exit_status
    except Exception as error:
        # Printed here because the interpreter's exit takes a second, during which the other ranks would wait.
        traceback.print_exception(error)
        status = 1
    end_third_party_output(status)
    if "megaslm.engine.distributed" in sys.modules:
        from megaslm.engine.distributed import end_process

        end_process(status)
    sys.exit(status)


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Selective Language Modeling: train on the tokens worth learning."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The folder to make, with recipes and runs.")],
    model: Annotated[Path, typer.Option(help="The model to start from, a Hugging Face folder with its tokenizer.")],
    corpus: Annotated[
        list[str],
        typer.Option(metavar="PLACE", help="The large text: a file, folder, glob or URL; may be repeated."),
    ],
    curated: Annotated[
        list[str],
        typer.Option(metavar="PLACE", help="Text like that which the model is to be good at; may be repeated."),
    ],
    json_file: JsonFile = None,
) -> None:
    """Write recipes and runs for your own model and text.

    Prints the commands from text to a model.
    """
    from dataclasses import asdict

    announce("init", f"looks at {model} and at the text → {folder}")

    from megaslm.launch.inputs import look_at_project
    from megaslm.scaffold.text_look import require_text

    def look(findings: "Findings") -> None:
        for paths in look_at_project(findings, folder, model, {"corpus": corpus, "curated": curated}):
            findings.ask(partial(require_text, paths))

    refuse_early(look)

    with loading("init"):
        from megaslm.scaffold.init import init as write_project
        from megaslm.scaffold.view import show_project

    announce("init", "reads the first records of the text, and tokenises a sample to estimate its tokens")
    project = write_project(model, corpus, curated, folder)
    show_project(project)
    write_json(json_file, asdict(project))


app.command()(prepare)
app.command()(score)
app.command()(mask)
app.command()(attach)
app.command()(plan)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="The run's configuration, a YAML file.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the newest intact checkpoint, if there is one.")
    ] = False,
    allow_changed: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-changed",
            metavar="KEY",
            help="Resume although this setting, such as train.total_tokens, has changed; may be given several times.",
        ),
    ] = None,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke", help="Only try the first steps, a validation and a save, in RUN_DIR.smoke, and measure."
        ),
    ] = False,
    smoke_steps: Annotated[
        int | None, typer.Option(min=1, help="A smoke test of so many steps; --smoke makes 5.", show_default=False)
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Only look whether all inputs are there, and start nothing. Status 2 where one is missing.",
        ),
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Train a model, causal or selective. Use a launcher for several ranks."""
    from megaslm.engine.stop_signal import StopSignal

    # Listens until the process ends. The imports below take seconds, and a scheduler that stops the job meanwhile must
    # get its answer too. After the last save there is nothing to lose.
    stop = StopSignal(before_work="no step was made since the start: start again")
    stop.listen()
    seat = take_seat()

    from megaslm.config.load import load
    from megaslm.config.run_files import COMPLETE_CHECKPOINTS
    from megaslm.config.schema import RunConfig
    from megaslm.training.length import end_line
    from megaslm.training.occupied import wait_until_free
    from megaslm.training.resumption import is_finished, no_step_made
    from megaslm.training.smoke_folder import smoke_folder

    smoke = smoke or smoke_steps is not None
    loaded = load(RunConfig, config, overrides or [])
    run = loaded.value

    def look(findings: "Findings") -> RunConfig | None:
        allowed = allow_changed or ()
        return look_at_training(
            findings,
            loaded,
            ranks=seat.world_size,
            resume=resume,
            allow_changed=allowed,
            smoke=smoke,
            compares=check,
        )

    def look_for_others(findings: "Findings") -> None:
        folder = smoke_folder(run.run_dir) if smoke else Path(run.run_dir)
        findings.ask(lambda: wait_until_free(folder, lambda line: say_on_stderr("train", line)))

    if check:
        # On the standard output: of a launcher's check only a refusal and a wait are shown, for the ranks warn.
        for warning in loaded.warnings:
            typer.echo(f"warning: {warning}")
        refuse_early(look, seat)
        refuse_early(look_for_others, seat)
        announce("train", "nothing is missing, as far as this host sees")
        return
    say_warnings(loaded.warnings)
    if smoke:
        announce("train", f"a smoke test of {run.train.objective} by {config} → {smoke_folder(run.run_dir)}")
    else:
        stop.before_work = no_step_made(run.run_dir)
        begins = ""
        if resume:
            has_checkpoint = any(Path(run.run_dir).glob(COMPLETE_CHECKPOINTS))
            begins = ", from its newest checkpoint" if has_checkpoint else ", from the beginning: it has no checkpoint"
        announce("train", f"{run.train.objective} by {config} → {run.run_dir}{begins}")
    sized = refuse_early(look, seat)
    if sized is not None and resume and is_finished(sized):
        say(end_line(sized))
        return
    refuse_early(look_for_others, seat)
    with loading("train"):
        from megaslm.engine.distributed import leave_world
        from megaslm.training.smoke import STEPS
        from megaslm.training.train import train as train_model

    train_model(
        run,
        resume=resume,
        allow_changed=allow_changed or (),
        smoke_steps=smoke_steps or (STEPS if smoke else None),
        stop=stop,
    )
    leave_world()


@app.command()
def sweep(
    config: Annotated[Path, typer.Argument(help="The configuration that the runs share, a YAML file.")],
    over: Annotated[
        str | None,
        typer.Option(metavar="KEY=V,V,...", help="The setting that differs, and its values.", show_default=False),
    ] = None,
    keep_ratio: Annotated[
        str | None,
        typer.Option(metavar="V,V,...", help="The same as --over slm.keep_ratio=V,V,...", show_default=False),
    ] = None,
    cluster: Annotated[
        Path, typer.Option(help="The cluster's configuration, as `launch` takes it. With a queue, every run is a job.")
    ] = Path("launcher/local.yaml"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands of the runs; start nothing.")] = False,
    json_file: JsonFile = None,
    overrides: Overrides = None,
) -> None:
    """Train one run for each value of a setting, and report on them.

    The runs are in RUN_DIR.sweep, and share data, order of rows and seed. The same command resumes the sweep.
    """
    from megaslm.sweep import plan_sweep, run_sweep

    if (over is None) == (keep_ratio is None):
        raise ConfigError("sweep: needs one of --over and --keep-ratio")
    if over is not None:
        plan = plan_sweep(config, over, overrides or [])
    else:
        plan = plan_sweep(config, f"slm.keep_ratio={keep_ratio}", overrides or [], option="--keep-ratio")
    announce("sweep", f"{len(plan.runs)} runs of {config} over {plan.key} → {plan.folder}")
    if dry_run:
        for run in plan.runs:
            typer.echo(shlex.join(plan.command(run, cluster)))
        return
    write_json(json_file, run_sweep(plan, cluster, lambda line: announce("sweep", line)))


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="A run folder, for its newest checkpoint, or one checkpoint.")],
    output: Annotated[Path, typer.Argument(help="The Hugging Face folder to write.")],
    json_file: JsonFile = None,
) -> None:
    """Write a checkpoint as a Hugging Face folder. AutoModelForCausalLM loads it."""
    announce("export", f"{source} → {output}")

    from megaslm.launch.inputs import look_at_export

    refuse_early(lambda findings: look_at_export(findings, {"source": source, "output": output}))

    with loading("export"):
        from megaslm.model.finished import unfinished
        from megaslm.training.export import export as export_checkpoint

    announce("export", "compares the checkpoint with its hashes, writes the model and opens it with transformers")
    exported = export_checkpoint(source, output)
    typer.echo(f"{exported.checkpoint} → {output}")
    how_far = unfinished(exported.steps, exported.total_steps)
    if how_far is not None:
        say_warnings(
            [
                f"{exported.checkpoint}: {how_far}, so {output} is not its final model: a corpus scored with it gets "
                "other losses than from the finished one; resume the run with `megaslm train CONFIG --resume`, and "
                "export it again"
            ]
        )
    written = {"checkpoint": str(exported.checkpoint), "output": str(output)}
    write_json(json_file, written | {"steps": exported.steps, "total_steps": exported.total_steps})


app.command(context_settings=TAKES_THE_REST)(launch)
app.command()(verify)
app.command()(inspect)
app.command()(evaluate)
app.command()(sample)
app.command()(dynamics)
app.command()(report)
app.command()(doctor)


@app.command()
def demo(
    configs: Annotated[Path, typer.Option(help="The demo's configurations.")] = Path("configs/demo"),
    json_file: JsonFile = None,
) -> None:
    """Run all steps on a small corpus, from text to a comparison. These are prepare, base, reference, scoring, CLM, SLM
    and export.

    An interrupted demo resumes when the command is run again. Of a finished one, the results are shown.
    """
    announce("demo", f"all steps from text to a comparison of CLM and SLM, by {configs}")

    from megaslm.demo import run_demo

    summary = run_demo(configs)
    write_json(json_file, summary)


@config_app.command("explain")
def explain(
    config: Annotated[Path, typer.Argument(help="A run's configuration or, with --recipe, a corpus recipe.")],
    overrides: Overrides = None,
    recipe: Annotated[bool, typer.Option("--recipe", help="The file is a corpus recipe.")] = False,
) -> None:
    """Print each setting with its meaning and the origin of its value."""
    from rich.console import Console

    from megaslm.config.explain import explain as explain_settings
    from megaslm.config.explain import render
    from megaslm.config.load import load
    from megaslm.config.recipe import Recipe
    from megaslm.config.schema import RunConfig
    from megaslm.config.section import Section

    model_class: type[Section] = Recipe if recipe else RunConfig
    # A file or a pipe has no width at which to fold the lines.
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    loaded = load(model_class, config, overrides or [])
    say_warnings(loaded.warnings)
    console.print(render(explain_settings(loaded)))
