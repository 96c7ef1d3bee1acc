"""`megaslm launch`: starts a verb on a cluster, after all checks that are possible on this host."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer

from megaslm.engine.seat import ALONE, Seat
from megaslm.errors import ConfigError, InputError, PeerFailed

if TYPE_CHECKING:
    from megaslm.config.cluster import Cluster
    from megaslm.config.load import Loaded
    from megaslm.config.recipe import Recipe
    from megaslm.config.schema import RunConfig
    from megaslm.launch.command import Command, Verb, VerbCall
    from megaslm.launch.findings import Findings

T = TypeVar("T")
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
        bool,
        typer.Option(
            "--dry-run",
            help="Print the command, or the manifests, and what is missing on this host; start nothing. Status 2 where "
            "something is missing. It may also stand behind the verb.",
        ),
    ] = False,
    after: Annotated[
        list[str] | None,
        typer.Option(
            "--after",
            metavar="JOB",
            help="Slurm: start when the job of this number has succeeded, and accept that its output is still missing; "
            "may be given several times.",
        ),
    ] = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Queue the job although something is missing on this host.")
    ] = False,
) -> None:
    """Start a verb on one host, many hosts, Slurm or Kubernetes. The cluster's configuration says which.

    With a queue, the checks of a dry run come first. Otherwise the verb's command replaces this one: it receives its
    signals, and sets its exit status.
    """
    from megaslm.launch.places import where_output_goes
    from megaslm.launch.start import command_of, load_cluster

    place = load_cluster(cluster)
    # No verb that is launched has an option of this name.
    dry_run = dry_run or "--dry-run" in words
    work, given = _work(context, [word for word in words if word != "--dry-run"])
    # Their mistakes show here rather than on every node.
    run, recipe = _read_run(work.verb, given), _read_recipe(work.verb, given)
    command = command_of(place, work, after or ())
    if not dry_run and not command.is_submission:
        # The launcher, or the verb itself, makes the same checks, and tells them on this terminal.
        command.take_over(cluster)
    if dry_run:
        typer.echo(command)
        typer.echo(where_output_goes(place, work), err=True)
    findings = _look(place, work, command, cluster, run, recipe, given)
    accepted = bool(findings.problems) and (anyway or bool(after))
    if accepted:
        findings.accept("--after" if after else "--anyway")
    for line in findings.lines(with_unseen=dry_run):
        typer.echo(line, err=True)
    if dry_run:
        findings.require_none()
        missing = "something is missing, which is accepted" if accepted else "nothing is missing"
        typer.echo(f"dry run: {missing}" + (", as far as this host sees" if findings.unseen else ""), err=True)
        return
    findings.require_none("\n--anyway queues the job all the same, where only the nodes see what is missing")

    def tell(line: str) -> None:
        typer.echo(line)
        if place.kind == "slurm":
            typer.echo(where_output_goes(place, work, line.partition(";")[0]), err=True)

    status = command.submit(cluster, tell)
    if status == 0 and place.kind != "slurm":
        typer.echo(where_output_goes(place, work), err=True)
    raise typer.Exit(status)


def _work(context: typer.Context, words: list[str]) -> "tuple[VerbCall, Mapping[str, Any]]":
    """The verb, after its own command has parsed its arguments, and these as parsed."""
    from megaslm.launch.command import Verb, VerbCall

    verbs: tuple[Verb, ...] = get_args(Verb)
    known = context.find_root().command.commands  # type: ignore[attr-defined]
    if words[0] in known and words[0] not in verbs:
        raise ConfigError(f"launch {words[0]}: needs no launcher; run `megaslm {words[0]}` itself")
    verb = next((verb for verb in verbs if verb == words[0]), None)
    arguments = words if verb is None else words[1:]
    verb = verb or "train"
    given: Mapping[str, Any] = known[verb].make_context(f"megaslm {verb}", list(arguments)).params
    is_share = any(given.get(option) is not None for option in ("share", "part"))
    is_finish = bool(given.get("finish"))
    is_smoke_test = bool(given.get("smoke") or given.get("smoke_steps"))
    call = VerbCall(verb, tuple(arguments), is_share=is_share, is_finish=is_finish, is_smoke_test=is_smoke_test)
    return call, given


def _read_run(verb: "Verb", given: Mapping[str, Any]) -> "Loaded[RunConfig] | None":
    """The configuration of `train`."""
    from megaslm.config.load import load
    from megaslm.config.schema import RunConfig
    from megaslm.training.changes import check_allowed_keys

    if verb != "train":
        return None
    loaded = load(RunConfig, given["config"], given["overrides"] or [])
    check_allowed_keys(given["allow_changed"] or (), loaded.value)
    return loaded


def _read_recipe(verb: "Verb", given: Mapping[str, Any]) -> "Loaded[Recipe] | None":
    """The recipe of `prepare`."""
    from megaslm.config.load import load
    from megaslm.config.recipe import Recipe

    return load(Recipe, given["recipe"], given["overrides"] or []) if verb == "prepare" else None


def _look(
    place: "Cluster",
    work: "VerbCall",
    command: "Command",
    cluster: Path,
    run: "Loaded[RunConfig] | None",
    recipe: "Loaded[Recipe] | None",
    given: Mapping[str, Any],
) -> "Findings":
    """Looks at all that the verb would need."""
    from megaslm.launch import inputs
    from megaslm.launch.places import findings_of, look_at_hosts, ranks_in_words, ranks_of

    findings = findings_of(place)
    look_at_hosts(findings, place, work, command, cluster)
    if recipe is not None:
        inputs.look_at_text(findings, recipe)
        inputs.look_at_output(findings, given["output"])
    elif run is not None:
        # The others add --resume.
        resume = given["resume"] or place.kind not in ("local", "hostfile")
        smoke, told = work.is_smoke_test, ranks_in_words(place, cluster)
        look_at_training(
            findings,
            run,
            ranks=ranks_of(place),
            ranks_in_words=told,
            resume=resume,
            allow_changed=given["allow_changed"] or (),
            smoke=smoke,
            compares=True,
        )
    elif work.verb == "score":
        inputs.look_at_scoring(findings, given)
    elif work.verb == "mask":
        inputs.look_at_masking(findings, given)
    else:
        inputs.look_at_export(findings, given)
    return findings


def look_at_training(
    findings: "Findings",
    loaded: "Loaded[RunConfig]",
    *,
    ranks: int | None,
    ranks_in_words: str = "",
    resume: bool,
    allow_changed: Sequence[str] = (),
    smoke: bool = False,
    compares: bool = False,
) -> "RunConfig | None":
    """Looks at all that `train` reads, and whether it may start or resume in its folder.

    The arguments are those of the command. With `compares`, inputs that this host sees all of are compared with one
    another too, as the start itself does once more.

    Returns:
        The run with its length in tokens; None where its folder is not looked at, or its data cannot be read here.
    """
    from megaslm.config.deepspeed import check_deepspeed
    from megaslm.config.run_files import require_folder
    from megaslm.launch.findings import Reach
    from megaslm.launch.inputs import look_at_run
    from megaslm.observe.tracker import check_tracker
    from megaslm.training.changes import check_allowed_keys
    from megaslm.training.length import with_total_tokens
    from megaslm.training.resumption import check_run
    from megaslm.training.smoke_folder import check_replaceable, smoke_folder

    run, findings.origins = loaded.value, loaded.provenance
    findings.ask(lambda: check_allowed_keys(allow_changed, run))
    # Whether `auto` is bf16 depends on the device.
    precision = "bf16" if run.model.precision == "bf16" else "fp32"
    findings.ask(lambda: check_deepspeed(run, precision), is_setting=True)
    if findings.reach is Reach.ALL:
        findings.ask(lambda: check_tracker(run.log.tracker))
    if findings.reach is not Reach.NONE:
        findings.ask(lambda: require_folder(Path(run.run_dir)))
        if smoke:
            findings.ask(lambda: check_replaceable(smoke_folder(run.run_dir)))
    datasets = look_at_run(findings, run, ranks, ranks_in_words)
    if findings.reach is Reach.NONE:
        return None
    sized: RunConfig | None = run
    if datasets is not None:
        sized = findings.ask(partial(with_total_tokens, run, sum(dataset.rows for dataset in datasets)))
    all_are_here = not (findings.problems or findings.mistakes or findings.unseen)
    if compares and sized is not None and all_are_here:
        from megaslm.training.start_checks import check_start

        findings.ask(partial(check_start, sized, ranks or 1))
    if smoke:
        return None
    if sized is not None:
        findings.ask(partial(check_run, sized, datasets, resume=resume, allow_changed=allow_changed))
    return None if datasets is None else sized


def refuse_early(look: Callable[["Findings"], T], seat: Seat = ALONE) -> T | None:
    """Looks at a verb's inputs on each of its ranks, before the imports that take seconds.

    It is also before the ranks meet, so that none waits for one that has refused. On several hosts nothing is done:
    the preflight compares all of them, and tells which one lacks something.

    Returns:
        What `look` returns; None where it is not asked.

    Raises:
        InputError: something is missing; on the first rank.
        PeerFailed: the same, on the other ranks.
    """
    if seat.may_span_hosts:
        return None

    from megaslm.launch.findings import Findings, Reach

    findings = Findings(Reach.ALL, "")
    found = look(findings)
    try:
        findings.require_none()
    except InputError as error:
        if seat.local_rank == 0:
            raise
        raise PeerFailed(str(error), error.exit_status) from error
    return found
