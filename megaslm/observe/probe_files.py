"""The files of a run's probe rows: the rows themselves, and the losses of all their tokens at some steps.

FOLDER/rows.safetensors holds the rows, FOLDER/step-XXXXXXXX.safetensors the measurement after a step. A file is written
whole or not at all. Its metadata is one JSON text under the key `probe`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from megaslm.config.run_files import measurement_file
from megaslm.errors import DataError
from megaslm.files import write_file

ROWS = "rows.safetensors"
_STEP_FILE = re.compile(r"step-(\d{8})\.safetensors")
_METADATA = "probe"


@dataclass(frozen=True)
class ProbeRows:
    """R fixed rows of L targets."""

    tokens: NDArray[np.int32]
    """(R, L+1) token ids. Target i of a row is token i+1."""
    valid: NDArray[np.bool_]
    """(R, L), which targets count. All other arrays of targets are undefined where this is false."""
    domain: NDArray[np.int32]
    """(R,), the index in `domains` of each row's domain."""
    row: NDArray[np.int64]
    """(R,), the number of each row in its domain of the split that it was read from."""
    domains: tuple[str, ...]
    """The names of the domains."""
    eos_id: int
    """The token that ends every document."""
    description: str
    """The setting or the dataset that the rows were chosen from, and their number: equal for an equal choice."""
    ref_loss: NDArray[np.float16] | None = None
    """(R, L), the reference's losses in nats; None where a row's dataset is not scored."""
    ref_entropy: NDArray[np.float16] | None = None
    """(R, L), the entropies of the reference's predictions in nats; None where a row's dataset lacks them."""
    selected: NDArray[np.bool_] | None = None
    """(R, L), the targets that the mask of a masked dataset selects; None without one."""

    @property
    def sha256(self) -> str:
        """The fingerprint of tokens and valid targets. Runs with the same one can be compared token by token."""
        digest = hashlib.sha256(self.tokens.astype("<i4").tobytes())
        digest.update(self.valid.astype(np.uint8).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Measurement:
    """The losses of the probe rows after a step."""

    step: int
    tokens_seen: int
    """Targets that the run had read by then."""
    rows_sha256: str
    """`ProbeRows.sha256` of the rows."""
    losses: NDArray[np.float32]
    """(R, L) in nats, 0 where a target is not valid."""
    keep_ratio: str | None = None
    """The share of valid targets, a decimal, that the run trained on at that time; None if all."""
    kept: NDArray[np.bool_] | None = None
    """(R, L), the targets that the run's selection keeps when it sorts the probe rows; None if it keeps all, or where
    the rows lack what it sorts by."""


def write_rows(folder: Path, rows: ProbeRows) -> None:
    """Writes the rows into a folder, which is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "tokens": rows.tokens,
        "valid": rows.valid,
        "domain": rows.domain,
        "row": rows.row,
        "ref_loss": rows.ref_loss,
        "ref_entropy": rows.ref_entropy,
        "selected": rows.selected,
    }
    _write(folder / ROWS, arrays, {"domains": rows.domains, "eos_id": rows.eos_id, "origin": rows.description})


def read_rows(folder: Path) -> ProbeRows | None:
    """The rows of a folder; None where it has none. Raises DataError where the file is corrupt."""
    path = folder / ROWS
    if not path.is_file():
        return None
    arrays, facts = _read(path, f"restore it, or remove {folder} to choose rows again")
    try:
        return ProbeRows(**arrays, domains=tuple(facts["domains"]), eos_id=facts["eos_id"], description=facts["origin"])
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: is not a file of probe rows ({error!r}); remove {folder}") from error


def write_measurement(folder: Path, measurement: Measurement) -> None:
    """Writes a measurement, over an earlier one of the same step."""
    facts = {
        "step": measurement.step,
        "tokens_seen": measurement.tokens_seen,
        "rows_sha256": measurement.rows_sha256,
        "keep_ratio": measurement.keep_ratio,
    }
    arrays = {"losses": measurement.losses, "kept": measurement.kept}
    _write(measurement_file(folder, measurement.step), arrays, facts)


def measured_steps(folder: Path) -> list[int]:
    """The steps that have a measurement, in rising order."""
    names = (_STEP_FILE.fullmatch(path.name) for path in folder.glob("step-*"))
    return sorted(int(name[1]) for name in names if name is not None)


def read_measurement(folder: Path, step: int, rows: ProbeRows) -> Measurement:
    """The measurement after a step. Raises DataError where the file is corrupt, or of other rows."""
    path = measurement_file(folder, step)
    remedy = "remove the file; `megaslm dynamics --checkpoints` measures the step again if it has a checkpoint"
    arrays, facts = _read(path, remedy)
    try:
        found = Measurement(losses=arrays["losses"], kept=arrays.get("kept"), **facts)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: is not a file of probe losses ({error!r}); {remedy}") from error
    if found.rows_sha256 != rows.sha256 or found.losses.shape != rows.valid.shape:
        raise DataError(
            f"{path}: has losses of the rows {found.rows_sha256[:12]} of shape {found.losses.shape}; {folder / ROWS} "
            f"holds the rows {rows.sha256[:12]} of shape {rows.valid.shape}; {remedy}"
        )
    return found


def forget_after(folder: Path, step: int) -> None:
    """Removes the measurements after a step: a run that goes back to it makes them again."""
    for later in measured_steps(folder):
        if later > step:
            measurement_file(folder, later).unlink(missing_ok=True)


def _write(path: Path, arrays: Mapping[str, NDArray[Any] | None], facts: Mapping[str, object]) -> None:
    present = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
    write_file(path, save(present, metadata={_METADATA: json.dumps(facts)}))


def _read(path: Path, remedy: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    try:
        with safe_open(path, framework="np") as file:
            facts = json.loads((file.metadata() or {})[_METADATA])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error!r}); {remedy}") from error
