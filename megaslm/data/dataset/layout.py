"""What can be seen of a dataset without reading its rows."""

from pathlib import Path

from megaslm.data.dataset.damage import Damaged
from megaslm.data.dataset.manifest import MANIFEST, read_manifest
from megaslm.data.dataset.merged_index import check_merged, foreign_parts, joined, read_part_indices
from megaslm.data.dataset.shard_index import Shard, check_files
from megaslm.data.dataset.shards import RowFormat

_RUNS_CODE = "pkl"


def check_layout(dataset: Path, *, shards_are_here: bool = True) -> None:
    """Raise DataError unless every shard is there with its size, and the indices are those that were written.

    Of a remote dataset's description, in which shards are missing, the indices alone are checked.

    Reads indices and file sizes only. What the shards hold is covered by the checksums in the indices, and these by
    the manifest's hashes: `megaslm verify` reads all of it.
    """
    manifest = read_manifest(dataset)
    columns = RowFormat.of(manifest).columns
    for split, domains in manifest.splits.items():
        for domain, share in domains.items():
            folder = dataset / split / domain
            for damage in foreign_parts(folder, share.parts):
                raise damage
            merged = joined(read_part_indices(folder, share.parts))
            for shard in merged.shards:
                check_columns(folder / shard.stored.basename, shard, columns)
            if merged.rows != share.rows:
                found = f"counts {share.rows} rows in {split}/{domain}, its parts {merged.rows}"
                raise Damaged(dataset / MANIFEST, found)
            check_merged(folder, merged)
            if shards_are_here:
                check_files(folder, merged)


def check_columns(path: Path, shard: Shard, expected: dict[str, str]) -> None:
    """Raise Damaged unless `shard`, stored at `path`, has the columns `expected`: name to MDS encoding."""
    unsafe = [name for name, encoding in shard.columns.items() if encoding == _RUNS_CODE]
    if unsafe:
        raise Damaged(
            path,
            f"has the column {', '.join(unsafe)} as {_RUNS_CODE} (Python pickle), which can run any code when it is "
            f"read; expected {_listed(expected)}",
        )
    if shard.columns != expected:
        raise Damaged(path, f"has the columns {_listed(shard.columns)}; its manifest says {_listed(expected)}")


def _listed(columns: dict[str, str]) -> str:
    return ", ".join(f"{name} ({encoding})" for name, encoding in sorted(columns.items()))
