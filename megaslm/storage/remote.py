"""Files on object storage and other remote files, by URL: listing, description, and reading as Python file objects."""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from megaslm.errors import DataError
from megaslm.storage.file_systems import (
    WEB,
    FileSystem,
    Info,
    connect,
    glob_pattern,
    is_remote,
    protocol_of,
    time_limit,
)
from megaslm.storage.retries import NotThere, RemoteSettings, with_retries

__all__ = [
    "DEFAULTS",
    "NotThere",
    "RemoteObject",
    "RemoteSettings",
    "describe_remote",
    "info_of",
    "is_remote",
    "list_remote",
    "open_remote",
    "read_bytes",
    "require_unchanged",
    "split_glob",
]

DEFAULTS = RemoteSettings()

_VERSION_FIELDS = ("ETag", "etag", "md5Hash", "blob_id", "Content-MD5", "Digest")
_TIME_FIELDS = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "created")
_NO_RANGES = (
    "the server does not serve ranges of bytes; copy the file to this machine's disk or to object storage, and read it "
    "there"
)
_AFTER_A_JUMP_BYTES = 64 * 2**10

ReadRange = Callable[[int, int], bytes]
"""Takes the first byte and the byte after the last; returns exactly those bytes."""


@dataclass(frozen=True)
class RemoteObject:
    """A remote file at the time it was looked at."""

    url: str
    size: int
    """In bytes."""
    version: str
    """Changes with the content: an entity tag or checksum, else a time; empty where the store has neither."""
    tag: str = field(default="", compare=False)
    """The version, where it is derived from the content; empty for a time."""


def list_remote(url: str, settings: RemoteSettings = DEFAULTS) -> list[RemoteObject]:
    """The files of a URL, sorted by URL: one file, all files of a folder, or those of a glob (** for any depth).

    A glob without matches gives none. Raises DataError where there is no such file, folder or bucket, or no access.
    """
    files = connect(url, settings, inner_attempts=settings.attempts)
    root, glob = split_glob(url)
    pattern = glob_pattern(url) if glob else None
    if pattern is None and protocol_of(url) in WEB:
        return [describe_remote(url, settings)]

    def look() -> list[RemoteObject]:
        inside = files.find(files._strip_protocol(root), detail=True)
        if pattern is None and not inside:
            raise FileNotFoundError(root)
        return [_object(_url_of(name, url), info) for name, info in inside.items() if _is_file(name, info)]

    found = with_retries(url, look, settings)
    return sorted((each for each in found if pattern is None or pattern.match(each.url)), key=lambda each: each.url)


def describe_remote(url: str, settings: RemoteSettings = DEFAULTS) -> RemoteObject:
    """The current state of one file. Raises DataError where it does not exist, is a folder, or has an unknown size."""
    found = with_retries(url, lambda: info_of(url, settings), settings)
    if found.get("type") == "directory":
        raise DataError(f"{url} is a folder; expected a file")
    return _object(url, found)


def require_unchanged(expected: RemoteObject, settings: RemoteSettings = DEFAULTS) -> None:
    """Raise DataError where a file has changed, which block-wise reading does not notice."""
    found = describe_remote(expected.url, settings)
    if found != expected:
        raise DataError(
            f"{expected.url} was written while it was read (it had {expected.size} bytes, version {expected.version}; "
            f"now {found.size} bytes, version {found.version}); do not change files meanwhile, and run it again"
        )


def open_remote(url: str, size: int, settings: RemoteSettings = DEFAULTS) -> io.BufferedReader:
    """A file of `size` bytes for reading and seeking; one block and a small buffer are in memory.

    The length of every answer is checked. Reading raises DataError with the URL and the range of bytes where the store
    returns other bytes, or none.
    """

    def read_range(start: int, stop: int) -> bytes:
        return _read_range(url, start, stop, size, settings)

    return io.BufferedReader(RemoteFile(url, size, read_range, settings.block_bytes), 64 * 2**10)


def read_bytes(url: str, settings: RemoteSettings = DEFAULTS) -> bytes:
    """All of a small file, in one request. Raises DataError where it cannot be read."""
    files = connect(url, settings)
    path = files._strip_protocol(url)
    return with_retries(url, lambda: files.cat_file(path, **time_limit(files, settings, 0)), settings)


def _read_range(url: str, start: int, stop: int, size: int, settings: RemoteSettings) -> bytes:
    files = connect(url, settings)
    path = files._strip_protocol(url)
    what = f"{url}, bytes {start} to {stop - 1} of {size}"
    limit = time_limit(files, settings, stop - start)

    def ask() -> bytes:
        if protocol_of(url) in WEB:
            content = _range_from_web(files, path, start, stop, size, limit)
        else:
            content = files.cat_file(path, start=start, end=stop, **limit)
        if len(content) < stop - start:
            raise _Shorter(f"{len(content)} of {stop - start} bytes came")
        if len(content) > stop - start:
            raise DataError(f"{what}: {len(content)} bytes came: {_NO_RANGES}")
        return content

    return with_retries(what, ask, settings)


def _range_from_web(
    files: FileSystem, path: str, start: int, stop: int, size: int, limit: Mapping[str, float]
) -> bytes:
    """Like `cat_file`, which would load the whole file into memory where the server ignores ranges."""
    with files.open(path, block_size=stop - start, size=size) as file:
        try:
            return file._fetch_range(start, stop, **limit)
        except ValueError as error:
            raise DataError(f"{path}: {_NO_RANGES}") from error


class _Shorter(OSError):
    """Fewer bytes arrived than were requested."""


def info_of(url: str, settings: RemoteSettings) -> Info:
    """The driver's description of a file, in one request."""
    files = connect(url, settings)
    return files.info(files._strip_protocol(url), **time_limit(files, settings, 0))


def _object(url: str, info: Info) -> RemoteObject:
    size = info.get("size")
    if not isinstance(size, int):
        raise DataError(f"{url}: the server does not say how large it is; copy it to this machine's disk first")
    tag, time = (
        str(next((info[name] for name in names if info.get(name)), "")).strip('"')
        for names in (_VERSION_FIELDS, _TIME_FIELDS)
    )
    return RemoteObject(url, size, tag or time, tag)


def _is_file(name: str, info: Info) -> bool:
    """Object stores show folders as empty objects whose names end in a slash."""
    return info.get("type") != "directory" and not name.endswith("/")


def split_glob(url: str) -> tuple[str, tuple[str, ...]]:
    """The folder or file at the beginning of a URL, and the names of the glob that follows; none without a glob.

    Raises DataError for a glob on a web server, which does not list files, and for a glob of buckets.
    """
    # On the web, a question mark begins a query.
    magic = re.search(r"[*[]" if protocol_of(url) in WEB else r"[*?[]", url)
    if magic is None:
        return url.rstrip("/"), ()
    if protocol_of(url) in WEB:
        raise DataError(f"{url}: web servers do not list their files; name each of them")
    root = url[: magic.start()].rpartition("/")[0]
    if root.endswith("/"):
        raise DataError(f"{url}: expected the name of a bucket before the first of * ? [")
    return root, tuple(url.removeprefix(f"{root}/").split("/"))


def _url_of(name: str, like: str) -> str:
    return f"{protocol_of(like)}://{name.lstrip('/')}"


class RemoteFile(io.RawIOBase):
    """Keeps one block. Reading forward fetches whole blocks; reading after a seek fetches only the requested bytes.

    So a reader of lines makes one request per block, and a reader of some columns of a parquet file fetches those only.
    """

    def __init__(self, name: str, size_bytes: int, read_range: ReadRange, block_bytes: int) -> None:
        """`read_range` may raise; its exceptions pass through."""
        self.name = name
        self._size_bytes = size_bytes
        self._read_range = read_range
        self._block_bytes = block_bytes
        self._block = b""
        self._block_start = 0
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """The position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position; reads nothing."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        if base + offset < 0:
            raise ValueError(f"{self.name}: cannot seek to byte {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        """Fill `buffer`; less only at the file's end. Raises the exceptions of `read_range`."""
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size_bytes - self._position))
        filled = 0
        while filled < wanted:
            there = self._from_here(wanted - filled)
            taken = there[: wanted - filled]
            view[filled : filled + len(taken)] = taken
            filled += len(taken)
            self._position += len(taken)
        return filled

    def close(self) -> None:
        """Release the block."""
        self._block = b""
        super().close()

    def _from_here(self, wanted: int) -> memoryview:
        """At least one byte from the position on, and `wanted` bytes if a block holds as many."""
        block_stop = self._block_start + len(self._block)
        if not self._block_start <= self._position < block_stop:
            reads_on = self._position == block_stop
            size = self._block_bytes if reads_on else min(self._block_bytes, max(wanted, _AFTER_A_JUMP_BYTES))
            stop = min(self._position + size, self._size_bytes)
            # The former block is dropped first: two blocks would need twice the memory.
            self._block = b""
            self._block = self._read_range(self._position, stop)
            self._block_start = self._position
        return memoryview(self._block)[self._position - self._block_start :]
