"""From the measurements of a run to the files of its token dynamics."""

import io
import json
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from megaslm.dynamics.examples import examples_of, token_texts
from megaslm.dynamics.lines import CLASSES
from megaslm.dynamics.summary import Dynamics, DynamicsSummary, analyse, summarise
from megaslm.dynamics.trajectories import Trajectories, read_trajectories
from megaslm.errors import ConfigError
from megaslm.files import write_file
from megaslm.tokenizer.tokenizer import load_tokenizer

SUMMARY, TRAJECTORIES = "dynamics.json", "trajectories.parquet"
_EXAMPLES_EACH = 5


def dynamics(run: Path, measurements: Path, tokenizer: Path, output: Path) -> DynamicsSummary:
    """Classifies the probe tokens of a run, and writes dynamics.json and trajectories.parquet.

    Args:
        run: the run folder, for its name.
        measurements: the folder of its probe rows and their losses.
        tokenizer: a folder with the tokenizer of the rows.
        output: the folder to write into; made if missing.

    Raises:
        DataError: there are too few measurements, or a file is corrupt.
        ConfigError: the output cannot be written.
    """
    found = read_trajectories(measurements, run)
    fitted = analyse(found)
    texts = token_texts(load_tokenizer(tokenizer), found.rows)
    examples = examples_of(found, fitted.lines.change, fitted.classes, texts, each=_EXAMPLES_EACH)
    summary = summarise(str(run), found, fitted, examples)
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_trajectories(output / TRAJECTORIES, found, fitted, texts)
        write_file(output / SUMMARY, json.dumps(asdict(summary), indent=1) + "\n")
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written ({error}); choose another folder with --output") from error
    return summary


def write_trajectories(path: Path, found: Trajectories, dynamics: Dynamics, texts: list[list[str]]) -> None:
    """Writes the file whole or not at all. The schema's metadata has `steps` and `tokens_seen`, a JSON list each."""
    positions = zip(found.row.tolist(), found.position.tolist(), strict=True)
    columns: dict[str, pa.Array] = {
        "row": pa.array(found.row.astype("int32")),
        "position": pa.array(found.position.astype("int32")),
        "token_id": pa.array(found.ids.astype("int32")),
        "text": pa.array([texts[row][position] for row, position in positions], pa.string()),
        "domain": pa.DictionaryArray.from_arrays(pa.array(found.domain.astype("int32")), pa.array(found.rows.domains)),
        "class": pa.DictionaryArray.from_arrays(pa.array(dynamics.classes), pa.array(CLASSES)),
        "change": pa.array(dynamics.lines.change.astype("float32")),
        "fluctuation": pa.array(dynamics.lines.fluctuation.astype("float32")),
        "loss": _lists(pa.array(found.losses.ravel()), found.losses.shape[1]),
    }
    if found.ref_loss is not None:
        columns["ref_loss"] = pa.array(found.ref_loss)
    if found.kept is not None:
        columns["kept"] = _lists(pa.array(found.kept.ravel()), found.kept.shape[1])
    if dynamics.sigmoids is not None:
        for name in ("end", "height", "midpoint", "width", "r2", "seen"):
            columns[f"sigmoid_{name}"] = pa.array(getattr(dynamics.sigmoids, name).astype("float32"))
    metadata = {"steps": json.dumps(found.steps.tolist()), "tokens_seen": json.dumps(found.tokens_seen.tolist())}
    content = io.BytesIO()
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), content, compression="zstd")
    write_file(path, content.getvalue())


def _lists(values: pa.Array, length: int) -> pa.Array:
    offsets = pa.array(range(0, len(values) + 1, length), pa.int32())
    return pa.ListArray.from_arrays(offsets, values)
