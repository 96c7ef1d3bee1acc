"""`megaslm verify` and `megaslm inspect`: check or show a dataset, and the order in which a run reads it."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megaslm import checkpoint_cli
from megaslm.cli_output import JsonFile, announce, say_on_stderr, write_json
from megaslm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from megaslm.dataset.kinds import Kind


def verify(
    dataset: Annotated[Path, typer.Argument(help="The dataset to read, or a run's folder, for its checkpoints.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; by default one per core.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Read every byte of a dataset and report all corruption. Of a run's folder, read the checkpoints."""
    from megaslm.dataset.kinds import Kind

    kind = _kind_of(dataset)
    if kind in (Kind.RUN, Kind.CHECKPOINT):
        announce("verify", f"{dataset} is not a dataset: `megaslm checkpoint verify` reads its checkpoints")
        checkpoint_cli.verify(dataset, json_file)
        return
    announce("verify", str(dataset))

    from dataclasses import asdict

    from rich.console import Console

    from megaslm.inspect.verify import progress_bar, show_verification
    from megaslm.inspect.verify import verify as verify_dataset

    console = Console(highlight=False)
    with progress_bar(console, f"verify · {dataset}") as on_progress:
        found = verify_dataset(dataset, workers=workers, on_progress=on_progress)
    show_verification(console, found)
    write_json(json_file, asdict(found))
    if found.problems:
        count = "1 problem" if len(found.problems) == 1 else f"{len(found.problems)} problems"
        raise DataError(f"{dataset}: {count}; repair or restore these files, or prepare (or score) the dataset again")


def inspect(
    dataset: Annotated[
        Path, typer.Argument(help="The dataset or the run's folder to look at; with --order, also the run's YAML file.")
    ],
    split: Annotated[
        Literal["train", "heldout"] | None, typer.Option(help="Only this split; with --row, train by default.")
    ] = None,
    domain: Annotated[str | None, typer.Option(metavar="DOMAIN", help="Only this domain.")] = None,
    row: Annotated[
        int | None, typer.Option(help="Show this row, counted from 0 as in training or, with --domain, in the domain.")
    ] = None,
    order: Annotated[
        int | None, typer.Option(help="Show the rows that a run reads in this step (any rank count).", metavar="STEP")
    ] = None,
    weights_by: Annotated[
        str | None,
        typer.Option(
            metavar="EXPRESSION",
            help="Show weights of the domains for data.streams, by the mean of an expression over columns, as in "
            "slm.criterion.",
        ),
    ] = None,
    weights_rate: Annotated[
        float, typer.Option(min=0, help="How much the weights follow the means: the exponent of a nat.")
    ] = 1.0,
    json_file: JsonFile = None,
) -> None:
    """Show a dataset, one of its rows, a run, or the rows of a step. A row is shown as text with losses or selected
    tokens.

    For an unfinished dataset, show its progress.
    """
    from dataclasses import asdict

    from rich.console import Console

    if order is not None and (row, split, domain) != (None, None, None):
        raise ConfigError("--order shows all rows of a step; leave out --row, --split and --domain")
    # A file or a pipe has no width at which to fold the columns.
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    if order is not None:
        say_on_stderr("inspect", f"the rows that step {order} of {dataset} reads")
        from megaslm.training.step_rows import rows_of_step

        rows = rows_of_step(dataset, order)
        console.print(f"step {rows.step}, epoch {rows.epoch}: {' '.join(rows.rows)}")
        write_json(json_file, asdict(rows))
        return

    if weights_by is not None:
        if (row, split, domain) != (None, None, None):
            raise ConfigError("--weights-by reads all rows of train; leave out --row, --split and --domain")
        say_on_stderr("inspect", f"weights of the domains of {dataset} by {weights_by}")
        from megaslm.inspect.domain_weights import domain_weights, show_weights

        weights = domain_weights(dataset, weights_by, weights_rate)
        show_weights(console, dataset, weights)
        write_json(json_file, [asdict(weight) for weight in weights])
        return

    from megaslm.dataset.kinds import Kind

    kind = _kind_of(dataset, "; a job that has just started makes it once PyTorch is loaded: look again in a minute")
    if (row, split, domain) == (None, None, None) and kind is Kind.RUN:
        from megaslm.inspect.run_facts import run_facts
        from megaslm.inspect.run_view import show_run

        run = run_facts(dataset)
        show_run(console, run)
        write_json(json_file, asdict(run))
    elif row is None:
        from megaslm.dataset.manifest import MANIFEST
        from megaslm.jobs.progress import jobs_in
        from megaslm.observe.console import show_job

        jobs = jobs_in(dataset)
        for progress in jobs:
            show_job(console, progress)
        if jobs and not (dataset / MANIFEST).exists():
            write_json(json_file, {"jobs": [progress.model_dump(mode="json") for progress in jobs]})
            return

        from megaslm.inspect.dataset_facts import dataset_facts
        from megaslm.inspect.dataset_view import show_dataset

        facts = dataset_facts(dataset, split, domain)
        show_dataset(console, facts)
        shares = [asdict(share) for share in facts.shares]
        scores = None if facts.scores is None else facts.scores.model_dump(mode="json")
        write_json(json_file, {"manifest": facts.manifest.model_dump(mode="json"), "shares": shares, "scores": scores})
    else:
        from megaslm.inspect.row_text import read_row
        from megaslm.inspect.row_view import show_row

        found = read_row(dataset, split or "train", row, domain)
        show_row(console, found)
        write_json(json_file, asdict(found))


def _kind_of(place: Path, otherwise: str = "") -> "Kind":
    """What is at `place`. Raises DataError where nothing is, whose message ends with `otherwise`."""
    from megaslm.dataset.kinds import Kind, kind_of
    from megaslm.files import looked_in

    kind = kind_of(place)
    if kind is Kind.MISSING:
        raise DataError(f"{place} {kind.value}{looked_in(place)}; name a dataset or the folder of a run{otherwise}")
    return kind
