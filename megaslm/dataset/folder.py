"""Checks of a dataset without reading its rows: its files, and those of its tokenizer."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from megaslm.dataset.index import Shard, check_files, check_merged, foreign_parts, joined, read_part_indices
from megaslm.dataset.manifest import MANIFEST, Manifest, read_manifest
from megaslm.dataset.shards import RowFormat
from megaslm.errors import CorruptData
from megaslm.tokenizer.folder_tokens import TOKENIZER_FILE
from megaslm.tokenizer.tokenizer import tokenizer_facts

_RUNS_CODE = "pkl"


def check_layout(dataset: Path, *, shards_are_here: bool = True) -> None:
    """Raise DataError unless every shard exists with its size, and the indices are the ones that were written.

    If `shards_are_here` is false (the description of a remote dataset), only the indices are checked.

    Reads only indices and file sizes. The checksums in the indices cover the shards, and the manifest's hashes cover
    the indices: `megaslm verify` reads all of it.
    """
    manifest = read_manifest(dataset)
    columns = RowFormat.of(manifest).columns
    for split, domains in manifest.splits.items():
        for domain, share in domains.items():
            folder = dataset / split / domain
            for corruption in foreign_parts(folder, share.parts):
                raise corruption
            merged = joined(read_part_indices(folder, share.parts))
            for shard in merged.shards:
                check_columns(folder / shard.stored.basename, shard, columns)
            if merged.rows != share.rows:
                found = f"counts {share.rows} rows in {split}/{domain}, its parts {merged.rows}"
                raise CorruptData(dataset / MANIFEST, found)
            check_merged(folder, merged)
            if shards_are_here:
                check_files(folder, merged)


def check_columns(path: Path, shard: Shard, expected: dict[str, str]) -> None:
    """Raise CorruptData unless `shard`, stored at `path`, has the columns `expected`: name to MDS encoding."""
    unsafe = [name for name, encoding in shard.columns.items() if encoding == _RUNS_CODE]
    if unsafe:
        raise CorruptData(
            path,
            f"has the column {', '.join(unsafe)} as {_RUNS_CODE} (Python pickle), which can run any code when it is "
            f"read; expected {_listed(expected)}",
        )
    if shard.columns != expected:
        raise CorruptData(path, f"has the columns {_listed(shard.columns)}; its manifest says {_listed(expected)}")


def _listed(columns: dict[str, str]) -> str:
    return ", ".join(f"{name} ({encoding})" for name, encoding in sorted(columns.items()))


def tokenizer_files(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in a tokenizer's folder, by its path in there, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def check_tokenizer(folder: Path, manifest: Manifest) -> Iterator[CorruptData]:
    """Every difference between the tokenizer in `folder` and the manifest's: files, then fingerprints and ids."""
    found = tokenizer_files(folder)
    changed = [name for name, sha256 in manifest.tokenizer_files.items() if found.get(name) != sha256]
    for name in changed:
        stated = manifest.tokenizer_files[name][:12]
        state = f"has the SHA-256 {found[name][:12]}" if name in found else "is missing"
        yield CorruptData(folder / name, f"{state}; the manifest lists it with {stated}")
    if not changed:
        facts = tokenizer_facts(folder)
        meant = {
            "meaning (SHA-256)": (facts.sha256[:12], manifest.tokenizer_sha256[:12]),
            "ids (SHA-256)": (facts.ids_sha256[:12], (manifest.ids_sha256 or facts.ids_sha256)[:12]),
            "vocabulary": (facts.vocab_size, manifest.vocab_size),
            "EOS id": (facts.eos_id, manifest.eos_id),
            "BOS id": (facts.bos_id, manifest.bos_id),
        }
        for what, (has, expected) in meant.items():
            if has != expected:
                yield CorruptData(folder / TOKENIZER_FILE, f"has the {what} {has}, the manifest says {expected}")
