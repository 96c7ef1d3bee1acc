"""The sections of a run's configuration that say how it is carried out: sharding, checkpoints, guards, reports."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from megaslm.config.section import AboveZero, NonNegative, Positive, Section


class ZeroSection(Section):
    """How DeepSpeed divides the training state over ranks."""

    stage: Literal[0, 1, 2, 3] = 3
    """0 replicates everything; 1 divides optimiser states; 2 gradients too; 3 parameters too."""
    offload_optimizer: bool = False
    """Keep optimiser states in host memory, and run the optimiser step there."""
    overlap_comm: bool = True
    """Reduce gradients while the backward pass still runs (GPUs only)."""
    reduce_bucket_size: Positive = 200_000_000
    """Gradient elements per reduction."""
    prefetch_bucket_size: Positive = 300_000_000
    """Stage 3: parameter elements gathered ahead of their use."""
    param_persistence_threshold: NonNegative = 1_000_000
    """Stage 3: parameters with fewer elements stay whole on every rank."""
    max_live_parameters: Positive = 2_000_000_000
    """Stage 3: most parameter elements gathered at once on a rank."""
    max_reuse_distance: Positive = 2_000_000_000
    """Stage 3: a parameter used again within this many elements is not released in between."""


class CheckpointSection(Section):
    """When checkpoints are written, and how many are kept."""

    every_tokens: Positive | None = None
    """Targets between two checkpoints; null writes only at the end. One that would be written less than a tenth of this
    interval before the end is left out."""
    keep_last: Positive = 2
    """How many of the newest complete checkpoints are kept; older ones are deleted."""
    keep_every_tokens: Positive | None = None
    """Targets between two checkpoints that are never deleted; rounded to a multiple of the interval of `every_tokens`,
    in steps."""
    keep_every_steps: Positive | None = None
    """Checkpoints at multiples of this step number are never deleted. Excludes `keep_every_tokens`."""
    max_failed_saves: Positive = 3
    """The run stops after this many failed saves in a row, for instance on a full disk."""

    @model_validator(mode="after")
    def _one_interval_is_kept(self) -> "CheckpointSection":
        if self.keep_every_tokens is not None and self.keep_every_steps is not None:
            raise ValueError(
                f"only one of keep_every_tokens and keep_every_steps may be set; found keep_every_tokens = "
                f"{self.keep_every_tokens} and keep_every_steps = {self.keep_every_steps}"
            )
        return self


class GuardSection(Section):
    """What a run watches while it trains, and how it reacts."""

    max_skipped_steps: Positive = 3
    """A step with a non-finite loss or gradient is skipped on all ranks. The run stops after this many in a row."""
    on_spike: Literal["off", "warn", "stop", "rollback"] = "warn"
    """Reaction to a loss spike: off, warn, stop or rollback. rollback resumes from the last checkpoint and skips
    the data read since."""
    spike_sigmas: AboveZero = 6.0
    """A loss more than this many standard deviations above the mean of the last `spike_window_steps` is a spike."""
    spike_window_steps: Annotated[int, Field(ge=8)] = 128
    """Steps that the loss is compared with; no step is judged before there are this many."""
    silence_seconds: Annotated[float, Field(ge=2)] = 60.0
    """Seconds without a heartbeat after which a rank's process counts as dead and the run ends."""
    hang_seconds: Annotated[float, Field(ge=2, le=3600)] = 1800.0
    """Seconds without progress on any rank after which the run ends and names the rank that the others wait for."""
    slow_ratio: Annotated[float, Field(gt=1)] = 1.5
    """A warning names a rank as a straggler when it takes this many times the median rank's time for the same work."""
    dry_run: bool = False
    """Whether to run a step, a validation and a save before training starts, so that memory runs out then or not at
    all. It also shows that the disk has room for one checkpoint."""


class LogSection(Section):
    """What the run reports."""

    every_steps: Positive = 10
    """Steps between two lines; each line reads the device once. metrics.jsonl gets every step."""
    tracker: Literal["wandb", "trackio"] | None = None
    """An experiment tracker that gets the scalars of TensorBoard, and alerts of spikes, skipped steps and stops. null
    for none. The package must be installed."""
    project: str = "megaslm"
    """The tracker's project. The run has the name of its folder there."""
