"""`megaslm launch`: starts a verb on a cluster, after all checks that are possible on this host."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from megaslm.errors import ConfigError

if TYPE_CHECKING:
    from megaslm.launch.command import Verb, VerbCall

# All options after the first word belong to the verb.
TAKES_THE_REST = {"allow_interspersed_args": False}


def launch(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="WORD", help="A verb with its arguments: train (the default), score, prepare, mask or export."
        ),
    ],
    cluster: Annotated[Path, typer.Option(help="The cluster's configuration, a YAML file like those in launcher/.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command, or the manifests, and start nothing.")
    ] = False,
) -> None:
    """Start a verb on one host, many hosts, Slurm or Kubernetes. The cluster's configuration says which.

    The verb's command replaces this one: it receives its signals, and sets its exit status.
    """
    from megaslm.launch.start import command_of, load_cluster

    place = load_cluster(cluster)
    command = command_of(place, _work(context, words))
    if dry_run:
        typer.echo(command)
    else:
        command.take_over()


def _work(context: typer.Context, words: list[str]) -> "VerbCall":
    """The verb and its arguments, after the verb's own command has parsed them."""
    from megaslm.launch.command import Verb, VerbCall

    verbs: tuple[Verb, ...] = get_args(Verb)
    known = context.find_root().command.commands  # type: ignore[attr-defined]
    if words[0] in known and words[0] not in verbs:
        raise ConfigError(f"launch {words[0]}: needs no launcher; run `megaslm {words[0]}` itself")
    verb = next((verb for verb in verbs if verb == words[0]), None)
    arguments = words if verb is None else words[1:]
    verb = verb or "train"
    given: typer.Context = known[verb].make_context(f"megaslm {verb}", list(arguments))
    _look_at_files(verb, given)
    is_share, is_finish = given.params.get("part") is not None, bool(given.params.get("finish"))
    is_smoke_test = bool(given.params.get("smoke") or given.params.get("smoke_steps"))
    return VerbCall(verb, tuple(arguments), is_share=is_share, is_finish=is_finish, is_smoke_test=is_smoke_test)


def _look_at_files(verb: "Verb", given: typer.Context) -> None:
    """Shows mistakes in these files here rather than on every node."""
    from megaslm.config.load import load
    from megaslm.config.recipe import Recipe
    from megaslm.config.schema import RunConfig
    from megaslm.training.changes import check_allowed_keys

    if verb == "train":
        run = load(RunConfig, given.params["config"], given.params["overrides"] or []).value
        check_allowed_keys(given.params["allow_changed"] or (), run)
    elif verb == "prepare":
        load(Recipe, given.params["recipe"], given.params["overrides"] or [])
