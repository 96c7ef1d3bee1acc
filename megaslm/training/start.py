"""The work before the first step: checks, the run folder, and the model under its engine."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from megaslm.config.deepspeed import deepspeed_settings
from megaslm.config.hub import HubModel
from megaslm.config.plan import BatchPlan
from megaslm.config.schema import RunConfig
from megaslm.dataset.manifest import TOKENIZER
from megaslm.engine.distributed import World, on_first_rank
from megaslm.engine.zero import ZeroEngine, ZeroSharding, adamw
from megaslm.model.decoder_layers import is_compiled, prepare_layers
from megaslm.model.filtered_backward import filtered_layers, require_no_dropout
from megaslm.model.finished import unfinished_export
from megaslm.model.fit import bos_warning, check_cache_fits, check_model_fits, check_tokenizer_fits
from megaslm.model.folder import check_model_folder
from megaslm.model.load import (
    ChosenPrecision,
    build_from_shape,
    choose_precision,
    draw_weights,
    dtype_of,
    load_pretrained,
)
from megaslm.model.selective_lm import CausalLM, HeadSettings, SelectiveLM
from megaslm.model.self_check import require_library_losses
from megaslm.model.weight_files import weights_sha256
from megaslm.training.export import newest_weights
from megaslm.training.run_folder import RunFolder, open_run
from megaslm.training.training_data import TrainingData


def pretrained_folder(config: RunConfig) -> Path | None:
    """The Hugging Face folder that the run starts from: given, or made from another run's newest checkpoint.

    Called on all ranks. None where the run starts from random weights.
    """
    if config.model.from_pretrained is not None:
        return Path(config.model.from_pretrained)
    if config.model.from_run is not None:
        other = RunFolder(Path(config.model.from_run))
        return on_first_rank(lambda: newest_weights(other))
    return None


def reference_warnings(config: RunConfig, data: TrainingData, pretrained: Path | None) -> Iterator[str]:
    """Warnings that the reference is the model that the run starts from, so that no target has an excess loss.

    Reads all weights of `pretrained`.
    """
    if pretrained is None or config.train.objective != "slm" or config.slm.criterion != "excess":
        return
    weights = weights_sha256(pretrained)
    for dataset in data.datasets:
        reference = dataset.manifest.reference
        if reference is not None and reference.weights_sha256 == weights:
            yield (
                f"{dataset.source.place} was scored by the very model that this run starts from ({pretrained}): its "
                "excess loss is 0 everywhere except for rounding, so the first selections are random; score the data "
                "with a reference that was trained on the text you want"
            )


def bos_warnings(data: TrainingData, pretrained: Path | None) -> Iterator[str]:
    """A warning that the model that the run starts from expects BOS where rows have none, or the other way round."""
    if pretrained is not None:
        first = data.first
        warning = bos_warning(pretrained, first.manifest, dataset=first.source.place)
        yield from [] if warning is None else [warning]


def unfinished_warnings(pretrained: Path | None) -> Iterator[str]:
    """A warning that the model that the run starts from was exported from an unfinished run."""
    how_far = None if pretrained is None else unfinished_export(pretrained)
    if how_far is not None:
        yield (
            f"{pretrained} was exported at {how_far}, and this run starts from a model that is not final; to start "
            "from the final one, finish that run first and choose another run_dir"
        )


def start_engine(
    config: RunConfig, plan: BatchPlan, data: TrainingData, world: World, pretrained: Path | None
) -> ZeroEngine:
    """Builds the model of the run, hands it to DeepSpeed and makes the run folder; called on all ranks.

    `pretrained` comes from `pretrained_folder`.

    Raises:
        ModelError, DataError: the model does not fit the data.
    """
    precision = choose_precision(config.model.precision, world.device)
    settings = deepspeed_settings(config, plan, precision=precision, on_gpu=world.device.type == "cuda")
    if pretrained is not None:
        on_first_rank(lambda: _check_pretrained(pretrained, config.model.hub, data))
    sharding = ZeroSharding(settings)
    lm = _build(config, precision, data, sharding, pretrained)
    on_first_rank(lambda: check_cache_fits(config, plan, lm.config.vocab_size))
    on_first_rank(lambda: open_run(config, data, lm, dtype_of(precision), pretrained=pretrained))
    return under_engine(lm, config, settings, eos_id=data.eos_id, device=world.device)


def under_engine(
    lm: CausalLM, config: RunConfig, settings: Mapping[str, Any], *, eos_id: int, device: torch.device
) -> ZeroEngine:
    """Hands the model of a run to DeepSpeed, with the run's recomputation, isolation, head and optimiser.

    `settings` are DeepSpeed's, under which `lm` was built. `device` is where it runs.

    Raises:
        ConfigError: the layers are to be compiled, and the machine lacks what that needs; or layers with dropout are to
            run anew in the backward pass.
    """
    compiled = is_compiled(config.model.compile, device, name="model.compile =")
    filtered = filtered_layers(config, lm.config.num_hidden_layers)
    if filtered:
        require_no_dropout(lm)
    prepare_layers(lm.train(), recompute=config.model.recompute, compiled=compiled, filtered=filtered)
    head = HeadSettings(config.slm.head, int(config.slm.head_cache_gib * (1 << 30)))
    model = SelectiveLM(lm, eos_id=eos_id, document_isolation=config.model.document_isolation, head=head)
    return ZeroEngine(model, settings, adamw(model, settings, config.train), deterministic=config.train.deterministic)


def _check_pretrained(folder: Path, hub: HubModel | None, data: TrainingData) -> None:
    config = check_model_folder(folder, hub)
    manifest, source = data.first.manifest, data.first.source
    check_model_fits(config, manifest, model=str(folder), dataset=source.place)
    check_tokenizer_fits(folder, manifest, tokenizer=source.path / TOKENIZER, dataset=source.place)
    require_library_losses(config, model=str(folder))


def _build(
    config: RunConfig, precision: ChosenPrecision, data: TrainingData, sharding: ZeroSharding, pretrained: Path | None
) -> CausalLM:
    if pretrained is not None:
        return load_pretrained(pretrained, dtype=dtype_of(precision))
    architecture = config.model.from_scratch
    assert architecture is not None, "the schema lets exactly one source of weights through"
    lm = build_from_shape(architecture, eos_id=data.eos_id, dtype=dtype_of(precision))
    check_model_fits(lm.config, data.first.manifest, model="model.from_scratch", dataset=data.first.source.place)
    draw_weights(lm, seed=config.seed, standard_deviation=architecture.initializer_range, sharding=sharding)
    return lm
