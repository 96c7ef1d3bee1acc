"""The `export` verb: a checkpoint becomes a Hugging Face folder."""

from pathlib import Path

from megaslm.engine.zero import consolidated_weights
from megaslm.errors import CheckpointError, ConfigError
from megaslm.model.export import save_hugging_face
from megaslm.training.checkpoint import COMPLETE, complete_checkpoints
from megaslm.training.run_folder import RunFolder


def export(source: Path, output: Path) -> Path:
    """Writes the weights of a checkpoint, in the precision that its run computed in, with configuration and tokenizer.

    Args:
        source: a run folder, for its newest complete checkpoint, or one of its checkpoints.
        output: the folder to write; it must not exist.

    Returns:
        The checkpoint that was exported.

    Raises:
        CheckpointError: `source` is neither, or incomplete.
        ConfigError: `output` exists.
    """
    if output.exists():
        raise ConfigError(f"{output}: exists already; choose another folder or remove it")
    run, checkpoint = _run_and_checkpoint(source)
    extra = [run.cost] if run.cost.is_file() else []
    save_hugging_face(consolidated_weights(checkpoint), run.model_description, output, beside=extra)
    return checkpoint


def newest_weights(run: RunFolder) -> Path:
    """The newest complete checkpoint of a run as a Hugging Face folder inside the run, made when first asked for.

    Raises:
        CheckpointError: the run has none.
    """
    checkpoint = _newest(run)
    folder = run.exports / checkpoint.name
    if not folder.is_dir():
        export(checkpoint, folder)
    return folder


def _run_and_checkpoint(source: Path) -> tuple[RunFolder, Path]:
    if source.parent.name == "checkpoints":
        if not (source / COMPLETE).is_file():
            raise CheckpointError(f"{source}: no such checkpoint, or an unfinished one; it has no file {COMPLETE}")
        return RunFolder(source.parent.parent), source
    run = RunFolder(source)
    return run, _newest(run)


def _newest(run: RunFolder) -> Path:
    run.config()
    complete = complete_checkpoints(run.checkpoints)
    if not complete:
        raise CheckpointError(f"{run.path}: has no complete checkpoint; train it to its first one")
    return complete[-1]
