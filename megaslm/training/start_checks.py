"""What `train --check` compares once the single inputs are there: all that a start refuses and that needs no GPU.

Imports no torch, and reads no weights. The start alone finds weights that their config.json does not describe, and
reference losses that other weights than those of `slm.reference` gave.
"""

from pathlib import Path

from megaslm.config.plan import BatchPlan, plan_batches
from megaslm.config.run_files import PROBE
from megaslm.config.schema import ModelSection, RunConfig
from megaslm.dataset.fit import heldout_domains, losses_read, reads_reference, reads_scores
from megaslm.dataset.manifest import TOKENIZER, Reference, read_manifest
from megaslm.dataset.remote import DatasetFolder
from megaslm.generation.text_tokens import TextTokens
from megaslm.model.fit import check_cache_fits, check_model_fits, check_tokenizer_fits
from megaslm.model.stated_config import CONFIG, StatedShape, stated_shape
from megaslm.model.weight_files import plain_weights
from megaslm.stream.mixture import require_whole_batch
from megaslm.training.asked_tasks import read_task
from megaslm.training.probe_rows import check_probe
from megaslm.training.training_data import TrainingData, check_provenance, open_training_data


def check_start(config: RunConfig, ranks: int) -> None:
    """Compares the datasets and the model of a run whose length is in tokens with one another and with its settings.

    All that it reads is in local folders.

    Raises:
        UserMistake: `train` would refuse to start, with the same message.
    """
    training, plan = open_training_data(config), plan_batches(config, ranks)
    require_whole_batch(training.mixture.streams, plan.global_batch_rows)
    if reads_scores(config):
        _check_references(config, training)
    for name, chosen in config.validation.sets.items():
        source = DatasetFolder(Path(chosen.dataset))
        for domain in heldout_domains(name, chosen, read_manifest(source.path), training.first.manifest):
            source.reader(chosen.split, domain)
    _check_model(config, training, plan)
    if config.probe.every_tokens is not None:
        check_probe(Path(config.run_dir) / PROBE, config, training)


def _check_references(config: RunConfig, training: TrainingData) -> None:
    isolation = config.model.document_isolation
    for dataset in training.datasets:
        columns: list[tuple[str | None, Reference]] = [*losses_read(config, dataset.manifest)]
        if reads_reference(config) and dataset.manifest.reference is not None:
            columns.append((None, dataset.manifest.reference))
        for column, found in columns:
            check_provenance(
                found,
                dataset.manifest,
                dataset.source,
                document_isolation=isolation,
                reference=None,
                column=column,
            )


def _check_model(config: RunConfig, training: TrainingData, plan: BatchPlan) -> None:
    dataset, model = training.first, config.model
    manifest, tokenizer, place = dataset.manifest, dataset.source.path / TOKENIZER, dataset.source.place
    name, shape = "model.from_scratch", _drawn_shape(model)
    if shape is None:
        # Of a run, the description of its model. A start exports the newest checkpoint first.
        folder = Path(model.from_pretrained or Path(model.from_run or "") / "model")
        if not (folder / CONFIG).is_file():
            return
        name, shape = str(folder), stated_shape(folder)
        if model.from_pretrained is not None:
            plain_weights(folder)
        check_tokenizer_fits(folder, manifest, tokenizer=tokenizer, dataset=place)
    if shape is None:
        return
    check_model_fits(shape, manifest, model=name, dataset=place)
    check_cache_fits(config, plan, shape.vocab_size)
    if config.validation.tasks:
        tokens = TextTokens.of_folder(tokenizer)
        for task, chosen in config.validation.tasks.items():
            read_task(task, chosen).require_fit(tokens, shape.max_position_embeddings)


def _drawn_shape(model: ModelSection) -> StatedShape | None:
    drawn = model.from_scratch
    return None if drawn is None else StatedShape(drawn.vocab_size, drawn.max_position_embeddings)
