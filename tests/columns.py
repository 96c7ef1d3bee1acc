"""Column files for `megaslm attach`, as a user writes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megaslm.dataset.manifest import read_manifest

TYPES = {"value": pa.float32()} | dict.fromkeys(("split", "domain"), pa.string())


def write_column(
    path: Path,
    dataset: Path,
    columns: Mapping[str, Sequence[object] | np.ndarray],
    *,
    types: Mapping[str, pa.DataType] | None = None,
    metadata: Mapping[str, str] | None = None,
    lines_a_group: int = 1 << 20,
) -> Path:
    """A file for the dataset. Addresses are int64, a value is float32 unless `types` says otherwise."""
    of = {**dict.fromkeys(columns, pa.int64()), **TYPES, **(types or {})}
    table = pa.table({name: pa.array(values, of[name]) for name, values in columns.items()})
    stated = {"dataset": read_manifest(dataset).tokens_fingerprint()[:12]} if metadata is None else metadata
    pq.write_table(table.replace_schema_metadata(dict(stated)), path, row_group_size=lines_a_group)
    return path
