"""The inputs of a verb, looked at before it starts: datasets, models, runs, texts, and room for a checkpoint.

The checks are those that the verbs make themselves, as far as they need neither torch nor a rank.
"""

import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from megaslm.config.hub import HubModel
from megaslm.config.load import Loaded
from megaslm.config.measuring import ValidationTask
from megaslm.config.plan import checkpoint_bytes, divided_rows, parameter_count
from megaslm.config.recipe import Recipe, Source
from megaslm.config.run_files import CHECKPOINTS, COMPLETE_CHECKPOINTS, require_run_folder
from megaslm.config.schema import ModelSection, RunConfig, StreamSection
from megaslm.corpus.documents import InputFile
from megaslm.corpus.files import find_files
from megaslm.corpus.patterns import MAGIC
from megaslm.corpus.readers import require_fields
from megaslm.corpus.record_text import NoSuchField
from megaslm.dataset.fit import (
    ReadDataset,
    distills,
    heldout_domains,
    reads_reference,
    require_attachable,
    require_columns,
    require_distillable,
    require_losses_to_mask,
    require_reference,
    require_rule,
    require_scorable,
    require_selected,
    require_targets_of,
    require_weights,
    selects_by_column,
    training_domains,
)
from megaslm.dataset.kinds import Kind, kind_of, require_output
from megaslm.dataset.manifest import Manifest, read_manifest
from megaslm.errors import CheckpointError, DataError
from megaslm.files import looked_in, require_absent
from megaslm.health.disk import Disk, room_for_checkpoints
from megaslm.launch.findings import Findings, Reach
from megaslm.launch.making import making_command
from megaslm.model.finished import unfinished_reference
from megaslm.model.stated_config import require_model, stated_config
from megaslm.model.weight_files import StoredWeight, count_parameters, plain_weights
from megaslm.storage.file_systems import is_remote
from megaslm.tokenizer.tokenizer import require_tokenizer_folder, tokenizer_facts


def look_at_run(
    findings: Findings, config: RunConfig, ranks: int | None, ranks_in_words: str = ""
) -> list[ReadDataset] | None:
    """Looks at all that `train` reads, and at the room for its checkpoints.

    `ranks` is None where it is not known. `ranks_in_words` tells which settings it follows from.

    Returns:
        The datasets that it trains on; None where one of them does not fit or cannot be read here.
    """
    if ranks is not None:
        named = f"{ranks_in_words}: " if ranks_in_words else ""
        findings.ask(lambda: divided_rows(config, ranks), prefix=named, is_setting=True)
    found = [_training_dataset(findings, config, *dataset) for dataset in _datasets(config)]
    datasets = [dataset for dataset in found if dataset is not None]
    training = datasets[0].manifest if datasets else None
    for name, held_out in config.validation.sets.items():
        setting = f"validation.sets.{name}"
        manifest = _manifest(findings, setting, held_out.dataset, making_command(held_out.dataset, config.data.seq_len))
        if manifest is not None and training is not None:
            findings.ask(partial(list, heldout_domains(name, held_out, manifest, training)))
    probed = config.probe.dataset
    if config.probe.every_tokens is not None and probed is not None:
        _manifest(findings, "probe.dataset", probed, making_command(probed, config.data.seq_len))
    for name, asked in config.validation.tasks.items():
        findings.ask(partial(_read_task, asked), prefix=f"validation.tasks.{name}: ")
    if reads_reference(config):
        for setting, section in _datasets(config):
            if section.reference is not None:
                key = "slm.reference" if setting == "data.train" else f"{setting}.reference"
                _parameters(findings, key, section.reference)
    _look_at_room(findings, config, _checkpoint_bytes(findings, config.model))
    return datasets if all(dataset is not None and dataset.domains for dataset in found) else None


def _read_task(asked: ValidationTask) -> None:
    # The other verbs, which read no tasks, should not pay for the import of their readers.
    from megaslm.tasks.items import items_of
    from megaslm.tasks.task_files import load_tasks

    (task,) = load_tasks([asked.task]).values()
    items_of(task, Path(asked.data), limit=1)


def look_at_scoring(findings: Findings, options: Mapping[str, Any]) -> None:
    """Looks at the dataset, the reference and the output of `score`."""
    place = options["dataset"]
    manifest = _manifest(findings, "the dataset", place)
    if manifest is not None and options["name"] is not None:
        findings.ask(lambda: require_scorable(manifest, place, options["name"]))
    reference, run = options["reference"], options["from_run"]
    if (reference is None) == (run is None):
        found = "neither" if run is None else "both"
        findings.add(f"--reference or --from-run: found {found}; name one model, a folder or a run")
    elif run is not None:
        _look_at_checkpoint(findings, str(run))
    elif _parameters(findings, "--reference", str(reference)) is not None:
        warning = unfinished_reference(Path(reference))
        findings.warnings += [] if warning is None else [warning]
    look_at_output(findings, options["output"])


def look_at_masking(findings: Findings, options: Mapping[str, Any]) -> None:
    """Looks at the dataset and the output of `mask`."""
    place = options["dataset"]
    manifest = _manifest(findings, "the dataset", place)
    if manifest is not None:
        findings.ask(lambda: require_losses_to_mask(manifest, place, options["criterion"]))
    look_at_output(findings, options["output"])


def look_at_attaching(findings: Findings, options: Mapping[str, Any]) -> None:
    """Looks at the dataset and the output of `attach`."""
    place, name = options["dataset"], options["name"]
    manifest = _manifest(findings, "the dataset", place)
    if manifest is not None:
        findings.ask(lambda: require_attachable(manifest, place, name))
    look_at_output(findings, options["output"])


def look_at_text(findings: Findings, loaded: Loaded[Recipe]) -> None:
    """Looks whether the files of a recipe are there with the fields that it names, and its tokenizer can be read."""
    recipe = loaded.value
    for number, source in enumerate(recipe.sources):
        setting = f"sources.{number}.paths"
        here = [findings.local(setting, _before_glob(path)) for path in source.paths]
        if all(path is not None for path in here):
            files = findings.ask(partial(find_files, source), prefix=f"{setting}: ")
            findings.ask(partial(_look_at_fields, files or [], source, number, loaded.provenance))
    tokenizer = recipe.tokenizer
    if tokenizer.huggingface is not None:
        folder = findings.local("tokenizer.huggingface", tokenizer.huggingface)
        if folder is not None:
            findings.ask(lambda: require_tokenizer_folder(folder))
            if folder.is_dir():
                findings.ask(lambda: tokenizer_facts(folder), prefix="tokenizer.huggingface: ")
    if tokenizer.sentencepiece is not None:
        file = findings.local("tokenizer.sentencepiece", tokenizer.sentencepiece)
        if file is not None and not file.is_file():
            where = looked_in(file)
            findings.add(f"tokenizer.sentencepiece = {file}: is not a file{where}; name the model file itself")


def look_at_project(
    findings: Findings, folder: Path, model: Path, texts: Mapping[str, Sequence[str]]
) -> list[Sequence[str]]:
    """Looks at the model of `init`, its tokenizer and the texts, by their domains, and whether its folder is free.

    Returns:
        The paths of each text whose files are all found on this machine.
    """
    findings.ask(lambda: require_absent(folder))
    if findings.ask(lambda: _floating_point_weights(model), prefix="--model: ") is not None:
        findings.ask(lambda: tokenizer_facts(model), prefix="--model: ")
    found = []
    for domain, paths in texts.items():
        # `init` itself lists what is remote, and refuses a path that is empty.
        here = [path for path in paths if path.strip() and not is_remote(path)]
        sources = [Source(domain=domain, reader="tree", paths=(path,)) for path in here]
        missing = [findings.ask(partial(find_files, source)) is None for source in sources]
        if not any(missing) and not any(map(is_remote, paths)):
            found.append(paths)
    return found


def look_at_fields(findings: Findings, loaded: Loaded[Recipe]) -> None:
    """Looks whether the first records of a recipe's local files have the fields that it names.

    Other mistakes are left to `prepare`, which also accepts a finished dataset whose files are gone.
    """
    for number, source in enumerate(loaded.value.sources):
        if source.has_records and not any(is_remote(path) for path in source.paths):
            with suppress(DataError):
                files = find_files(source)
                findings.ask(partial(_look_at_fields, files, source, number, loaded.provenance))


def _look_at_fields(files: Sequence[InputFile], source: Source, number: int, provenance: Mapping[str, str]) -> None:
    """Raises DataError, which names the line of the recipe, where the first record lacks a field."""
    try:
        require_fields(files, source)
    except NoSuchField as error:
        raise error.of_source(number, provenance.get(f"sources.{number}.{error.field.key}")) from error
    except DataError:
        # Of the files themselves, which the verb reads to their end.
        return


def look_at_output(findings: Findings, place: str) -> None:
    """Looks whether a dataset may be written at `place`. Of a URL, only the verb itself sees it."""
    if findings.reach is not Reach.NONE and not is_remote(place):
        findings.ask(lambda: require_output(Path(place)))


def look_at_export(findings: Findings, options: Mapping[str, Any]) -> None:
    """Looks at the run, or the checkpoint, that `export` reads, and whether its output is free."""
    _look_at_checkpoint(findings, str(options["source"]))
    if findings.reach is not Reach.NONE:
        findings.ask(lambda: require_absent(options["output"]))


def _look_at_checkpoint(findings: Findings, place: str) -> None:
    """Looks at a run, or at one of its checkpoints."""
    source = findings.local("the run", place)
    if source is not None:
        run = source.parent.parent if source.parent.name == CHECKPOINTS else source
        findings.ask(lambda: _newest_checkpoint(run))


def _datasets(config: RunConfig) -> Iterator[tuple[str, StreamSection]]:
    data = config.data
    if data.train is not None:
        section = StreamSection(dataset=data.train, domains=data.domains, reference=config.slm.reference)
        yield "data.train", section
    for name, section in data.streams.items():
        yield f"data.streams.{name}", section


def _training_dataset(
    findings: Findings, config: RunConfig, setting: str, section: StreamSection
) -> ReadDataset | None:
    place, seq_len = section.dataset, config.data.seq_len
    manifest = _manifest(findings, setting, place, making_command(place, seq_len, section.reference))
    if manifest is None:
        return None
    key = "data.domains" if setting == "data.train" else f"{setting}.domains"
    named = f"{findings.named(setting)}: "
    domains = findings.ask(
        lambda: training_domains(manifest, place, section.domains, setting=key, seq_len=seq_len), prefix=named
    )
    findings.ask(lambda: require_targets_of(config.train.objective, manifest, place), prefix=named)
    findings.ask(lambda: require_weights(config, manifest, place), prefix=named)
    findings.ask(lambda: require_columns(config, manifest, place), prefix=named)
    findings.ask(lambda: require_distillable(config, manifest, place), prefix=named)
    if reads_reference(config):
        mask, slm = manifest.mask, config.slm
        if mask is not None:
            findings.ask(lambda: require_rule(mask, place, slm), prefix=named)
        elif manifest.kind == "scored" or not distills(config):
            findings.ask(lambda: require_reference(manifest, place, needs_entropy=slm.needs_ref_entropy), prefix=named)
    if selects_by_column(config):
        findings.ask(lambda: require_selected(manifest, place), prefix=named)
    return ReadDataset(setting, manifest, domains or ())


def _manifest(findings: Findings, setting: str, place: str, command: str | None = None) -> Manifest | None:
    """The manifest of a dataset; None where it cannot be read here. `command` makes the dataset."""
    named = f"{findings.named(setting)}: "
    if findings.read_remote is not None and is_remote(place):
        return findings.ask(partial(findings.read_remote, place), prefix=named)
    folder = findings.local(setting, place)
    if folder is not None and command is not None and kind_of(folder) is Kind.MISSING:
        findings.add(f"{named}{folder} does not exist{looked_in(folder)}; make it with\n    {command}")
        return None
    return None if folder is None else findings.ask(lambda: read_manifest(folder), prefix=named)


def _parameters(findings: Findings, setting: str, place: str, hub: HubModel | None = None) -> int | None:
    """The number of parameters of a model folder; None where it cannot be told."""

    def count(folder: Path) -> int:
        _require_stated(folder, hub)
        return count_parameters(folder)

    folder = findings.local(setting, place)
    return None if folder is None else findings.ask(lambda: count(folder), prefix=f"{findings.named(setting)}: ")


def _require_stated(folder: Path, hub: HubModel | None = None) -> None:
    require_model(folder, hub)
    stated_config(folder)


def _floating_point_weights(folder: Path) -> Mapping[str, StoredWeight]:
    _require_stated(folder)
    return plain_weights(folder)


def _checkpoint_bytes(findings: Findings, model: ModelSection) -> int | None:
    if model.from_run is not None:
        run, named = findings.local("model.from_run", model.from_run), f"{findings.named('model.from_run')}: "
        return None if run is None else findings.ask(lambda: _size_of_newest(run), prefix=named)
    if model.from_pretrained is not None:
        parameters = _parameters(findings, "model.from_pretrained", model.from_pretrained, model.hub)
    else:
        parameters = None if model.from_scratch is None else parameter_count(model.from_scratch).total
    return None if parameters is None else checkpoint_bytes(parameters)


def _size_of_newest(run: Path) -> int:
    return sum(file.stat().st_size for file in _newest_checkpoint(run).iterdir())


def _newest_checkpoint(run: Path) -> Path:
    require_run_folder(run)
    complete = sorted(run.glob(COMPLETE_CHECKPOINTS))
    if not complete:
        raise CheckpointError(f"{run}: has no complete checkpoint; train it until its first save")
    return complete[-1].parent


def _look_at_room(findings: Findings, config: RunConfig, needed_bytes: int | None) -> None:
    named = f"the room for a checkpoint in run_dir = {config.run_dir}"
    run = Path(config.run_dir)
    # The folder itself is made by the run. Its file system may be one of other hosts.
    is_mounted = not run.is_absolute() or Path(*run.parts[:2]).exists()
    if findings.reach is Reach.NONE or (findings.reach is Reach.SHARED and not is_mounted):
        findings.leave(named, findings.why_unseen)
        return
    disk = Disk.of(run)
    if disk is None or needed_bytes is None:
        findings.leave(named, "its size is not known without the model that the run starts from")
        return
    for finding in room_for_checkpoints(disk, socket.gethostname(), needed_bytes):
        (findings.problems if finding.ends_the_job else findings.warnings).append(finding.text)


def _before_glob(path: str) -> str:
    """The part of a path, or of a URL, before the folder in which a pattern begins."""
    fixed = re.split(f"[{re.escape(MAGIC)}]", path, maxsplit=1)[0]
    return path if fixed == path else fixed.rpartition("/")[0] or "."
