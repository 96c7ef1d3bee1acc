"""The `export` verb: writes a checkpoint as a Hugging Face folder."""

import json
from pathlib import Path

from megaslm.config.run_files import CHECKPOINTS, LAYOUT, refuse_smoke_test
from megaslm.errors import CheckpointError
from megaslm.files import require_absent
from megaslm.model.export import save_hugging_face
from megaslm.training.checkpoints.file_list import WEIGHTS, read_file_list
from megaslm.training.checkpoints.progress import read_progress
from megaslm.training.checkpoints.state_files import StoredWeights
from megaslm.training.checkpoints.store import check_whole, complete_checkpoints
from megaslm.training.run_folder import RunFolder


def export(source: Path, output: Path) -> Path:
    """Writes the weights of a checkpoint, in the precision that its run computed in, with configuration and tokenizer.

    The files are compared with their hashes first. The host's memory holds the model once, in that precision.

    Args:
        source: one of a run's checkpoints, or the run folder for its newest complete checkpoint.
        output: the folder to write; it must not exist.

    Returns:
        The checkpoint that was exported.

    Raises:
        CheckpointError: `source` is neither of these, or the checkpoint is incomplete or corrupt.
        ConfigError: `output` exists, or cannot be made.
    """
    require_absent(output)
    run, checkpoint = _run_and_checkpoint(source)
    check_whole(checkpoint, lambda name: name == LAYOUT or name.startswith(WEIGHTS))
    save_hugging_face(StoredWeights(checkpoint), run.model_description, output, beside=_cost_at(run, checkpoint))
    return checkpoint


def _cost_at(run: RunFolder, checkpoint: Path) -> dict[str, str]:
    """cost.json, by its name, as it was when the checkpoint was saved; nothing where the run has none."""
    if not run.cost.is_file():
        return {}
    cost = json.loads(run.cost.read_text(encoding="utf-8"))
    training, progress = cost["training"], read_progress(checkpoint)
    tokens_seen = progress.step * run.config().train.global_batch_tokens
    if training["tokens_seen"] != tokens_seen:
        training |= {
            "tokens_seen": tokens_seen,
            "tokens_selected": progress.selected_tokens,
            "seconds": progress.seconds,
            "gpu_hours": progress.rank_seconds / 3600 if training["gpu_hours"] else 0.0,
        }
        # These are known of the newest save alone.
        cost = {name: part for name, part in cost.items() if name not in ("shard_checks", "domains")}
    return {run.cost.name: json.dumps(cost, indent=1) + "\n"}


def newest_weights(run: RunFolder) -> Path:
    """The newest complete checkpoint of a run, exported to a Hugging Face folder inside the run on first use.

    Raises CheckpointError where the run has no complete checkpoint.
    """
    checkpoint = _newest(run)
    folder = run.exports / checkpoint.name
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
