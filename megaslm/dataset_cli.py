"""`megaslm verify` and `megaslm inspect`: looks at a dataset, and at the order in which a run reads it."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from megaslm.errors import ConfigError, DataError
from megaslm.json_option import JsonFile, write_json


def verify(
    dataset: Annotated[Path, typer.Argument(help="The dataset to read.")],
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; by default one a core.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Read every byte of a dataset and report everything that is not as it was written."""
    from dataclasses import asdict

    from rich.console import Console

    from megaslm.inspect.verification import progress_bar, show_verification
    from megaslm.inspect.verify import verify as verify_dataset

    console = Console(highlight=False)
    with progress_bar(console, f"verify · {dataset}") as on_progress:
        found = verify_dataset(dataset, workers=workers, on_progress=on_progress)
    show_verification(console, found)
    write_json(json_file, asdict(found))
    if found.problems:
        raise DataError(f"{dataset}: {len(found.problems)} problems; mend or restore these files, or make it again")


def inspect(
    dataset: Annotated[
        Path, typer.Argument(help="The dataset to look at; with --order, a run's folder or its YAML file.")
    ],
    split: Annotated[
        Literal["train", "heldout"] | None, typer.Option(help="Only this split; of a row, train where none is named.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Only this domain.")] = None,
    row: Annotated[
        int | None, typer.Option(help="Show this row; they are counted as in training, or in the domain, from 0 on.")
    ] = None,
    order: Annotated[
        int | None, typer.Option(help="Which rows a run reads in this step, on any number of ranks.", metavar="STEP")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Show what a dataset is, one of its rows as text with losses or selected tokens, or which rows a step reads.

    Of one that is being made, it shows how far that has come.
    """
    from dataclasses import asdict

    from rich.console import Console

    if order is not None and (row, split, domain) != (None, None, None):
        raise ConfigError("--order: tells of all rows that a step reads; leave out --row, --split and --domain")
    # In a file or a pipe there is no edge to fold the columns at.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    if order is not None:
        from megaslm.training.step_rows import rows_of_step

        rows = rows_of_step(dataset, order)
        console.print(f"step {rows.step}, epoch {rows.epoch}: {' '.join(rows.rows)}")
        write_json(json_file, asdict(rows))
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
