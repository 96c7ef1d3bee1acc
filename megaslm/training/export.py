"""The `export` verb: writes a checkpoint as a Hugging Face folder."""

from pathlib import Path

from megaslm.config.run_files import CHECKPOINTS, LAYOUT, refuse_smoke_test
from megaslm.errors import CheckpointError
from megaslm.files import require_absent
from megaslm.model.export import save_hugging_face
from megaslm.training.checkpoints.file_list import WEIGHTS, read_file_list
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
    extra = [run.cost] if run.cost.is_file() else []
    save_hugging_face(StoredWeights(checkpoint), run.model_description, output, beside=extra)
    return checkpoint


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
