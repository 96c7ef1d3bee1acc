"""`megaslm plan`: what a run needs and costs, before it is started."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from megaslm.cli_output import JsonFile, Overrides, announce, lasting, say_warnings, write_json


def token_count(text: str) -> int:
    """Reads a number of tokens as the settings do, 500_000_000 and 0.5e9 alike."""
    try:
        count = float(text)
    except ValueError:
        count = 0.0
    if count < 1 or not count.is_integer():
        raise typer.BadParameter(f"{text!r}: must be a whole number above 0, such as 500_000_000 or 0.5e9")
    return int(count)


def plan(
    config: Annotated[Path, typer.Argument(help="The run's configuration, a YAML file.")],
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs, one rank each.", show_default="8, or those of this machine")
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="Their kind, such as h100-80g; a wrong name lists all.", show_default="this machine's"
        ),
    ] = None,
    mfu: Annotated[
        float | None,
        typer.Option(min=0.01, max=1.0, help="The share of the GPUs' peak that is reached.", show_default="0.3"),
    ] = None,
    price: Annotated[float | None, typer.Option(min=0.0, help="The price of a GPU-hour, in any currency.")] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="The model's shape, where the run's model is not on this machine: a config.json, or a run's YAML file."
        ),
    ] = None,
    epoch_tokens: Annotated[
        int | None,
        typer.Option(
            parser=token_count,
            metavar="TOKENS",
            help="Targets of an epoch, such as 0.5e9, where the dataset is not on this machine.",
        ),
    ] = None,
    reference_run: Annotated[
        Path | None, typer.Option(help="The configuration that trains the reference; its time is told too.")
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Look for the smallest change of settings after which the run fits.")
    ] = False,
    overrides: Overrides = None,
    json_file: JsonFile = None,
) -> None:
    """Tell what a run needs and costs before it is started.

    Memory per GPU, steps, hours, disk, network. Neither data nor weights are read.

    Status 0 also where the run does not fit.
    """
    from dataclasses import asdict

    from rich.console import Console

    from megaslm.config.load import load
    from megaslm.config.schema import RunConfig

    # Before the imports, which take seconds: mistakes of the file, and warnings, are told at once.
    say_warnings(load(RunConfig, config, overrides or []).warnings)
    announce("plan", f"{config}; loads PyTorch, which takes longest on a first start")

    with lasting():
        from megaslm.planning.fit import find_fit
        from megaslm.planning.machine import machine_of
        from megaslm.planning.plan import Request, make_plan
        from megaslm.planning.view import show_fit, show_plan
        from megaslm.planning.work import DEFAULT_MFU

    request = Request(machine_of(gpu, gpus), mfu or DEFAULT_MFU, price, model, epoch_tokens, reference_run)
    found = find_fit(config, overrides or [], request) if fit else None
    planned = make_plan(config, overrides or [], request) if found is None else found.plan
    # A file or a pipe has no width at which to fold the columns.
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    show_plan(console, planned)
    if found is not None:
        show_fit(console, found)
    result = asdict(planned) | {"peak_bytes": planned.memory.peak_bytes, "fits": planned.fits}
    write_json(json_file, result | ({} if found is None else {"fit": list(found.overrides)}))
