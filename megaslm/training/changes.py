"""Which settings of a run may change when it is resumed: freely, if the user allows it, or never."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from megaslm.config.load import settings_of
from megaslm.config.schema import RunConfig
from megaslm.config.source import dotted_key
from megaslm.errors import ConfigError

Change = Literal["never", "if allowed", "free"]
"""Whether a setting may change. A setting that no list below has may change if allowed."""

NEVER = (
    "seed",
    "model.from_*",
    "model.precision",
    "model.document_isolation",
    "data.seq_len",
    "data.domains",
    "data.shuffle_seed",
    "data.streams",
    "data.streams.*.weight",
    "data.streams.*.repeat",
    "data.streams.*.domains",
    "train.objective",
    "train.global_batch_tokens",
    "slm.keep_ratio",
    "slm.keep_ratio_warmup_tokens",
    "slm.keep_ratio_schedule",
    "slm.keep_ratio_schedule.*",
    "slm.keep_ratio_of_domains",
    "slm.keep_ratio_of_domains.*",
    "slm.policy",
    "slm.skip_ratio",
    "slm.temperature",
    "slm.threshold",
    "slm.criterion",
    "slm.scope",
    "slm.mode",
    "slm.granularity",
    "slm.span_reach",
    "slm.max_ref_loss",
    "slm.weight.*",
    "slm.distill.*",
)
"""What makes the run this run: the model, the rows and their order, the batch, the selection."""
IF_ALLOWED = (
    "train.total_tokens",
    "train.lr",
    "train.schedule",
    "train.warmup_tokens",
    "train.decay_tokens",
    "train.min_lr_ratio",
    "train.weight_decay",
    "train.beta1",
    "train.beta2",
    "train.eps",
    "train.max_grad_norm",
    "slm.backward",
    "slm.filtered_layers",
    "slm.least_cosine",
    "deepspeed_extra",
)
"""What shapes the optimisation: a run may be lengthened or mended by these, but not without its user's knowledge."""
FREE = (
    "run_dir",
    "model.compile",
    "model.flash_attention",
    "model.recompute",
    "model.hub",
    "model.hub.*",
    # Folders may move: the content of datasets is compared by fingerprints.
    "data.train",
    "data.streams.*.dataset",
    "data.streams.*.reference",
    "data.loader_workers",
    "data.fetch.*",
    "train.deterministic",
    "train.epochs",
    "train.micro_batch_rows",
    "slm.exact_by",
    "slm.measure_unselected",
    "slm.head",
    "slm.head_cache_gib",
    "slm.reference",
    "slm.verify_rows",
    "validation.*",
    "probe.*",
    "zero.*",
    "checkpoint.*",
    "guard.*",
    "log.*",
)
"""How the run is carried out and reported. What is learned is the same except for rounding."""

_EXTRA = "deepspeed_extra"
_UNDO = "undo the change (repeat each --set of its start)"
_REASONS: dict[Change, str] = {"never": "never changes in a run", "free": "changes without it; leave it out"}


def may_change(key: str, config: RunConfig) -> Change:
    """Whether a setting of a run may change."""
    if key == "train.micro_batch_rows" and config.slm.scope == "microbatch" and config.train.objective == "slm":
        # Targets are sorted within the micro-batch.
        return "if allowed"
    if _is_one_of(key, NEVER):
        return "never"
    return "free" if _is_one_of(key, FREE) else "if allowed"


def check_allowed_keys(allowed: Collection[str], config: RunConfig) -> None:
    """Raises ConfigError where a key of --allow-changed is none that a resume may change by it."""
    known = {_named(dotted_key(path)) for path, _ in settings_of(config)}
    for key in allowed:
        if key not in known or may_change(key, config) != "if allowed":
            reason = _REASONS[may_change(key, config)] if key in known else "no such setting"
            raise ConfigError(
                f"--allow-changed {key}: {reason}; the settings that a resume changes only with it are "
                f"{', '.join(IF_ALLOWED)}"
            )


def check_changes(
    before: RunConfig, now: RunConfig, allowed: Collection[str], *, has_learned: bool, data_changes: Sequence[str] = ()
) -> list[str]:
    """Compares the settings of a run that is resumed with those that it had.

    Args:
        before: the run so far.
        now: the run from now on, its length in tokens.
        allowed: the keys of --allow-changed.
        has_learned: whether a checkpoint holds something that was learned. If not, only `NEVER` matters.
        data_changes: how its datasets have become longer, a line each, for the message.

    Returns:
        All changes, a line each.

    Raises:
        ConfigError: a setting has changed that never may, or that was not allowed to.
    """
    old, new = ({dotted_key(path): value for path, value in settings_of(one)} for one in (before, now))
    lines = {
        key: f"{key}: {old.get(key)} → {new.get(key)}"
        for key in dict.fromkeys((*old, *new))
        if old.get(key) != new.get(key)
    }
    refused = [line for key, line in lines.items() if may_change(key, now) == "never"]
    if refused:
        raise ConfigError(
            f"run_dir = {now.run_dir}: the run in it differs in what makes it this run; choose another run_dir, or "
            + "\n  ".join([_UNDO, *refused])
        )
    guarded = [key for key in lines if may_change(key, now) == "if allowed"]
    unnamed = [key for key in guarded if _named(key) not in allowed]
    if unnamed and has_learned:
        # With those that are allowed already, so that the options can be copied as they are.
        options = " ".join(f"--allow-changed {key}" for key in dict.fromkeys(map(_named, guarded)))
        raise ConfigError(
            f"run_dir = {now.run_dir}: the run in it has learned with other settings; {_UNDO}, "
            + "\n  ".join(
                [f"choose another run_dir, or resume with {options}", *data_changes, *(lines[key] for key in unnamed)]
            )
        )
    return list(lines.values())


def _named(key: str) -> str:
    """The key by which --allow-changed names a setting: all of DeepSpeed's together have one."""
    return _EXTRA if key.startswith(f"{_EXTRA}.") else key


def _is_one_of(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)
