"""A dataset as jobs read it: a local folder, or a remote dataset of which a local cache holds all but the shards."""

import hashlib
import math
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import xxhash

from megaslm.config.section import Split, home_expanded, refuse_credentials
from megaslm.dataset.folder import check_tokenizer
from megaslm.dataset.index import CHECKSUM, INDEX, Shard, check_merged, joined, read_part_indices
from megaslm.dataset.manifest import COST, MANIFEST, TOKENIZER, Manifest, read_manifest
from megaslm.dataset.rows import RowReader
from megaslm.errors import PREPARE_AGAIN, CorruptData, DataError
from megaslm.files import UNFINISHED, abandon_folder, finish_folder, locked, start_folder
from megaslm.storage.remote import DEFAULTS, NotThere, RemoteSettings, open_remote, read_bytes

_REQUESTS_AT_ONCE = 16


@dataclass(frozen=True)
class DatasetFolder:
    """The location of a dataset."""

    path: Path
    """The local folder with manifest, tokenizer and indices."""
    url: str | None = None
    """The dataset's URL if its shards are fetched; None if they are in the folder."""

    @property
    def place(self) -> str:
        """Its name in messages."""
        return self.url or str(self.path)

    def reader(self, split: Split, domain: str, part: str | None = None, *, checked: bool = False) -> RowReader:
        """The rows of a domain, or of one part of it. Missing shards are fetched on access.

        If `checked`, a shard is compared with its checksum when it is opened.
        """
        fetch = None if self.url is None else self._fetch
        return RowReader(self.path, split, domain, part, fetch=fetch, checked=checked)

    def _fetch(self, path: Path, shard: Shard) -> None:
        fetch_shard(f"{self.url}/{path.relative_to(self.path).as_posix()}", path, shard)


def open_dataset(place: str, cache: str) -> DatasetFolder:
    """The dataset at a local folder or a URL. The description of a URL's dataset goes into a folder of `cache`.

    Raises DataError where a remote dataset is missing, corrupt, or not the one in the cache; ConfigError where the URL
    holds credentials.
    """
    from megaslm.storage.remote import is_remote

    refuse_credentials(place)
    if not is_remote(place):
        return DatasetFolder(Path(place))
    return DatasetFolder(fetch_description(place, home_expanded(cache)), place.rstrip("/"))


def fetch_description(url: str, cache: Path, settings: RemoteSettings = DEFAULTS) -> Path:
    """The folder in `cache` that holds a remote dataset's manifest, tokenizer and indices. Fetched if missing.

    It has the layout of a dataset without shards: FOLDER/<split>/<domain> is the `local` and URL/<split>/<domain> the
    `remote` of a stream. If it exists already, one request verifies that the dataset is still the same. Processes of
    one host may call this at the same time.

    Raises:
        DataError: there is no dataset at `url`, it is corrupt, or it is not the one that the folder was fetched from.
    """
    url = url.rstrip("/")
    folder = cache / f"{PurePosixPath(url).name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / f".{folder.name}.lock", patience_seconds=math.inf, busy=""):
        manifest = _manifest_bytes(url, settings)
        if folder.exists():
            _require_same(folder, url, manifest)
        else:
            _fetch(folder, url, manifest, settings)
    return folder


def fetch_shard(url: str, path: Path, shard: Shard, settings: RemoteSettings = DEFAULTS) -> None:
    """Fetch a shard to `path`. It appears there only when complete and equal to its checksum in the index.

    Raises DataError where it cannot be fetched, or differs from the index.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A shard that was corrupted in transit is right the second time.
    if not (_fetched(url, path, shard, settings) or _fetched(url, path, shard, settings)):
        raise DataError(
            f"{url} has another {CHECKSUM} than its index says, fetched twice; the stored shard is corrupt: write the "
            "dataset again"
        )


def _fetched(url: str, path: Path, shard: Shard, settings: RemoteSettings) -> bool:
    """Whether the fetched shard has the checksum. If so, it is now at `path`."""
    digest = xxhash.xxh3_64()
    # Processes of one host may fetch the same shard: each writes its own copy, and the last rename wins.
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=UNFINISHED, delete=False) as copy:
        unfinished = Path(copy.name)
        try:
            with open_remote(url, shard.stored.bytes, settings) as remote:
                while block := remote.read(settings.block_bytes):
                    digest.update(block)
                    copy.write(block)
            if digest.hexdigest() != shard.stored.hashes[CHECKSUM]:
                return False
            copy.flush()  # Other processes map the file as soon as it has its name.
            unfinished.replace(path)
            return True
        finally:
            unfinished.unlink(missing_ok=True)


def read_remote_manifest(url: str, settings: RemoteSettings = DEFAULTS) -> Manifest:
    """The manifest of a remote dataset. Raises NotThere where there is none, DataError where it cannot be read."""
    with tempfile.TemporaryDirectory() as folder:
        return _take_manifest(Path(folder), url, _manifest_bytes(url, settings))


def _manifest_bytes(url: str, settings: RemoteSettings) -> bytes:
    try:
        return read_bytes(f"{url}/{MANIFEST}", settings)
    except NotThere as error:
        raise NotThere(f"{url} is not a dataset, or an unfinished one: {error}") from error


def _require_same(folder: Path, url: str, manifest: bytes) -> None:
    path = folder / MANIFEST
    if not path.is_file() or path.read_bytes() != manifest:
        raise DataError(
            f"{url} is not the dataset any more that {folder} was fetched from; if the new one is meant, remove that "
            "folder, shards and all, or choose another cache"
        )
    try:
        _check(folder, read_manifest(folder))
    except CorruptData as corruption:
        raise DataError(f"{corruption.path} {corruption.finding}; remove {folder}: it is fetched again") from corruption


def _fetch(folder: Path, url: str, manifest_bytes: bytes, settings: RemoteSettings) -> None:
    building = start_folder(folder)
    try:
        manifest = _take_manifest(building, url, manifest_bytes)
        _fetch_files(building, url, list(_described_files(manifest)), settings)
        if manifest.kind != "tokens":
            _fetch_cost(building, url, settings)
        with _found_in(building, url):
            _check(building, manifest)
        finish_folder(folder)
    except OSError as error:
        abandon_folder(folder)
        raise DataError(
            f"{folder}: files fetched from {url} cannot be written: {error}; make room on that disk, or name another "
            "cache"
        ) from error
    except BaseException:
        abandon_folder(folder)
        raise


def _take_manifest(folder: Path, url: str, content: bytes) -> Manifest:
    (folder / MANIFEST).write_bytes(content)
    with _found_in(folder, url):
        return read_manifest(folder)


def _described_files(manifest: Manifest) -> Iterator[str]:
    """The paths of all files except the shards, relative to the dataset."""
    for name in manifest.tokenizer_files:
        yield f"{TOKENIZER}/{name}"
    for split, domains in manifest.splits.items():
        for domain, share in domains.items():
            yield f"{split}/{domain}/{INDEX}"
            for part in share.parts:
                yield f"{split}/{domain}/{part.name}/{INDEX}"


def _fetch_files(folder: Path, url: str, names: list[str], settings: RemoteSettings) -> None:
    def fetch(name: str) -> None:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{url}/{MANIFEST} names the file {name}, which is not inside the dataset")
        content = read_bytes(f"{url}/{name}", settings)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)

    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        futures = [pool.submit(fetch, name) for name in names]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _fetch_cost(folder: Path, url: str, settings: RemoteSettings) -> None:
    """Fetches the cost of the scoring. A dataset may lack it."""
    with suppress(NotThere):
        (folder / COST).write_bytes(read_bytes(f"{url}/{COST}", settings))


def _check(folder: Path, manifest: Manifest) -> None:
    """Raise CorruptData unless the files in `folder` are those of `manifest`, and agree with one another."""
    for corruption in check_tokenizer(folder / TOKENIZER, manifest):
        raise corruption
    for split, domains in manifest.splits.items():
        for domain, share in domains.items():
            place = folder / split / domain
            check_merged(place, joined(read_part_indices(place, share.parts)))


@contextmanager
def _found_in(folder: Path, url: str) -> Iterator[None]:
    """Names a corrupt file by its URL, not by its local path."""
    try:
        yield
    except CorruptData as corruption:
        place = f"{url}/{corruption.path.relative_to(folder).as_posix()}"
        raise DataError(f"{place} {corruption.finding}; {PREPARE_AGAIN}") from corruption
