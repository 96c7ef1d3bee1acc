"""`megaslm report`: runs as one page that works offline."""

from pathlib import Path
from typing import Annotated

import typer

from megaslm.cli_output import JsonFile, announce, write_json


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
