"""The `export` verb: writes a checkpoint as a Hugging Face folder."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from megaslm.config.load import load
from megaslm.config.plan import total_steps
from megaslm.config.run_files import CHECKPOINTS, CONFIG, LAYOUT, refuse_smoke_test
from megaslm.config.schema import RunConfig
from megaslm.dataset.manifest import RunStep
from megaslm.engine.distributed import join_world, on_first_rank
from megaslm.engine.seat import seat_in
from megaslm.errors import CheckpointError
from megaslm.files import locked, require_absent
from megaslm.model.export import save_hugging_face
from megaslm.training.checkpoints.file_list import WEIGHTS, read_file_list
from megaslm.training.checkpoints.progress import Progress, read_progress
from megaslm.training.checkpoints.state_files import StoredWeights
from megaslm.training.checkpoints.store import check_whole, complete_checkpoints
from megaslm.training.run_folder import RunFolder

_EXPORT_SECONDS = 1800.0


class Exported(NamedTuple):
    """What was exported."""

    checkpoint: Path
    steps: int
    """Optimiser steps that its weights have learned in."""
    total_steps: int
    """Optimiser steps of the whole run."""


def export(source: Path, output: Path) -> Exported:
    """Writes the weights of a checkpoint, in the precision that its run computed in, with configuration and tokenizer.

    The files are compared with their hashes first. The host's memory holds the model once, in that precision.

    Args:
        source: one of a run's checkpoints, or the run folder for its newest complete checkpoint.
        output: the folder to write; it must not exist.

    Raises:
        CheckpointError: `source` is neither of these, or the checkpoint is incomplete or corrupt.
        ConfigError: `output` exists, or cannot be made.
    """
    require_absent(output)
    run, checkpoint = _run_and_checkpoint(source)
    check_whole(checkpoint, lambda name: name == LAYOUT or name.startswith(WEIGHTS))
    # A run may have been lengthened since.
    config, progress = load(RunConfig, checkpoint / CONFIG).value, read_progress(checkpoint)
    beside = _cost_at(run, config, progress)
    save_hugging_face(StoredWeights(checkpoint), run.model_description, output, beside=beside)
    return Exported(checkpoint, progress.step, total_steps(config))


def _cost_at(run: RunFolder, config: RunConfig, progress: Progress) -> dict[str, str]:
    """cost.json, by its name, as it was at `progress`; nothing where the run has none."""
    if not run.cost.is_file():
        return {}
    cost = json.loads(run.cost.read_text(encoding="utf-8"))
    training = cost["training"] = {
        "steps": progress.step,
        "total_steps": total_steps(config),
        **{name: value for name, value in cost["training"].items() if name not in ("steps", "total_steps")},
    }
    # Those of the newest save; an earlier build counted rows of later steps too.
    cost["domains"] = {
        name: _at(counts, progress.rows_read[name] * config.data.seq_len)
        for name, counts in cost.get("domains", {}).items()
        if name in progress.rows_read
    }
    tokens_seen = progress.step * config.train.global_batch_tokens
    if training["tokens_seen"] != tokens_seen:
        training |= {
            "tokens_seen": tokens_seen,
            "tokens_selected": progress.selected_tokens,
            "seconds": progress.seconds,
            "gpu_hours": progress.rank_seconds / 3600 if training["gpu_hours"] else 0.0,
        }
        # It is known of the newest save alone.
        cost.pop("shard_checks", None)
    return {run.cost.name: json.dumps(cost, indent=1) + "\n"}


def _at(counts: dict[str, Any], tokens_seen: int) -> dict[str, Any]:
    """The counts of a domain when `tokens_seen` of its tokens had been read."""
    share = tokens_seen / counts["tokens_seen"] if counts["tokens_seen"] else 0.0
    return {"tokens_seen": tokens_seen, "passes": counts["passes"] * share}


def newest_weights(run: RunFolder) -> Path:
    """The newest complete checkpoint of a run, exported to a Hugging Face folder inside the run on first use.

    Raises CheckpointError where the run has no complete checkpoint.
    """
    return _exported(run, _newest(run))


def weights_of_run(source: Path) -> tuple[Path, RunStep]:
    """A checkpoint of a run, exported to a Hugging Face folder inside the run on first use, and which one it is.

    Called by every rank of a job; jobs on several hosts may call it at the same time. `source`: as of `export`.

    Raises CheckpointError as `export` does.
    """

    def exported() -> tuple[Path, RunStep]:
        run, checkpoint = _run_and_checkpoint(source)
        return _exported(run, checkpoint), RunStep(run=str(run.path), step=read_progress(checkpoint).step)

    if seat_in(os.environ).world_size == 1:
        return exported()
    join_world()
    return on_first_rank(exported)


def _exported(run: RunFolder, checkpoint: Path) -> Path:
    folder = run.exports / checkpoint.name
    run.exports.mkdir(exist_ok=True)
    busy = f"{run.exports}: another job has been exporting a checkpoint for half an hour; stop it, or wait for it"
    with locked(run.exports / "lock", patience_seconds=_EXPORT_SECONDS, busy=busy):
        if not folder.is_dir():
            export(checkpoint, folder)
    return folder


def _run_and_checkpoint(source: Path) -> tuple[RunFolder, Path]:
    if source.parent.name == CHECKPOINTS:
        refuse_smoke_test(source.parent.parent)
        read_file_list(source)
        return RunFolder(source.parent.parent), source
    run = RunFolder(source)
    return run, _newest(run)


def _newest(run: RunFolder) -> Path:
    run.config()
    complete = complete_checkpoints(run.checkpoints)
    if not complete:
        raise CheckpointError(f"{run.path}: has no complete checkpoint; train it until its first save")
    return complete[-1].folder
