"""`megaslm checkpoint`: list a run's checkpoints, verify them, and remove old ones."""

from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megaslm.cli_help import VerbApp
from megaslm.cli_output import JsonFile, say_on_stderr, write_json
from megaslm.errors import CheckpointError

if TYPE_CHECKING:
    from megaslm.training.checkpoints.store import Checkpoint

checkpoint_app = VerbApp(help="List, verify and prune the checkpoints of a run.", no_args_is_help=True)

Run = Annotated[Path, typer.Argument(help="The run's folder.")]


@checkpoint_app.command("ls")
def list_checkpoints(run: Run, json_file: JsonFile = None) -> None:
    """List the checkpoints of a run, oldest first. Only their file lists are read."""
    # Before the imports that take seconds, and so below.
    say_on_stderr("checkpoint ls", str(run))

    from megaslm.config.run_files import COMPLETE
    from megaslm.observe.display import size
    from megaslm.training.checkpoints.file_list import WEIGHTS, read_file_list

    rows: list[dict[str, object]] = []
    for checkpoint in _checkpoints_of(run):
        try:
            files = read_file_list(checkpoint.folder)
        except CheckpointError as error:
            rows.append({"folder": str(checkpoint.folder), "step": checkpoint.step, "problem": str(error)})
            typer.echo(str(error))
            continue
        written = datetime.fromtimestamp((checkpoint.folder / COMPLETE).stat().st_mtime).astimezone()
        ranks = sum(name.startswith(WEIGHTS) for name in files)
        size_bytes = sum(described.size for described in files.values())
        rows.append(
            {
                "folder": str(checkpoint.folder),
                "step": checkpoint.step,
                "bytes": size_bytes,
                "ranks": ranks,
                "written": written.isoformat(timespec="seconds"),
            }
        )
        by = f"{ranks} rank" if ranks == 1 else f"{ranks} ranks"
        when = written.isoformat(" ", timespec="seconds")
        typer.echo(f"{checkpoint.folder} · {size(size_bytes)} by {by} · {when}")
    write_json(json_file, rows)


@checkpoint_app.command("verify")
def verify(
    place: Annotated[Path, typer.Argument(help="A run's folder, for all its checkpoints, or one checkpoint.")],
    json_file: JsonFile = None,
) -> None:
    """Read every byte of checkpoints and report every corrupt file."""
    say_on_stderr("checkpoint verify", str(place))

    from megaslm.files import looked_in
    from megaslm.observe.display import counted
    from megaslm.training.checkpoints.store import describe_corruption, find_corruption

    is_one = place.parent.name == "checkpoints"
    if is_one and not place.is_dir():
        lists = f"megaslm checkpoint ls {place.parent.parent}"
        raise CheckpointError(f"{place}: no such checkpoint{looked_in(place)}; `{lists}` shows the run's")
    folders = [place] if is_one else [one.folder for one in _checkpoints_of(place)]
    say_on_stderr("checkpoint verify", f"reads every byte of {counted(len(folders), 'checkpoint')}")
    problems: dict[str, str | None] = {}
    for folder in folders:
        try:
            corruption = find_corruption(folder)
            problems[str(folder)] = describe_corruption(corruption) if corruption else None
        except CheckpointError as error:
            problems[str(folder)] = str(error).removeprefix(f"{folder}: ")
        typer.echo(f"{folder} · {problems[str(folder)] or 'every byte is intact'}")
    write_json(json_file, problems)
    corrupt = [folder for folder, problem in problems.items() if problem is not None]
    if corrupt:
        raise CheckpointError(
            f"{len(corrupt)} of {len(problems)} checkpoints are corrupt; `train --resume` skips them: restore them "
            "from a copy or remove them"
        )


@checkpoint_app.command("prune")
def prune_checkpoints(
    run: Run,
    keep_last: Annotated[
        int | None, typer.Option(min=1, help="How many of the newest to keep; by default the run's own setting.")
    ] = None,
    keep_every_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Keep multiples of this many steps; by default the run's own setting."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Remove old checkpoints of a run that no job is training.

    The newest checkpoint is verified first. Nothing is removed if it is corrupt.
    """
    say_on_stderr("checkpoint prune", str(run))

    from megaslm.config.retention import Retention, retention_of
    from megaslm.training.checkpoints.store import check_whole, remove_checkpoint
    from megaslm.training.run_folder import RunFolder, take

    configured = retention_of(RunFolder(run).config())
    retention = Retention(keep_last or configured.keep_last, keep_every_steps or configured.keep_every_steps)
    folders = {one.step: one.folder for one in _checkpoints_of(run)}
    superfluous = [folders[step] for step in retention.superfluous(list(folders))]
    with ExitStack() as held:
        if superfluous and not dry_run:
            # A training job prunes by itself, and may be about to resume from a checkpoint that would be removed here.
            for warning in take(run, held):
                typer.echo(warning, err=True)
            say_on_stderr("checkpoint prune", f"reads every byte of {folders[max(folders)]}, which stays")
            check_whole(folders[max(folders)])
        for folder in superfluous:
            if not dry_run:
                remove_checkpoint(folder)
            typer.echo(f"{folder} · {'would go' if dry_run else 'removed'}")
    if not superfluous:
        typer.echo(f"{run} · all {len(folders)} checkpoints stay")
    write_json(json_file, [str(folder) for folder in superfluous])


def _checkpoints_of(run: Path) -> "list[Checkpoint]":
    from megaslm.config.run_files import require_run_folder
    from megaslm.training.checkpoints.store import complete_checkpoints

    found = complete_checkpoints(run / "checkpoints")
    if not found:
        require_run_folder(run)
        raise CheckpointError(f"{run}: has no complete checkpoint; train it until its first save")
    return found
