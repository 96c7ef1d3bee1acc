"""Everything that happens once before the first step: checks, the run folder, the model under its engine."""

from dataclasses import dataclass
from pathlib import Path

from megaslm.config.deepspeed import deepspeed_settings
from megaslm.config.plan import BatchPlan
from megaslm.config.schema import RunConfig
from megaslm.data.manifest import Manifest, read_manifest
from megaslm.data.shards import check_layout
from megaslm.engine.distributed import World, on_first_rank
from megaslm.engine.zero import ZeroEngine, ZeroSharding, adamw
from megaslm.errors import ConfigError, DataError
from megaslm.model.fit import check_model_fits, check_tokenizer_fits
from megaslm.model.load import build_from_shape, check_model_folder, draw_weights, load_pretrained
from megaslm.model.precision import ChosenPrecision, choose_precision, dtype_of
from megaslm.model.selective_head import HeadSettings
from megaslm.model.selective_lm import CausalLM, SelectiveLM
from megaslm.slm.token_loss import cache_bytes
from megaslm.training.export import newest_weights
from megaslm.training.reference_check import check_reference
from megaslm.training.run_folder import RunFolder, open_run


@dataclass(frozen=True)
class TrainingData:
    """The dataset of a run."""

    dataset: Path
    manifest: Manifest
    domains: tuple[str, ...]


def open_training_data(config: RunConfig) -> TrainingData:
    """Checks that the dataset is whole and is what the run needs, as far as can be seen without a model.

    Raises:
        DataError: it is not; the message names both sides.
    """
    dataset = Path(config.data.train)
    manifest = read_manifest(dataset)
    if manifest.seq_len != config.data.seq_len:
        raise DataError(
            f"{dataset} has rows of {manifest.seq_len} targets; data.seq_len = {config.data.seq_len}; set one "
            "to the other"
        )
    present = manifest.splits.get("train", {})
    domains = config.data.domains or tuple(present)
    missing = [domain for domain in domains if domain not in present]
    if missing or not domains:
        raise DataError(
            f"data.domains: {dataset} has no training rows of {', '.join(missing) or 'any domain'}; it has "
            f"{', '.join(present) or 'none'}"
        )
    check_layout(dataset)
    return TrainingData(dataset, manifest, domains)


def check_scored(config: RunConfig, data: TrainingData, world: World) -> None:
    """Checks the reference losses of a run under `slm`, on one rank, before the model takes its memory.

    Raises:
        DataError: there are none, or not those that the run needs.
    """
    if reads_reference(config):
        check_reference(
            data.manifest,
            data.dataset,
            document_isolation=config.model.document_isolation,
            needs_entropy=config.slm.needs_ref_entropy,
            reference=None if config.slm.reference is None else Path(config.slm.reference),
            rows=config.slm.verify_rows,
            device=world.device,
        )


def reads_reference(config: RunConfig) -> bool:
    """Whether the run selects by what a reference model says."""
    return config.train.objective == "slm" and (config.slm.needs_ref_loss or config.slm.needs_ref_entropy)


def start_engine(config: RunConfig, plan: BatchPlan, data: TrainingData, world: World) -> ZeroEngine:
    """Builds the model of the run, hands it to DeepSpeed and makes the run folder; called on all ranks.

    Raises:
        ModelError, DataError: the model does not fit the data.
    """
    precision = choose_precision(config.model.precision, world.device)
    settings = deepspeed_settings(config, plan, precision=precision, on_gpu=world.device.type == "cuda")
    origin = _pretrained_folder(config)
    if origin is not None:
        on_first_rank(lambda: _check_origin(origin, data))
    sharding = ZeroSharding(settings)
    lm = _build(config, precision, data, sharding, origin)
    on_first_rank(lambda: _check_cache_fits(config, plan, lm.config.vocab_size))
    on_first_rank(lambda: open_run(config, data.manifest, lm, dtype_of(precision)))
    if config.model.gradient_checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lm.train()
    head = HeadSettings(config.slm.head, int(config.slm.head_cache_gib * (1 << 30)))
    model = SelectiveLM(lm, eos_id=data.manifest.eos_id, document_isolation=config.model.document_isolation, head=head)
    return ZeroEngine(model, settings, adamw(model, settings, config.train))


def _check_cache_fits(config: RunConfig, plan: BatchPlan, vocab_size: int) -> None:
    """Whether `slm.head: cache` fits its budget, in a run whose choices wait for the losses."""
    slm = config.slm
    measured_first = slm.scope == "batch" and slm.mode == "exact" and plan.micro_steps > 1
    waits_for_losses = config.train.objective == "slm" and slm.score in ("excess", "loss") and not measured_first
    needed_gib = cache_bytes(plan.micro_batch_rows * plan.seq_len, vocab_size) / (1 << 30)
    if slm.head == "cache" and waits_for_losses and needed_gib > slm.head_cache_gib:
        raise ConfigError(
            f"slm.head = cache: holds {needed_gib:.3g} GiB for {plan.micro_batch_rows} rows of {plan.seq_len} targets "
            f"and a vocabulary of {vocab_size}, more than slm.head_cache_gib = {slm.head_cache_gib:.3g}; raise that, "
            "lower train.micro_batch_rows, or use slm.head = bracket"
        )


def _check_origin(folder: Path, data: TrainingData) -> None:
    """What can be seen of a model without its weights."""
    check_model_fits(check_model_folder(folder), data.manifest, model=str(folder), dataset=data.dataset)
    check_tokenizer_fits(folder, data.manifest, dataset=data.dataset)


def _build(
    config: RunConfig, precision: ChosenPrecision, data: TrainingData, sharding: ZeroSharding, origin: Path | None
) -> CausalLM:
    if origin is not None:
        return load_pretrained(origin, dtype=dtype_of(precision))
    architecture = config.model.from_scratch
    assert architecture is not None, "the schema lets exactly one origin through"
    lm = build_from_shape(architecture, eos_id=data.manifest.eos_id, dtype=dtype_of(precision))
    check_model_fits(lm.config, data.manifest, model="model.from_scratch", dataset=data.dataset)
    draw_weights(lm, seed=config.seed, standard_deviation=architecture.initializer_range, sharding=sharding)
    return lm


def _pretrained_folder(config: RunConfig) -> Path | None:
    """The Hugging Face folder that the run starts from: given, or made from another run's newest checkpoint."""
    if config.model.from_pretrained is not None:
        return Path(config.model.from_pretrained)
    if config.model.from_run is not None:
        other = RunFolder(Path(config.model.from_run))
        return on_first_rank(lambda: newest_weights(other))
    return None
