"""Measures probe rows with the checkpoints of a run, in the files that a run with `probe` writes itself."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from megaslm.config.run_files import LAYOUT
from megaslm.config.schema import RunConfig
from megaslm.errors import CheckpointError, ConfigError
from megaslm.model.decoder_layers import prepare_layers
from megaslm.model.export import model_of
from megaslm.model.selective_lm import SelectiveLM
from megaslm.observe.probe_files import ProbeRows, measured_steps, read_rows, write_measurement
from megaslm.slm.measure import Measure, Measured
from megaslm.training.checkpoints.file_list import WEIGHTS
from megaslm.training.checkpoints.state_files import StoredWeights
from megaslm.training.checkpoints.store import check_whole, complete_checkpoints
from megaslm.training.probe import measurement_of
from megaslm.training.probe_rows import keep_or_choose_rows
from megaslm.training.run_folder import RunFolder
from megaslm.training.selection_rule import sorts_by_entropy
from megaslm.training.training_data import open_training_data


def measure_checkpoints(
    run: RunFolder, folder: Path, say: Callable[[str], None], *, dataset: str | None = None, rows: int | None = None
) -> None:
    """Measures the probe rows in `folder` with each complete checkpoint of a run that has no measurement there yet.

    The rows are chosen first if the folder has none. Memory holds the model once, in the precision that the run
    computed in. A corrupt checkpoint is told through `say` and left out.

    Args:
        run: the run.
        folder: the folder of the measurements.
        say: prints a line.
        dataset: as the setting `probe.dataset`; None for that of the run.
        rows: as the setting `probe.rows`; None for that of the run.

    Raises:
        CheckpointError: it is not a run, or has no complete checkpoint.
        ConfigError: the folder holds rows that were chosen in another way, or cannot be written.
        DataError: the dataset is missing, or does not fit the run.
    """
    config = run.config()
    asked = {"dataset": dataset, "rows": rows}
    changes = {name: value for name, value in asked.items() if value is not None}
    config = config.model_copy(update={"probe": config.probe.model_copy(update=changes)})
    complete = complete_checkpoints(run.checkpoints)
    if not complete:
        raise CheckpointError(f"{run.path}: has no complete checkpoint; train it until its first save")
    # Rows that were chosen before need no dataset, which may have moved.
    chosen = None if changes else read_rows(folder)
    if chosen is None:
        chosen = keep_or_choose_rows(folder, config, open_training_data(config))
    done = measured_steps(folder)
    missing = [checkpoint for checkpoint in complete if checkpoint.step not in done]
    for number, checkpoint in enumerate(missing, start=1):
        try:
            measured = _measured(run, checkpoint.folder, config, chosen)
        except CheckpointError as error:
            say(f"warning: {error}; this checkpoint is left out")
            continue
        tokens = checkpoint.step * config.train.global_batch_tokens
        measurement = measurement_of(config, chosen, *measured, step=checkpoint.step, tokens=tokens)
        try:
            write_measurement(folder, measurement)
        except OSError as error:
            raise ConfigError(
                f"{folder}: the measurement of step {checkpoint.step} cannot be written ({error}); make room there and "
                "start again: what is measured is kept"
            ) from error
        say(f"step {checkpoint.step} · {len(chosen.tokens)} rows measured · checkpoint {number} of {len(missing)}")


def _measured(run: RunFolder, checkpoint: Path, config: RunConfig, rows: ProbeRows) -> list[NDArray[np.float32]]:
    """The losses of the rows, and the entropies if they rank the run's targets."""
    check_whole(checkpoint, lambda name: name == LAYOUT or name.startswith(WEIGHTS))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lm = model_of(StoredWeights(checkpoint), run.model_description, checkpoint).to(device)
    prepare_layers(lm, recompute="none", compiled=False)
    model = SelectiveLM(lm, eos_id=rows.eos_id, document_isolation=config.model.document_isolation)
    batches = torch.from_numpy(rows.tokens.astype(np.int64)).split(config.validation.batch_rows)
    what = Measure(entropies=sorts_by_entropy(config))
    found = Measured.joined([model.measure(tokens, what=what) for tokens in batches])
    return [column.cpu().numpy() for column in found.columns]
