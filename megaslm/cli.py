"""The verbs. Everything heavy is imported by the verb that needs it, so that --help answers at once."""

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
    Path | None, typer.Option("--work", help="For an output at a URL: a local folder for parts on their way there.")
]
Cache = Annotated[
    Path, typer.Option("--cache", help="For a dataset at a URL: the folder in which what is fetched is kept.")
]

Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(help="Who places the processes: this command or the launcher above it, or a Ray cluster."),
]
RayAddress = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="With --engine ray: the cluster's head; by default what RAY_ADDRESS says."),
]

_seat = ALONE
"""Of this process; taken by the verbs that many ranks run together. Others run as one, whatever a launcher has left."""


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
        # Here and not at the interpreter's end, which takes a second in which the other ranks wait.
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
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    part: Annotated[
        str | None,
        typer.Option(metavar="N/COUNT", help="Do the N-th of COUNT shares of the work only."),
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Make the dataset of what all --part runs have done.")
    ] = False,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Make a dataset of packed token rows from text. What is interrupted goes on when it is started again."""
    from megaslm.config.cluster import Share
    from megaslm.config.load import load
    from megaslm.config.recipe import Recipe

    share = None if part is None else Share.parse(part)
    if share is not None and finish:
        raise ConfigError("--part and --finish: one does a share of the work, the other follows when all are done")
    if finish and engine != "local":
        raise ConfigError(
            f"--engine {engine}: places processes that read text, of which --finish starts none; leave it out"
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
        typer.Option(help="Tokens it sees at once; by default a row, or as many as it has positions for."),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens between the starts of two windows of a row, where a window is shorter than a row."),
    ] = None,
    batch_rows: Annotated[int, typer.Option(min=1, help="Rows read at once.")] = 16,
    part: Annotated[
        str | None,
        typer.Option(metavar="N/COUNT", help="Score the N-th of COUNT shares of the rows only."),
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Make the dataset of what all --part jobs have scored.")
    ] = False,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    work: Work = None,
    cache: Cache = Path("~/.cache/megaslm"),
    json_file: JsonFile = None,
) -> None:
    """Compute a reference model's losses and store them beside the tokens. Start it with a launcher for many ranks.

    What is interrupted goes on when it is started again, on any number of ranks. Where the dataset has grown, only its
    new parts are scored.
    """
    _take_seat()

    from megaslm.config.cluster import Share

    share = None if part is None else Share.parse(part)
    if share is not None and finish:
        raise ConfigError("--part and --finish: one scores a share of the parts, the other follows when all are done")

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
    # At the end no rank waits for the others: one of them may have died, and its work been done by them.
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
    keep_ratio: Annotated[str, typer.Option(help="The share of targets that is kept; as slm.keep_ratio.")] = "0.6",
    max_ref_loss: Annotated[
        float | None, typer.Option(help="Most nats of a target that may be kept; as slm.max_ref_loss.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; by default one a core.")] = None,
    work: Work = None,
    cache: Cache = Path("~/.cache/megaslm"),
    json_file: JsonFile = None,
) -> None:
    """Turn reference losses and entropies into one bit a target, for runs with a static criterion and slm.scope
    sequence.

    What is interrupted goes on when it is started again. Where the dataset has grown, only its new parts are masked.
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
    config: Annotated[Path, typer.Argument(help="The run, a YAML file.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint that is whole, where there is one.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Train a model: causal or selective. Start it with a launcher for many ranks."""
    from megaslm.engine.stop_signal import StopSignal

    # To the end of the process: what follows takes seconds to import, and after the last save nothing is to be lost.
    # A scheduler that stops the job then gets its answer too.
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
    """Write a checkpoint as a Hugging Face folder that AutoModelForCausalLM loads."""
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
    """The whole way on a small corpus: prepare, base, reference, scoring, CLM, SLM, export, comparison."""
    from megaslm.demo import run_demo

    summary = run_demo(configs)
    write_json(json_file, summary)


@config_app.command("explain")
def explain(
    config: Annotated[Path, typer.Argument(help="A run or, with --recipe, a corpus recipe.")],
    overrides: Overrides = None,
    recipe: Annotated[bool, typer.Option("--recipe", help="The file is a corpus recipe.")] = False,
) -> None:
    """Print each setting, its meaning and where its value came from."""
    from rich.console import Console

    from megaslm.config.explain import explain as explain_settings
    from megaslm.config.explain import render
    from megaslm.config.load import load
    from megaslm.config.recipe import Recipe
    from megaslm.config.schema import RunConfig
    from megaslm.config.section import Section

    model_class: type[Section] = Recipe if recipe else RunConfig
    # In a file or a pipe there is no edge to fold the columns at.
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
    """The cluster, where Ray is to place the processes."""
    if engine == "local":
        if address is not None:
            raise ConfigError(f"--ray-address {address}: is for --engine ray")
        yield None
        return
    from megaslm.jobs.ray_workers import ray_cluster

    with ray_cluster(address) as cluster:
        yield cluster


def _take_seat() -> None:
    """Before anything that all ranks may have to say, so that it is said once."""
    global _seat
    _seat = seat_in(os.environ)


def _complain(error: MegaSLMError) -> None:
    """Prints the message, once where every rank has the same to say."""
    if _seat.rank == 0:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
    elif not error.is_known_to_all_ranks:
        typer.echo(f"rank {_seat.rank}: {type(error).__name__}: {error}", err=True)
