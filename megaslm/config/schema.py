"""The configuration of one training run, as frozen sections.

Every field has its meaning and unit in the docstring below it; `megaslm config explain` prints them. Nothing here
imports torch, reads a file or looks at the machine, so that a configuration can be checked anywhere.
"""

import re
from decimal import Decimal
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from megaslm.config.hub import HubModel
from megaslm.config.measuring import ProbeSection, ValidationSection
from megaslm.config.operation import CheckpointSection, GuardSection, LogSection, ZeroSection
from megaslm.config.section import NAME_PATTERN, AboveZero, NewName, NonNegative, OldNames, Positive, Section
from megaslm.config.selection import SlmSection
from megaslm.errors import ConfigError

# As decimals, so that 0.3 of 10 steps are 3.
Epochs = Annotated[Decimal, Field(gt=0)]
Precision = Literal["auto", "bf16", "fp32"]
Compile = Literal["auto", "on", "off"]
Recompute = Literal["none", "selective", "full"]
FlashAttention = Literal["FA2", "FA3", "FA4"]
Objective = Literal["clm", "slm", "sft"]


class Architecture(Section):
    """The shape of a model with random initial weights."""

    family: Literal["llama", "mistral"] = "llama"
    """Which Hugging Face architecture to build."""
    vocab_size: Positive
    """Rows of the embedding table; at least the tokenizer's vocabulary."""
    hidden_size: Positive
    """Width of the residual stream."""
    intermediate_size: Positive
    """Width of the gated feed-forward layer."""
    num_layers: Positive
    """Number of decoder layers."""
    num_heads: Positive
    """Number of attention heads; must divide `hidden_size`."""
    num_kv_heads: Positive | None = None
    """Number of key and value heads; null means `num_heads`."""
    max_position_embeddings: Positive = 4096
    """Longest row, in tokens, that the model can take."""
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    """Base of the rotary position embedding."""
    rms_norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    """Epsilon of the RMS normalisations."""
    tie_embeddings: bool = False
    """Whether the head shares the embedding table."""
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of the random weights."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "Architecture":
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size = {self.hidden_size} is not a multiple of num_heads = {self.num_heads}")
        if self.num_kv_heads is not None and self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads = {self.num_heads} is not a multiple of num_kv_heads = {self.num_kv_heads}")
        return self


class ModelSection(Section):
    """Where the weights come from and how the model is run. Exactly one of the three sources is set."""

    from_pretrained: str | None = None
    """A Hugging Face folder (safetensors, config, tokenizer)."""
    hub: HubModel | None = None
    """The model of the Hugging Face hub that `from_pretrained` was fetched from, for messages and records."""
    from_run: str | None = None
    """Another run's folder. Its newest complete checkpoint gives the weights, not the optimiser state."""
    from_scratch: Architecture | None = None
    """The shape of a new model; its weights are drawn at random from `seed`."""
    precision: Precision = "auto"
    """Arithmetic of the forward and backward pass; auto is bf16 on GPUs and fp32 on CPUs. Losses are always float32."""
    compile: Compile = "auto"
    """Whether torch.compile compiles the decoder layers for training steps. The first step then takes minutes longer.
    auto compiles where there is a GPU, Triton and a C compiler; on fails where it cannot."""
    recompute: Recompute = "none"
    """What the backward pass of a decoder layer computes again instead of keeping it, to save memory. selective keeps
    the results of attention and of every second matrix product; full keeps nothing but the layer's input."""
    flash_attention: FlashAttention = "FA2"
    """Which FlashAttention computes attention on a GPU. FA2 is torch's own. FA3 (Hopper) and FA4 (Hopper and Blackwell)
    are packages of their own."""
    document_isolation: bool = True
    """Whether attention and positions restart at every document of a packed row."""

    @model_validator(mode="after")
    def _one_source(self) -> "ModelSection":
        sources = {
            "from_pretrained": self.from_pretrained,
            "from_run": self.from_run,
            "from_scratch": self.from_scratch,
        }
        chosen = [name for name, value in sources.items() if value is not None]
        if len(chosen) != 1:
            found = " and ".join(chosen) or "none"
            raise ValueError(f"exactly one of from_pretrained, from_run, from_scratch must be set; found {found}")
        return self


class StreamSection(Section):
    """One dataset of a mixture."""

    dataset: str
    """The dataset, a folder or a URL. Its `train` split is read; `objective: slm` needs a scored or masked dataset."""
    weight: AboveZero | None = None
    """Its share of an epoch's rows, relative to the other streams' weights. All streams have one, or none has."""
    repeat: AboveZero | None = None
    """How often its rows are read per epoch; streams without `repeat` are read once. Excludes weights."""
    domains: tuple[str, ...] | None = None
    """Domains to read, each in proportion to its rows; null means all."""
    reference: str | None = None
    """The Hugging Face folder of the model that scored this dataset, where available. Only `verify_rows` uses it."""


class FetchSection(Section):
    """How datasets on object storage are read. Local datasets need none of these settings."""

    cache: str = "~/.cache/megaslm"
    """The folder for fetched datasets, on each host's own disk."""
    cache_limit_gib: AboveZero | None = None
    """Most GiB that a run's shards may take in the cache; the least recently read are deleted. null has no limit."""
    retries: NonNegative = 5
    """How often a failed request for a shard is retried, after a pause that doubles each time."""
    timeout_seconds: AboveZero = 300.0
    """Seconds that a process waits for a shard, all retries together, before the run fails."""


class DataSection(Section):
    """The data of the run: one dataset, or several. Exactly one of `train` and `streams` is set."""

    train: str | None = None
    """The dataset, a folder or a URL. Its `train` split is read; `objective: slm` needs a scored or masked dataset."""
    streams: dict[str, StreamSection] = Field(default_factory=dict)
    """Named datasets that are mixed. Without weights and repeats every row is read once per epoch."""
    seq_len: Positive
    """Targets per row; the dataset's rows hold seq_len + 1 tokens."""
    domains: tuple[str, ...] | None = None
    """Domains of `train` to read; null means all."""
    shuffle_seed: NonNegative = 0
    """Seed of the order of rows. For equal seeds and batches the order is the same on any number of ranks."""
    loader_workers: NonNegative = 1
    """Loader processes per rank; 0 reads in the training process."""
    fetch: FetchSection = FetchSection()
    """How remote datasets are read."""

    @model_validator(mode="after")
    def _one_way_to_name_data(self) -> "DataSection":
        if (self.train is None) == (not self.streams):
            found = "none" if self.train is None else "both"
            raise ValueError(f"exactly one of train and streams must be set; found {found}")
        if self.streams and self.domains is not None:
            raise ValueError("domains belongs to train; set domains of each stream")
        return self

    @model_validator(mode="after")
    def _streams_have_names(self) -> "DataSection":
        for name in self.streams:
            if not re.fullmatch(NAME_PATTERN, name):
                raise ValueError(
                    f"the stream name {name!r} must begin with a letter or a digit and hold letters, digits, - and _"
                )
        return self

    @model_validator(mode="after")
    def _shares_are_comparable(self) -> "DataSection":
        without = [name for name, stream in self.streams.items() if stream.weight is None]
        weighted = [name for name in self.streams if name not in without]
        if weighted and without:
            raise ValueError(
                f"{', '.join(weighted)} has a weight and {', '.join(without)} has none; give all streams one, or none"
            )
        repeated = [name for name, stream in self.streams.items() if stream.repeat is not None]
        if weighted and repeated:
            raise ValueError(f"{', '.join(repeated)} has a repeat in addition to weights; set only one of them")
        return self


class TrainSection(Section):
    """The objective, the batch and the optimiser."""

    objective: Objective
    """clm trains on every target; slm only on the top `slm.keep_ratio` of them by `slm.criterion`; sft only on what the
    assistant writes in the conversations of a dataset with a target mask."""
    total_tokens: Positive | None = None
    """Targets to read in all. Exactly one of `total_tokens` and `epochs` is set."""
    epochs: Epochs | None = None
    """Passes over the training rows. At the start they become `total_tokens`, which config.yaml of the run holds."""
    global_batch_tokens: Positive
    """Targets per optimiser step over all ranks; a multiple of `data.seq_len`."""
    micro_batch_rows: Positive
    """Most rows per rank and forward pass. The number of accumulation steps follows from the world size."""
    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """How the learning rate falls after the warm-up. wsd stays constant, then falls linearly over `decay_tokens`."""
    warmup_tokens: NonNegative = 0
    """Targets over which the learning rate rises linearly from 0."""
    decay_tokens: NonNegative = 0
    """Targets of the final decay under `schedule: wsd`."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Learning rate at the end, as a fraction of `lr`."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """AdamW's decay of matrices and embeddings; norms and biases are not decayed."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay of the first moment, per step."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's decay of the second moment, per step."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are scaled down to this global norm; 0 switches clipping off."""
    deterministic: bool = False
    """Sums gradients on a GPU in a fixed order, which costs time. A repeated or resumed run then has equal weights, bit
    for bit. On a CPU the order is always fixed."""

    @property
    def length_tokens(self) -> int:
        """`total_tokens`. Raises ConfigError where only `epochs` is set and the dataset has not been opened yet."""
        if self.total_tokens is None:
            raise ConfigError(
                f"train.epochs = {self.epochs}: the length in tokens depends on the dataset; set train.total_tokens "
                "where no dataset is at hand"
            )
        return self.total_tokens

    def schedule_problem(self) -> str | None:
        """Why the schedule does not fit into `total_tokens`; None where it does, or only `epochs` is known."""
        total = self.total_tokens
        if total is None:
            return None
        if self.warmup_tokens >= total:
            return f"warmup_tokens = {self.warmup_tokens} must be below total_tokens = {total}"
        if self.schedule == "wsd" and not 0 < self.decay_tokens <= total - self.warmup_tokens:
            return f"schedule wsd needs 0 < decay_tokens <= total_tokens - warmup_tokens; found {self.decay_tokens}"
        return None

    @model_validator(mode="after")
    def _one_length(self) -> "TrainSection":
        lengths = {"total_tokens": self.total_tokens, "epochs": self.epochs}
        found = [f"{name} = {value}" for name, value in lengths.items() if value is not None]
        if len(found) != 1:
            raise ValueError(
                f"exactly one of total_tokens and epochs must be set, the other one null; found "
                f"{' and '.join(found) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _schedule_fits(self) -> "TrainSection":
        if (problem := self.schedule_problem()) is not None:
            raise ValueError(problem)
        return self


class RunConfig(Section):
    """One training run."""

    # Deprecated names, read with a warning for one more release.
    OLD_NAMES: ClassVar[OldNames] = {
        ("slm", "score"): NewName("criterion"),
        ("guard", "rehearse"): NewName("dry_run"),
        ("model", "gradient_checkpointing"): NewName("recompute", {False: "none", True: "full"}),
    }

    run_dir: str
    """The run folder, with checkpoints, TensorBoard events, metrics.jsonl and the resolved configuration."""
    seed: NonNegative = 0
    """Seed of random weights and of dropout."""
    model: ModelSection
    data: DataSection
    train: TrainSection
    slm: SlmSection = SlmSection()
    validation: ValidationSection = ValidationSection()
    probe: ProbeSection = ProbeSection()
    zero: ZeroSection = ZeroSection()
    checkpoint: CheckpointSection = CheckpointSection()
    guard: GuardSection = GuardSection()
    log: LogSection = LogSection()
    deepspeed_extra: dict[str, object] = Field(default_factory=dict)
    """DeepSpeed settings that MegaSLM does not derive; merged last. A key that MegaSLM derives is an error."""

    @property
    def filters_backward(self) -> bool:
        """Whether upper layers may leave tokens out of their backward pass."""
        return self.train.objective == "slm" and self.slm.backward == "filtered"

    @model_validator(mode="after")
    def _batch_is_whole_rows(self) -> "RunConfig":
        batch, seq_len = self.train.global_batch_tokens, self.data.seq_len
        if batch % seq_len:
            raise ValueError(
                f"train.global_batch_tokens = {batch} is not a multiple of data.seq_len = {seq_len}; "
                f"the nearest are {max(1, batch // seq_len) * seq_len} and {(batch // seq_len + 1) * seq_len}"
            )
        return self

    @model_validator(mode="after")
    def _roll_backs_have_checkpoints(self) -> "RunConfig":
        if self.guard.on_spike == "rollback" and self.checkpoint.every_tokens is None:
            raise ValueError("guard.on_spike = rollback: needs checkpoints to resume from; set checkpoint.every_tokens")
        return self

    @model_validator(mode="after")
    def _left_out_tokens_are_recomputed(self) -> "RunConfig":
        if self.filters_backward and self.model.recompute != "full":
            raise ValueError(
                f"slm.backward = filtered: runs layers anew in the backward pass; found model.recompute = "
                f"{self.model.recompute}: set it to full, or slm.backward to exact"
            )
        return self

    @model_validator(mode="after")
    def _references_are_named_beside_their_data(self) -> "RunConfig":
        if self.data.streams and self.slm.reference is not None:
            raise ValueError(
                f"slm.reference = {self.slm.reference}: belongs to data.train; with data.streams set "
                "data.streams.NAME.reference of each stream that it scored"
            )
        return self
