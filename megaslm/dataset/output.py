"""The output of a dataset: a local folder or, part by part, object storage, so that no disk must hold all of it.

Object storage is written in the order in which a crash does the least harm: a part's shards before its index, the index
before the local shards are removed, the manifest last. URL/unfinished.json names the one working folder that writes
there, by a token that the folder keeps, with the URL, in .upload.json. So two jobs never write to one URL, and a
folder's notes for one URL are not used for another.
"""

import hashlib
import shutil
import uuid
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel

from megaslm.config.section import Split, refuse_credentials
from megaslm.dataset.index import (
    INDEX,
    ShardIndex,
    check_size,
    joined,
    merge_index,
    read_part_index,
    read_part_indices,
    write_index,
)
from megaslm.dataset.manifest import (
    BESIDE_ROWS,
    MANIFEST,
    TOKENIZER,
    Manifest,
    Part,
    read_manifest,
    write_manifest,
)
from megaslm.dataset.remote import read_remote_manifest
from megaslm.errors import ConfigError, DataError
from megaslm.files import read_back, write_file
from megaslm.storage.remote import DEFAULTS, NotThere, RemoteSettings, list_remote, read_bytes
from megaslm.storage.uploads import has_arrived, remove_remote, upload_file, write_bytes

UPLOAD = ".upload.json"
"""The file of a working folder that names its URL."""
_UNFINISHED = "unfinished.json"
_EXTENDS = "more parts of the dataset that is there"


class Output(Protocol):
    """The place that a dataset is written to. Every step may be repeated after a kill."""

    @property
    def place(self) -> str:
        """The folder or URL."""

    def finished(self) -> Manifest | None:
        """The manifest of the finished dataset there, None if there is none."""

    def beside(self, name: str) -> bytes | None:
        """A file of the finished dataset there that describes its rows, None if it is missing."""

    def begin(self, plan: str) -> None:
        """Lock the place for a plan. Raises DataError where it holds anything else."""

    def extend(self, manifest: Manifest) -> None:
        """Prepare to add parts to the finished dataset there. It stays readable until it is finished again."""

    def keep_part(self, split: Split, domain: str, part: Part) -> None:
        """Take over a part that is finished in the working folder."""

    def finish(self, manifest: Manifest) -> None:
        """Join the parts and write the manifest, which makes it a dataset. Raises DataError where a part is missing."""

    def tidy_up(self) -> None:
        """After `finish`: remove files that are no longer needed from the working folder."""


class LocalOutput:
    """A local folder. It is its own working folder, or has one from which `finish` moves the finished parts."""

    def __init__(self, folder: Path, working: Path | None = None) -> None:
        """Reads and writes nothing yet. Both folders are on one file system."""
        self._folder = folder
        self._working = folder if working is None else working

    @property
    def place(self) -> str:
        """The folder."""
        return str(self._folder)

    def finished(self) -> Manifest | None:
        """The manifest of the dataset in the folder, None if there is none."""
        return read_manifest(self._folder) if (self._folder / MANIFEST).exists() else None

    def beside(self, name: str) -> bytes | None:
        """A file of the folder, None if it is missing."""
        path = self._folder / name
        return path.read_bytes() if path.is_file() else None

    def begin(self, plan: str) -> None:
        """Does nothing: the working folder is locked already."""

    def extend(self, manifest: Manifest) -> None:
        """Does nothing: new parts wait in the working folder."""

    def keep_part(self, split: Split, domain: str, part: Part) -> None:
        """Does nothing: the part is in its final place, or waits in the working folder."""

    def finish(self, manifest: Manifest) -> None:
        """Write the merged indices and the manifest. Raises DataError where a part differs from its record."""
        for split, domains in manifest.splits.items():
            for domain, share in domains.items():
                for part in share.parts:
                    self._take(f"{split}/{domain}/{part.name}")
                folder = self._folder / split / domain
                rows = merge_index(folder, share.parts)
                if rows != share.rows:
                    raise DataError(f"{folder} has {rows} rows, its parts {share.rows}; remove it and make it again")
        for name in (TOKENIZER, *BESIDE_ROWS):
            self._take(name)
        write_manifest(self._folder, manifest)

    def tidy_up(self) -> None:
        """Does nothing: `finish` has moved the files of the working folder."""

    def _take(self, name: str) -> None:
        """Move a file or folder, if it exists, out of the working folder, replacing the one of the same name."""
        source, target = self._working / name, self._folder / name
        if source == target or not source.exists():
            return
        if target.is_dir():
            shutil.rmtree(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)


def output_at(place: str, working: Path | None, *, local_working: str = "") -> tuple[Output, Path]:
    """The output at a folder or URL, and the local folder in which its parts are written.

    `local_working` is the name of that folder inside a local output, empty for the output itself. Raises ConfigError
    for a URL without a working folder, a URL with credentials, or a local folder with a working folder.
    """
    from megaslm.storage.remote import is_remote

    refuse_credentials(place)
    if not is_remote(place):
        if working is not None:
            raise ConfigError(
                f"--work {working}: {place} is a local folder, which is its own working folder; leave --work out"
            )
        folder = Path(place)
        return LocalOutput(folder, folder / local_working), folder / local_working
    if working is None:
        raise ConfigError(f"{place} is remote: name a local folder for parts on their way there with --work")
    return RemoteOutput(place, working), working


class _Upload(BaseModel):
    url: str
    token: str
    """Random."""


class _LockRecord(BaseModel):
    token: str
    """The token of the working folder."""
    plan: str
    """The dataset being made."""


class UrlLock:
    """The lock on a URL that one working folder holds while it fills the URL: a marker file at the URL."""

    def __init__(self, url: str, working: Path, settings: RemoteSettings) -> None:
        """Nothing is asked or written yet."""
        self._url = url
        self._marker = f"{url}/{_UNFINISHED}"
        self._working = working
        self._settings = settings

    def plan(self) -> str | None:
        """The plan for which this folder holds the lock, None if nobody holds it.

        Raises DataError where another folder holds the lock, or this folder fills another URL.
        """
        token = self._upload().token
        try:
            content = read_bytes(self._marker, self._settings)
        except NotThere:
            return None
        found = read_back(_LockRecord, content, self._marker, f"remove {self._url} and start again")
        if found.token != token:
            raise DataError(
                f"{self._url} is being filled from another working folder; let that job finish, or stop it and remove "
                f"{self._url}"
            )
        return found.plan

    def acquire(self, plan: str) -> None:
        """Write the marker. Called where `plan` has found none."""
        record = _LockRecord(token=self._upload().token, plan=plan)
        write_bytes(self._marker, record.model_dump_json().encode("utf-8"), self._settings)

    def release(self) -> None:
        """Remove the marker, if it is this folder's."""
        if self.plan() is not None:
            remove_remote(self._marker, self._settings)

    def is_for_this_url(self) -> bool:
        """Whether the folder's own note names this URL."""
        path = self._working / UPLOAD
        return path.is_file() and self._noted(path).url == self._url

    def _upload(self) -> _Upload:
        """The folder's note, written on first use."""
        path = self._working / UPLOAD
        if not path.is_file():
            self._working.mkdir(parents=True, exist_ok=True)
            write_file(path, _Upload(url=self._url, token=uuid.uuid4().hex).model_dump_json())
        found = self._noted(path)
        if found.url != self._url:
            raise DataError(
                f"--work {self._working} holds the unfinished work for {found.url}; name another folder for {self._url}"
            )
        return found

    def _noted(self, path: Path) -> _Upload:
        return read_back(
            _Upload, path.read_bytes(), str(path), f"remove {self._working} and {self._url}, and start again"
        )


class RemoteOutput:
    """A dataset at a URL, sent from a local working folder of the same layout.

    Every step may be repeated, after a kill too: files that have arrived are not sent again.
    """

    def __init__(self, url: str, working: Path, settings: RemoteSettings = DEFAULTS) -> None:
        """Nothing is asked or written yet."""
        self._url = url.rstrip("/")
        self._working = working
        self._settings = settings
        self._lock = UrlLock(self._url, working, settings)

    @property
    def place(self) -> str:
        """The URL."""
        return self._url

    def finished(self) -> Manifest | None:
        """The manifest of the finished dataset at the URL, None if there is none."""
        try:
            return read_remote_manifest(self._url, self._settings)
        except NotThere:
            return None

    def beside(self, name: str) -> bytes | None:
        """A file at the URL, None if it is missing."""
        try:
            return read_bytes(f"{self._url}/{name}", self._settings)
        except NotThere:
            return None

    def begin(self, plan: str) -> None:
        """Lock the URL for a plan (any text that identifies the dataset), or resume the same plan.

        Raises DataError where the URL holds anything else (a finished dataset, files, an unfinished dataset of another
        plan or working folder), or where the working folder belongs to another URL.
        """
        found = self._lock.plan()
        if found is None:
            self._require_empty()
            self._lock.acquire(plan)
        elif found != plan:
            raise DataError(
                f"{self._url} holds an unfinished dataset of another recipe, another reference or other files; remove "
                "it or choose another output"
            )

    def extend(self, manifest: Manifest) -> None:
        """Fetch the indices of the finished dataset at the URL into the working folder. Its shards stay remote.

        Readers see the new parts once the new manifest is there. Raises CorruptData where an index differs from the
        manifest, DataError where another working folder adds parts.
        """
        if self._lock.plan() is None:
            self._lock.acquire(_EXTENDS)
        for split, domains in manifest.splits.items():
            for domain, share in domains.items():
                for part in share.parts:
                    folder = self._working / split / domain / part.name
                    if not (folder / INDEX).is_file():
                        folder.mkdir(parents=True, exist_ok=True)
                        url = f"{self._url}/{split}/{domain}/{part.name}/{INDEX}"
                        write_file(folder / INDEX, read_bytes(url, self._settings).decode("utf-8"))
                    read_part_index(folder.parent, part)

    def keep_part(self, split: Split, domain: str, part: Part) -> None:
        """Send a finished part of the working folder, verify that it arrived, and remove its local shards.

        Its index.json stays. Raises CorruptData where the local part differs from its record, DataError where the store
        does not accept it.
        """
        folder = self._working / split / domain / part.name
        index = read_part_index(folder.parent, part)
        place = f"{self._url}/{split}/{domain}/{part.name}"
        there = self._sizes(place)
        if not self._has_arrived(place, there, index, part):
            for shard in index.shards:
                local, url = folder / shard.stored.basename, f"{place}/{shard.stored.basename}"
                check_size(local, shard)
                if url not in there or not has_arrived(local, url, self._settings):
                    upload_file(local, url, self._settings)
            upload_file(folder / INDEX, f"{place}/{INDEX}", self._settings)
        for shard in index.shards:
            (folder / shard.stored.basename).unlink(missing_ok=True)

    def finish(self, manifest: Manifest) -> None:
        """Send the remaining files, the manifest last. Raises DataError where a part is missing."""
        there = self._sizes(self._url)
        for split, domains in manifest.splits.items():
            for domain, share in domains.items():
                folder = self._working / split / domain
                merged = joined(read_part_indices(folder, share.parts))
                expected = {shard.stored.basename: shard.stored.bytes for shard in merged.shards}
                for name, size in expected.items():
                    self._require_size(f"{self._url}/{split}/{domain}/{name}", size, there)
                write_index(folder, merged)
                upload_file(folder / INDEX, f"{self._url}/{split}/{domain}/{INDEX}", self._settings)
        beside = [name for name in BESIDE_ROWS if (self._working / name).is_file()]
        for name in (*(f"{TOKENIZER}/{file}" for file in manifest.tokenizer_files), *beside):
            upload_file(self._working / name, f"{self._url}/{name}", self._settings)
        write_manifest(self._working, manifest)
        upload_file(self._working / MANIFEST, f"{self._url}/{MANIFEST}", self._settings)
        self._lock.release()

    def tidy_up(self) -> None:
        """Remove the sent files from the working folder, and the lock, which a kill may have left."""
        if not self._lock.is_for_this_url():
            return
        self._lock.release()
        for name in ("train", "heldout", TOKENIZER):
            shutil.rmtree(self._working / name, ignore_errors=True)
        for name in (MANIFEST, *BESIDE_ROWS, UPLOAD):
            (self._working / name).unlink(missing_ok=True)

    def _has_arrived(self, place: str, there: dict[str, int], index: ShardIndex, part: Part) -> bool:
        """Whether the whole part has arrived: its index, which is sent last, and the shards it lists."""
        shards = {f"{place}/{shard.stored.basename}": shard.stored.bytes for shard in index.shards}
        if f"{place}/{INDEX}" not in there or not shards.items() <= there.items():
            return False
        content = read_bytes(f"{place}/{INDEX}", self._settings)
        return hashlib.sha256(content).hexdigest() == part.index_sha256

    def _require_empty(self) -> None:
        there = self._sizes(self._url)
        if f"{self._url}/{MANIFEST}" in there:
            raise DataError(f"{self._url} holds a finished dataset; remove it or choose another output")
        if there:
            raise DataError(f"{self._url} is not empty and holds no dataset ({min(there)}); choose another output")

    def _require_size(self, url: str, expected: int, there: dict[str, int]) -> None:
        if there.get(url) != expected:
            found = f"has {there[url]} bytes" if url in there else "is missing"
            raise DataError(f"{url} {found}, expected {expected} bytes; remove the dataset and make it again")

    def _sizes(self, place: str) -> dict[str, int]:
        try:
            return {found.url: found.size for found in list_remote(place, self._settings)}
        except NotThere:
            return {}
