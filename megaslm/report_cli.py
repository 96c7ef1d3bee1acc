"""`megaslm report`: runs as one page that works offline. `megaslm dynamics`: which tokens a run learns or forgets."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from megaslm.cli_output import JsonFile, announce, loading, write_json


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="The folders of the runs.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    json_file: JsonFile = None,
) -> None:
    """Write runs as one page that works offline.

    It has curves, tokens to a loss, costs, and single tokens as a heat map. Runs may still be training: write
    the report again to see how far they are.
    """
    from megaslm.observe.display import counted, size, visible_on_one_line

    announce("report", f"{counted(len(runs), 'run')} → {output}")

    from megaslm.report.job import report as write_report

    written = write_report(runs, output)
    for note in written.notes:
        typer.echo(note)
    typer.echo(f"{output}: {size(written.page_bytes)}; open it in a browser")
    for sentence in written.document["in_short"]:
        typer.echo(f"  {visible_on_one_line(sentence)}")
    write_json(json_file, written.document)


def dynamics(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The folder for dynamics.json and trajectories.parquet.", show_default="RUN/dynamics"
        ),
    ] = None,
    checkpoints: Annotated[
        bool,
        typer.Option(
            "--checkpoints", help="Measure the run's checkpoints too. Without any measurement that is done anyway."
        ),
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="DATASET",
            help="Measure the checkpoints on rows of this dataset, into OUTPUT/probe; as the setting probe.dataset.",
        ),
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Measure the checkpoints on so many rows, into OUTPUT/probe.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Classify the tokens of a run by their losses over time.

    The classes H→H, L→H, H→L and L→L are those of the Rho-1 paper. The tokens are those of the run's probe rows.
    """
    from dataclasses import asdict

    from rich.console import Console

    from megaslm.config.run_files import PROBE, require_run_folder

    require_run_folder(run)
    output = output or run / "dynamics"
    own_rows = dataset is not None or rows is not None
    measurements = output / PROBE if own_rows else run / PROBE
    announce("dynamics", f"{run} → {output}")

    from megaslm.observe.probe_files import measured_steps

    if checkpoints or own_rows or not measured_steps(measurements):
        with loading("dynamics", before="measures checkpoints; "):
            from megaslm.training.probe_checkpoints import measure_checkpoints
            from megaslm.training.run_folder import RunFolder

        measure_checkpoints(RunFolder(run), measurements, typer.echo, dataset=dataset, rows=rows)

    from megaslm.dynamics.job import dynamics as analyse
    from megaslm.dynamics.view import show_dynamics

    summary = analyse(run, measurements, run / "model", output)
    # A file or a pipe has no width at which to fold the columns.
    show_dynamics(Console(width=None if sys.stdout.isatty() else 120, highlight=False), summary)
    typer.echo(f"{output}: dynamics.json and trajectories.parquet are written")
    write_json(json_file, asdict(summary))
