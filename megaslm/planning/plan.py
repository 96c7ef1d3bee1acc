"""The plan of a run on given GPUs: parameters, memory, steps, time, money, disk and network."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megaslm.config.load import load
from megaslm.config.plan import BatchPlan, ParameterCounts, plan_batches
from megaslm.config.schema import RunConfig
from megaslm.dataset.kinds import Kind, kind_of
from megaslm.dataset.manifest import read_manifest
from megaslm.errors import ConfigError
from megaslm.model.forward_flops import FORWARD_AND_BACKWARD, forward_flops_per_token
from megaslm.model.load import ChosenPrecision, dtype_of
from megaslm.model.memory import RankMemory
from megaslm.model.shapes import Shape, shape_in, shape_of
from megaslm.model.traced_memory import parameter_counts
from megaslm.planning.foreseen import PlannedExact, foresee, planned_precision
from megaslm.planning.machine import Machine
from megaslm.planning.work import Disk, Network, Rate, Work, disk_of, network_of
from megaslm.storage.file_systems import is_remote


@dataclass(frozen=True)
class Request:
    """What is asked beside the configuration."""

    machine: Machine
    mfu: float
    price: float | None = None
    model: Path | None = None
    """Where the model's shape is, in place of the run's setting."""
    epoch_tokens: int | None = None
    """Targets of an epoch, where the dataset is not at hand."""
    reference_run: Path | None = None
    """The configuration of the run that trains the reference."""


@dataclass(frozen=True)
class Scoring:
    """The reference's forward pass over the corpus."""

    reference: str
    """Where its shape is from."""
    parameters: int
    tokens: int
    """As many as the run reads, or as its corpus has if that is known and less."""
    work: Work | None


@dataclass(frozen=True)
class OneMicroStep:
    """The same run with all rows of a rank's step in one micro-batch, where that fits."""

    rows: int
    """`train.micro_batch_rows`."""
    peak_bytes: int
    network_bytes_per_step: int
    """What a GPU receives."""
    makes_exact_free: bool
    """Whether `slm.mode: exact` costs something in the run as it is, or would cost it."""


@dataclass(frozen=True)
class Plan:
    """What a run needs and costs."""

    config: str
    objective: str
    machine: Machine
    model_source: str
    parameters: ParameterCounts
    precision: ChosenPrecision
    recompute: str
    zero_stage: int
    batches: BatchPlan
    tokens: int | None
    """Targets of the whole run; None where only the dataset tells."""
    memory: RankMemory
    exact: PlannedExact | None
    """None where no selection waits for the losses of several micro-steps."""
    one_micro_step: OneMicroStep | None
    """None where the run has one already, or it does not fit."""
    flops_per_token: float
    """Of training, a second forward pass included."""
    mfu: float
    training: Work | None
    """None where the length or the machine's peak is not known."""
    scoring: Scoring | None
    reference_training: Work | None
    disk: Disk | None
    network: Network

    @property
    def fits(self) -> bool:
        """Whether a rank's memory holds the run."""
        return self.memory.peak_bytes <= self.machine.usable_bytes

    def break_even(self, runs: int) -> float | None:
        """The share of its tokens after which a selective run must reach the last loss of the same run on all tokens,
        so that it took as long, its part of scoring and reference included. 0 or less: it cannot. None: not known.

        `runs` is how many read the same scores.
        """
        if self.training is None or self.scoring is None or self.scoring.work is None:
            return None
        before = self.scoring.work.hours
        if self.reference_training is not None:
            before += self.reference_training.hours
        second_pass = self.exact is not None and not self.exact.keeps_graphs
        baseline = FORWARD_AND_BACKWARD / (FORWARD_AND_BACKWARD + second_pass)
        return baseline - before / runs / self.training.hours


def make_plan(path: Path, overrides: Sequence[str], request: Request) -> Plan:
    """The plan of the run that a YAML file and overrides of its settings describe. Takes a few seconds.

    Raises:
        ConfigError: the configuration is not one, or its batches do not divide evenly.
        ModelError: the model's shape is not to be found.
    """
    config = load(RunConfig, path, overrides).value
    shape = shape_of(config.model, request.model)
    machine = request.machine
    config, tokens = _with_length(config, request.epoch_tokens)
    batches = plan_batches(config, machine.ranks)
    precision = planned_precision(config, machine)
    counts, _ = parameter_counts(shape.config)
    foreseen = foresee(config, shape, machine)
    rate = None
    if machine.peak_tflops is not None and precision == "bf16":
        rate = Rate(machine.ranks, machine.peak_tflops * 1e12, request.mfu, request.price)
    forward_passes = FORWARD_AND_BACKWARD + foreseen.makes_second_pass
    flops = forward_passes * forward_flops_per_token(shape.config, config.data.seq_len)
    speed = None if rate is None else rate.work(tokens or batches.tokens_per_step, flops)
    different = None if tokens is None else _different_tokens(config, tokens)
    return Plan(
        config=str(path),
        objective=config.train.objective,
        machine=machine,
        model_source=shape.source,
        parameters=counts,
        precision=precision,
        recompute=config.model.recompute,
        zero_stage=config.zero.stage,
        batches=batches,
        tokens=tokens,
        memory=foreseen.memory,
        exact=foreseen.exact,
        one_micro_step=_one_micro_step(config, shape, machine),
        flops_per_token=flops,
        mfu=request.mfu,
        training=None if tokens is None else speed,
        scoring=None if different is None else _scoring(config, shape, different, rate),
        reference_training=_reference_training(request, rate),
        disk=None if different is None else disk_of(config, batches, counts.total, shape.config.vocab_size, different),
        network=network_of(config.zero, batches, counts.total, dtype_of(precision).itemsize, speed),
    )


def with_rows(config: RunConfig, micro_batch_rows: int) -> RunConfig:
    """The run with other micro-batches."""
    return config.model_copy(update={"train": config.train.model_copy(update={"micro_batch_rows": micro_batch_rows})})


def _one_micro_step(config: RunConfig, shape: Shape, machine: Machine) -> OneMicroStep | None:
    batches = plan_batches(config, machine.ranks)
    if batches.micro_steps == 1:
        return None
    changed = with_rows(config, batches.rows_per_rank)
    peak_bytes = foresee(changed, shape, machine).memory.peak_bytes
    if peak_bytes > machine.usable_bytes:
        return None
    element_bytes = dtype_of(planned_precision(config, machine)).itemsize
    total = parameter_counts(shape.config)[0].total
    network = network_of(config.zero, plan_batches(changed, machine.ranks), total, element_bytes, None)
    slm = config.slm
    return OneMicroStep(
        rows=batches.rows_per_rank,
        peak_bytes=peak_bytes,
        network_bytes_per_step=network.bytes_per_step,
        makes_exact_free=config.train.objective == "slm" and (slm.needs_all_losses or slm.mode == "running"),
    )


def with_known_length(config: RunConfig, epoch_tokens: int | None) -> RunConfig:
    """The run with its length in tokens: one step where only the dataset tells it."""
    return _with_length(config, epoch_tokens)[0]


def _with_length(config: RunConfig, epoch_tokens: int | None) -> tuple[RunConfig, int | None]:
    """The run with `total_tokens`, and these; None where they are not known, and the run then has one step."""
    train, epochs = config.train, config.train.epochs
    batch = train.global_batch_tokens
    if epochs is None:
        return config, train.length_tokens // batch * batch
    of_epoch = epoch_tokens or _corpus_tokens(config)
    steps = 1 if of_epoch is None else int(epochs * (of_epoch // batch))
    if steps == 0:
        raise ConfigError(
            f"train.epochs = {epochs}: is less than one step of train.global_batch_tokens = {batch} where an epoch has "
            f"{of_epoch} targets; raise it, or lower train.global_batch_tokens"
        )
    known = train.model_copy(update={"total_tokens": steps * batch, "epochs": None})
    return config.model_copy(update={"train": known}), None if of_epoch is None else steps * batch


def _corpus_tokens(config: RunConfig) -> int | None:
    """Targets of the training rows, by the dataset's manifest; None where it is not at hand or there are several."""
    place = config.data.train
    if place is None or is_remote(place) or kind_of(Path(place)) is not Kind.DATASET:
        return None
    found = read_manifest(Path(place)).splits.get("train", {})
    domains = config.data.domains or tuple(found)
    return sum(found[domain].rows for domain in domains if domain in found) * config.data.seq_len


def _different_tokens(config: RunConfig, tokens: int) -> int:
    return min(tokens, _corpus_tokens(config) or tokens)


def _scoring(config: RunConfig, own: Shape, tokens: int, rate: Rate | None) -> Scoring | None:
    slm = config.slm
    if config.train.objective != "slm" or not (slm.needs_ref_loss or slm.needs_ref_entropy or slm.distills):
        return None
    named = [slm.reference, *(stream.reference for stream in config.data.streams.values())]
    folder = next((Path(place) for place in named if place is not None), None)
    shape = None if folder is None else shape_in(folder)
    if shape is None:
        what = "no reference is named" if folder is None else f"{folder} is not on this machine"
        shape = replace(own, source=f"{what}: the model's own shape is taken")
    work = None if rate is None else rate.work(tokens, forward_flops_per_token(shape.config, config.data.seq_len))
    return Scoring(shape.source, parameter_counts(shape.config)[0].total, tokens, work)


def _reference_training(request: Request, rate: Rate | None) -> Work | None:
    if request.reference_run is None or rate is None:
        return None
    config, tokens = _with_length(load(RunConfig, request.reference_run).value, request.epoch_tokens)
    if tokens is None:
        raise ConfigError(
            f"--reference-run {request.reference_run}: its length is train.epochs = {config.train.epochs}, and its "
            "dataset is not on this machine; give the targets of an epoch with --epoch-tokens"
        )
    shape = shape_of(config.model, None)
    return rate.work(tokens, FORWARD_AND_BACKWARD * forward_flops_per_token(shape.config, config.data.seq_len))
