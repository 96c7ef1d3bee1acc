"""The verbs. Each verb imports its heavy dependencies itself, so that --help answers at once."""

import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megaslm import __version__
from megaslm.checkpoint_cli import checkpoint_app
from megaslm.dataset_cli import inspect, verify
from megaslm.engine.seat import ALONE, seat_in
from megaslm.errors import ConfigError, MegaSLMError, PeerFailed
from megaslm.json_option import JsonFile, write_json
from megaslm.launch_cli import TAKES_THE_REST, launch

if TYPE_CHECKING:
    from megaslm.jobs.ray_workers import RayCluster

app = typer.Typer(
    invoke_without_command=True,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Look at configurations.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(checkpoint_app, name="checkpoint")
app.command(context_settings=TAKES_THE_REST)(launch)

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be given several times.")
]
Work = Annotated[
    Path | None, typer.Option("--work", help="For an output at a URL: the local folder for parts before their upload.")
]
Cache = Annotated[Path, typer.Option("--cache", help="For a dataset at a URL: the folder for downloaded files.")]

Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(help="Where processes run: on this host or as its launcher placed them (local), or on a Ray cluster."),
]
RayAddress = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="With --engine ray: the cluster's head; by default $RAY_ADDRESS."),
]

_seat = ALONE
"""This process's seat. Verbs that run on many ranks set it. Other verbs run as one process under any environment."""


def main() -> None:
    """Runs a verb: exit status 0 on success, 2 on the user's mistake, 75 when told to stop, 1 on a fault."""
    try:
        app()
        status = 0
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    except PeerFailed as error:
        status = error.exit_status
    except MegaSLMError as error:
        _complain(error)
        status = error.exit_status
    except Exception as error:
        # Printed here because the interpreter's exit takes a second, during which the other ranks would wait.
        traceback.print_exception(error)
        status = 1
    if "megaslm.engine.distributed" in sys.modules:
        from megaslm.engine.distributed import end_process

        end_process(status)
    sys.exit(status)


def _say_warnings(lines: Sequence[str]) -> None:
    if _seat.rank == 0:
        for line in lines:
            typer.echo(f"warning: {line}", err=True)


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Selective Language Modeling: train on the tokens worth learning."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def prepare(
    recipe: Annotated[Path, typer.Argument(help="The corpus recipe, a YAML file.")],
    output: Annotated[str, typer.Argument(help="The dataset to write: a folder or a URL, such as s3://bucket/web.")],
    work: Work = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one per core.")] = None,
    part: Annotated[
        str | None,
        typer.Option(metavar="N/COUNT", help="Do only share N of COUNT of the work."),
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Make the dataset from the work of all --part runs.")
    ] = False,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Make a dataset of packed token rows from text. An interrupted job resumes when the command is run again."""
    from megaslm.config.cluster import Share
    from megaslm.config.load import load
    from megaslm.config.recipe import Recipe

    share = None if part is None else Share.parse(part)
    if share is not None and finish:
        raise ConfigError("--part and --finish: --part does a share of the work, --finish follows when all are done")
    if finish and engine != "local":
        raise ConfigError(
            f"--engine {engine}: has no effect with --finish, which starts no processes that read text; leave it out"
        )
    loaded = load(Recipe, recipe, overrides or []).value

    from megaslm.observe.console import JobConsole
    from megaslm.preparing import prepare as preparing

    if finish:
        manifest = preparing.finish(loaded, output, working=work)
        _say_dataset(output, manifest.model_dump(mode="json"), json_file)
        _say_passed_over(manifest.passed_over)
        return
    with JobConsole("prepare") as console, _engine(engine, ray_address) as ray:
        show = console.show
        if share is not None:
            preparing.prepare_share(loaded, output, share, working=work, workers=workers, on_progress=show, ray=ray)
            return
        manifest = preparing.prepare(loaded, output, working=work, workers=workers, on_progress=show, ray=ray)
    _say_dataset(output, manifest.model_dump(mode="json"), json_file)
    _say_passed_over(manifest.passed_over)


@app.command()
def score(
    dataset: Annotated[str, typer.Argument(help="The dataset to score: a folder or a URL.")],
    output: Annotated[str, typer.Argument(help="The scored dataset to write: a folder or a URL.")],
    reference: Annotated[Path, typer.Option(help="The reference model, a Hugging Face folder.")],
    precision: Annotated[
        Literal["auto", "bf16", "fp32"], typer.Option(help="Arithmetic; auto is bf16 on GPUs, fp32 on CPUs.")
    ] = "auto",
    document_isolation: Annotated[
        bool, typer.Option(help="Whether each document of a row is read on its own; must be as in the run.")
    ] = True,
    entropy: Annotated[
        bool,
        typer.Option(
            "--entropy",
            help="Also store the entropies of its predictions, for the criteria entropy and reference_and_entropy.",
        ),
    ] = False,
    window: Annotated[
        int | None,
        typer.Option(help="Tokens the model sees at once; by default a row, or as many as the model has positions."),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens between the starts of two windows of a row, where a window is shorter than a row."),
    ] = None,
    batch_rows: Annotated[int, typer.Option(min=1, help="Rows per forward pass.")] = 16,
    part: Annotated[
        str | None,
        typer.Option(metavar="N/COUNT", help="Score only share N of COUNT of the rows."),
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Make the dataset from the scores of all --part jobs.")
    ] = False,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    work: Work = None,
    cache: Cache = Path("~/.cache/megaslm"),
    json_file: JsonFile = None,
) -> None:
    """Store a reference model's losses beside a dataset's tokens. Use a launcher for several ranks.

    An interrupted job resumes when the command is run again, on any number of ranks. Where the dataset has grown, only
    its new parts are scored.
    """
    _take_seat()

    from megaslm.config.cluster import Share

    share = None if part is None else Share.parse(part)
    if share is not None and finish:
        raise ConfigError("--part and --finish: --part scores a share of the parts, --finish follows when all are done")

    from megaslm.observe.console import JobConsole
    from megaslm.scoring import job
    from megaslm.scoring.request import ScoreRequest, ScoreSettings

    settings = ScoreSettings(
        precision=precision,
        document_isolation=document_isolation,
        batch_rows=batch_rows,
        entropy=entropy,
        window=window,
        stride=stride,
    )
    task = ScoreRequest(reference, dataset, output, settings, working=work, cache=cache)
    # At the end no rank waits for the others: one may have died, and the others have done its work.
    with JobConsole("score") as console, _engine(engine, ray_address) as ray:
        if ray is not None:
            if part is not None or finish or _seat.world_size > 1:
                raise ConfigError("--engine ray: scores all parts; leave out --part, --finish and the launcher")
            manifest = job.score_on_ray(task, ray, console.show)
            _say_dataset(output, manifest.model_dump(mode="json"), json_file)
            return
        if share is not None:
            job.score_share(task, share, console.show)
            return
        manifest = job.finish(task) if finish else job.score(task, console.show)
    if _seat.rank == 0:
        _say_dataset(output, manifest.model_dump(mode="json"), json_file)


@app.command()
def mask(
    dataset: Annotated[str, typer.Argument(help="The scored dataset: a folder or a URL.")],
    output: Annotated[str, typer.Argument(help="The masked dataset to write: a folder or a URL.")],
    criterion: Annotated[
        Literal["reference", "entropy", "reference_and_entropy"],
        typer.Option(
            "--criterion", "--score", help="What is ranked in each row, smallest first; as slm.criterion of the runs."
        ),
    ] = "reference",
    keep_ratio: Annotated[str, typer.Option(help="The share of targets to keep; as slm.keep_ratio.")] = "0.6",
    max_ref_loss: Annotated[
        float | None, typer.Option(help="Most reference loss, in nats, of a kept target; as slm.max_ref_loss.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; by default one per core.")] = None,
    work: Work = None,
    cache: Cache = Path("~/.cache/megaslm"),
    json_file: JsonFile = None,
) -> None:
    """Store a static selection as one bit per target.

    The bits replace the losses. The selection is made of reference losses and entropies, for runs with a static
    criterion and slm.scope sequence. An interrupted job resumes when the command is run again. Where the dataset has
    grown, only its new parts are masked.
    """
    from megaslm.observe.console import JobConsole
    from megaslm.scoring.mask import mask_rule
    from megaslm.scoring.mask_job import MaskRequest
    from megaslm.scoring.mask_job import mask as mask_dataset

    rule = mask_rule(criterion, keep_ratio, max_ref_loss)
    task = MaskRequest(dataset, output, rule, workers=workers, working=work, cache=cache)
    with JobConsole("mask") as console:
        manifest = mask_dataset(task, console.show)
    _say_dataset(output, manifest.model_dump(mode="json"), json_file)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="The run's configuration, a YAML file.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the newest intact checkpoint, if there is one.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Train a model, causal or selective. Use a launcher for several ranks."""
    from megaslm.engine.stop_signal import StopSignal

    # Listens until the process ends. The imports below take seconds, and a scheduler that stops the job meanwhile must
    # get its answer too. After the last save there is nothing to lose.
    stop = StopSignal()
    stop.listen()
    _take_seat()

    from megaslm.config.load import load
    from megaslm.config.schema import RunConfig

    loaded = load(RunConfig, config, overrides or [])
    _say_warnings(loaded.warnings)

    from megaslm.engine.distributed import leave_world
    from megaslm.training.train import train as train_model

    train_model(loaded.value, resume=resume, stop=stop)
    leave_world()


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="A run folder, for its newest checkpoint, or one checkpoint.")],
    output: Annotated[Path, typer.Argument(help="The Hugging Face folder to write.")],
    json_file: JsonFile = None,
) -> None:
    """Write a checkpoint as a Hugging Face folder. AutoModelForCausalLM loads it."""
    from megaslm.training.export import export as export_checkpoint

    checkpoint = export_checkpoint(source, output)
    typer.echo(f"{checkpoint} → {output}")
    write_json(json_file, {"checkpoint": str(checkpoint), "output": str(output)})


app.command()(verify)
app.command()(inspect)


@app.command()
def demo(
    configs: Annotated[Path, typer.Option(help="The demo's configurations.")] = Path("configs/demo"),
    json_file: JsonFile = None,
) -> None:
    """Run all steps on a small corpus, from text to a comparison. These are prepare, base, reference, scoring, CLM, SLM
    and export."""
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
    # A file or a pipe has no width at which to fold the columns.
    console = Console(width=None if sys.stdout.isatty() else 200)
    loaded = load(model_class, config, overrides or [])
    _say_warnings(loaded.warnings)
    console.print(render(explain_settings(loaded)))


def _say_dataset(folder: Path | str, manifest: dict[str, object], json_file: Path | None) -> None:
    splits: dict[str, dict[str, dict[str, int]]] = manifest["splits"]  # type: ignore[assignment]
    for split, domains in splits.items():
        for domain, share in domains.items():
            typer.echo(f"{folder} · {split}/{domain}: {share['rows']:,} rows, {share['tokens']:,} targets")
    write_json(json_file, manifest)


def _say_passed_over(passed_over: Mapping[str, int]) -> None:
    from megaslm.corpus.patterns import in_words

    if passed_over:
        typer.echo(f"not read of the recipe's folders: {in_words(passed_over)}")


@contextmanager
def _engine(engine: str, address: str | None) -> Iterator["RayCluster | None"]:
    """The Ray cluster, for --engine ray; None otherwise."""
    if engine == "local":
        if address is not None:
            raise ConfigError(f"--ray-address {address}: needs --engine ray")
        yield None
        return
    from megaslm.jobs.ray_workers import ray_cluster

    with ray_cluster(address) as cluster:
        yield cluster


def _take_seat() -> None:
    """Called before any output that all ranks have in common, so that only one rank prints it."""
    global _seat
    _seat = seat_in(os.environ)


def _complain(error: MegaSLMError) -> None:
    """Prints the message, once where every rank has the same."""
    if _seat.rank == 0:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
    elif not error.is_known_to_all_ranks:
        typer.echo(f"rank {_seat.rank}: {type(error).__name__}: {error}", err=True)
