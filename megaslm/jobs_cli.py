"""`megaslm prepare`, `score`, `mask` and `attach`: make a dataset of text, or of another dataset."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from megaslm.cli_output import (
    JsonFile,
    Overrides,
    announce,
    is_first_rank,
    loading,
    say_warnings,
    take_seat,
    write_json,
)
from megaslm.errors import ConfigError
from megaslm.launch_cli import refuse_early

if TYPE_CHECKING:
    from megaslm.config.cluster import Share
    from megaslm.jobs.ray_workers import RayCluster
    from megaslm.launch.findings import Findings
    from megaslm.observe.console import JobConsole

Work = Annotated[
    Path | None, typer.Option("--work", help="For an output at a URL: the local folder for parts before their upload.")
]
Cache = Annotated[Path, typer.Option("--cache", help="For a dataset at a URL: the folder for downloaded files.")]

Engine = Annotated[
    Literal["local", "ray"],
    typer.Option(help="Where processes run: on this host or as its launcher placed them (local), or on a Ray cluster."),
]
MaskCriterion = Literal["reference", "entropy", "reference_and_entropy"]
OldShare = Annotated[str | None, typer.Option("--part", hidden=True)]
"""What --share was called."""
RayAddress = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="With --engine ray: the cluster's head; by default $RAY_ADDRESS."),
]


def prepare(
    recipe: Annotated[Path, typer.Argument(help="The corpus recipe, a YAML file.")],
    output: Annotated[str, typer.Argument(help="The dataset to write: a folder or a URL, such as s3://bucket/web.")],
    work: Work = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one per core.")] = None,
    share: Annotated[str | None, typer.Option(metavar="N/COUNT", help="Do only share N of COUNT of the work.")] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Make the dataset from the work of all --share runs.")
    ] = False,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    overrides: Overrides = None,
    json_file: JsonFile = None,
    part: OldShare = None,
) -> None:
    """Make a dataset of packed token rows from text. An interrupted job resumes when the command is run again."""
    from megaslm.config.load import load
    from megaslm.config.recipe import Recipe
    from megaslm.config.section import without_credentials

    asked = _share_of(share, part)
    if asked is not None and finish:
        raise ConfigError("--share and --finish: --share does a share of the work, --finish follows when all are done")
    if finish and engine != "local":
        raise ConfigError(
            f"--engine {engine}: has no effect with --finish, which starts no processes that read text; leave it out"
        )
    loaded = load(Recipe, recipe, overrides or [])
    of_share = "" if asked is None else f", share {asked.number}/{asked.count}"
    console = _begin("prepare", f"recipe {recipe} → {without_credentials(output)}{of_share}")

    from megaslm.dataset.kinds import Kind, kind_of
    from megaslm.launch.inputs import look_at_fields, look_at_output, look_at_text
    from megaslm.storage.file_systems import is_remote

    def look(findings: "Findings") -> None:
        look_at_output(findings, output)
        places = [output, *(path for source in loaded.value.sources for path in source.paths)]
        # A finished dataset is accepted although its text is gone.
        if finish or any(map(is_remote, places)) or kind_of(Path(output)) is Kind.DATASET:
            look_at_fields(findings, loaded)
        else:
            look_at_text(findings, loaded)

    refuse_early(look)

    from megaslm.corpus.patterns import in_words
    from megaslm.preparing import prepare as preparing

    of_recipe = loaded.value
    with console, _engine(engine, ray_address) as ray:
        if asked is not None:
            preparing.prepare_share(of_recipe, output, asked, working=work, workers=workers, watcher=console, ray=ray)
            _say_shares_left(console, asked)
            return
        if finish:
            manifest = preparing.finish(of_recipe, output, working=work, watcher=console)
        else:
            manifest = preparing.prepare(of_recipe, output, working=work, workers=workers, watcher=console, ray=ray)
    _say_dataset(output, manifest.model_dump(mode="json"), json_file)
    if manifest.passed_over:
        typer.echo(f"not read of the recipe's folders: {in_words(manifest.passed_over)}")


def score(
    dataset: Annotated[str, typer.Argument(help="The dataset to score: a folder or a URL.")],
    output: Annotated[str, typer.Argument(help="The scored dataset to write: a folder or a URL.")],
    reference: Annotated[Path | None, typer.Option(help="The reference model, a Hugging Face folder.")] = None,
    from_run: Annotated[
        Path | None, typer.Option(help="In its place a run, for its newest checkpoint, or one of its checkpoints.")
    ] = None,
    precision: Annotated[
        Literal["auto", "bf16", "fp32"], typer.Option(help="Arithmetic; auto is bf16 on GPUs, fp32 on CPUs.")
    ] = "auto",
    compile_layers: Annotated[
        Literal["auto", "on", "off"],
        typer.Option(
            "--compile",
            help="Whether torch.compile compiles the decoder layers; auto is on for GPUs with a C compiler.",
        ),
    ] = "auto",
    flash_attention: Annotated[
        Literal["FA2", "FA3", "FA4"],
        typer.Option(help="Which FlashAttention computes attention on a GPU; FA3 and FA4 are packages of their own."),
    ] = "FA2",
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
    top_logits: Annotated[
        int,
        typer.Option(
            min=0,
            help="Also store its so many most likely tokens per target and their log-probabilities, for slm.distill.",
        ),
    ] = 0,
    window: Annotated[
        int | None,
        typer.Option(help="Tokens the model sees at once; by default a row, or as many as the model has positions."),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Tokens between the starts of two windows of a row, where a window is shorter than a row."),
    ] = None,
    align: Annotated[
        bool,
        typer.Option(
            "--align",
            help="For a reference with another tokenizer: it reads whole documents in its own tokens; its losses are "
            "carried over to the dataset's tokens.",
        ),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="NAME",
            help="Store the losses as a column of this name, beside all that the dataset has: for expressions in "
            "slm.criterion.",
        ),
    ] = None,
    batch_rows: Annotated[int, typer.Option(min=1, help="Rows per forward pass.")] = 16,
    share: Annotated[
        str | None, typer.Option(metavar="N/COUNT", help="Score only share N of COUNT of the rows.")
    ] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Make the dataset from the scores of all --share jobs.")
    ] = False,
    engine: Engine = "local",
    ray_address: RayAddress = None,
    work: Work = None,
    cache: Cache = Path("~/.cache/megaslm"),
    json_file: JsonFile = None,
    part: OldShare = None,
) -> None:
    """Store a reference model's losses beside a dataset's tokens. Use a launcher for several ranks.

    An interrupted job resumes when the command is run again, on any number of ranks. Where the dataset has grown, only
    its new parts are scored.
    """
    seat = take_seat()

    from megaslm.config.expression import column_named
    from megaslm.config.section import without_credentials

    asked = _share_of(share, part)
    if asked is not None and finish:
        raise ConfigError("--share and --finish: --share scores some of the parts, --finish follows when all are done")
    column = "ref_loss" if name is None else column_named(name)
    of_share = "" if asked is None else f", share {asked.number}/{asked.count}"
    console = _begin(
        "score",
        f"{without_credentials(dataset)} by {reference or from_run} → {without_credentials(output)}{of_share}",
    )

    from megaslm.launch.inputs import look_at_scoring

    given = {"dataset": dataset, "reference": reference, "from_run": from_run, "output": output, "name": name}
    refuse_early(lambda findings: look_at_scoring(findings, given), seat)
    with loading("score"):
        from megaslm.scoring import job
        from megaslm.scoring.request import ScoreRequest, ScoreSettings
        from megaslm.training.export import weights_of_run

    settings = ScoreSettings(
        precision=precision,
        compile=compile_layers,
        flash_attention=flash_attention,
        document_isolation=document_isolation,
        batch_rows=batch_rows,
        entropy=entropy,
        top_logits=top_logits,
        window=window,
        stride=stride,
        align=align,
    )
    folder, run = (reference, None) if from_run is None else weights_of_run(from_run)
    assert folder is not None, "one of the two is named"
    task = ScoreRequest(folder, dataset, output, settings, column=column, run=run, working=work, cache=cache)
    # At the end no rank waits for the others: one may have died, and the others have done its work.
    with console, _engine(engine, ray_address) as ray:
        if ray is not None and (asked is not None or finish or seat.world_size > 1):
            raise ConfigError("--engine ray: scores all parts; leave out --share, --finish and the launcher")
        if asked is not None:
            job.score_share(task, asked, console)
            _say_shares_left(console, asked)
            return
        if ray is not None:
            manifest = job.score_on_ray(task, ray, console)
        else:
            manifest = job.finish(task, console) if finish else job.score(task, console)
    if is_first_rank():
        _say_dataset(output, manifest.model_dump(mode="json"), json_file)


def mask(
    dataset: Annotated[str, typer.Argument(help="The scored dataset: a folder or a URL.")],
    output: Annotated[str, typer.Argument(help="The masked dataset to write: a folder or a URL.")],
    criterion: Annotated[
        MaskCriterion,
        typer.Option(
            help="What the targets of a row are sorted by, largest first: minus the reference's loss, or minus the "
            "entropy of its predictions; as slm.criterion of the runs."
        ),
    ] = "reference",
    keep_ratio: Annotated[
        str, typer.Option(metavar="RATIO", help="The share of targets to keep; as slm.keep_ratio.")
    ] = "0.6",
    max_ref_loss: Annotated[
        float | None, typer.Option(help="Most reference loss, in nats, of a kept target; as slm.max_ref_loss.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; by default one per core.")] = None,
    work: Work = None,
    cache: Cache = Path("~/.cache/megaslm"),
    json_file: JsonFile = None,
    score: Annotated[MaskCriterion | None, typer.Option("--score", hidden=True)] = None,
) -> None:
    """Store a static selection as one bit per target.

    The bits replace the losses. The selection is made of reference losses and entropies, for runs with a static
    criterion and slm.scope sequence. An interrupted job resumes when the command is run again. Where the dataset has
    grown, only its new parts are masked.
    """
    from megaslm.config.section import without_credentials

    if score is not None:
        say_warnings(["--score is called --criterion now, and the old name will be removed soon; use the new one"])
        criterion = score
    console = _begin(
        "mask",
        f"{without_credentials(dataset)} by {criterion}, keep_ratio {keep_ratio} → {without_credentials(output)}",
    )

    from megaslm.launch.inputs import look_at_masking

    given = {"dataset": dataset, "output": output, "criterion": criterion}
    refuse_early(lambda findings: look_at_masking(findings, given))

    from megaslm.scoring.mask import mask_rule
    from megaslm.scoring.mask_job import MaskRequest
    from megaslm.scoring.mask_job import mask as mask_dataset

    rule = mask_rule(criterion, keep_ratio, max_ref_loss)
    task = MaskRequest(dataset, output, rule, workers=workers, working=work, cache=cache)
    with console:
        manifest = mask_dataset(task, console)
    _say_dataset(output, manifest.model_dump(mode="json"), json_file)


def attach(
    dataset: Annotated[str, typer.Argument(help="The dataset: a folder or a URL.")],
    column: Annotated[Path, typer.Argument(help="The column, a parquet file (docs/data.md).")],
    name: Annotated[
        Literal["target_mask", "selected", "weight"],
        typer.Option(
            "--as",
            help="What the column is: which targets are trained on at all, which are selected (bool), or their weights "
            "(float32).",
        ),
    ],
    output: Annotated[
        str | None, typer.Option("--out", help="The dataset to write: a folder or a URL; by default DATASET-NAME.")
    ] = None,
    default: Annotated[
        str | None,
        typer.Option(
            metavar="VALUE",
            help="The value of targets that the column does not name; by default true for target_mask, false for "
            "selected, 1 for weight.",
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; by default one per core.")] = None,
    work: Work = None,
    cache: Cache = Path("~/.cache/megaslm"),
    json_file: JsonFile = None,
) -> None:
    """Put your own mask or weights beside a dataset's tokens.

    All lines of the column are checked before anything is written. The rows stay as they are. An interrupted job
    resumes when the command is run again.
    """
    from megaslm.config.section import without_credentials

    output = f"{dataset.rstrip('/')}-{name}" if output is None else output
    console = _begin("attach", f"{without_credentials(dataset)}, {name} of {column} → {without_credentials(output)}")

    from megaslm.launch.inputs import look_at_attaching

    given = {"dataset": dataset, "output": output, "name": name}
    refuse_early(lambda findings: look_at_attaching(findings, given))

    from megaslm.scoring.attach_job import AttachRequest, default_of
    from megaslm.scoring.attach_job import attach as attach_column

    value = default_of(name, default)
    task = AttachRequest(dataset, column, name, output, value, workers=workers, working=work, cache=cache)
    with console:
        manifest = attach_column(task, console)
    _say_dataset(output, manifest.model_dump(mode="json"), json_file)


def _share_of(text: str | None, old_text: str | None) -> "Share | None":
    """The share that --share, or --part, asks for."""
    from megaslm.config.cluster import Share

    if old_text is not None:
        say_warnings(["--part is called --share now, and the old name will be removed soon; use the new one"])
    text = old_text if text is None else text
    return None if text is None else Share.parse(text)


def _begin(verb: str, work: str) -> "JobConsole":
    """Prints a job's first line, before the imports that take seconds, and returns the console for the others."""
    announce(verb, work)

    from megaslm.observe.console import JobConsole

    return JobConsole(verb, quiet=not is_first_rank())


def _say_dataset(folder: Path | str, manifest: dict[str, object], json_file: Path | None) -> None:
    splits: dict[str, dict[str, dict[str, int]]] = manifest["splits"]  # type: ignore[assignment]
    for split, domains in splits.items():
        for domain, share in domains.items():
            typer.echo(f"{folder} · {split}/{domain}: {share['rows']:,} rows, {share['tokens']:,} targets")
    write_json(json_file, manifest)


def _say_shares_left(console: "JobConsole", share: "Share") -> None:
    console.say(
        f"share {share.number} of {share.count} is done; when all {share.count} are, run the command with --finish in "
        "place of --share to make the dataset"
    )


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
