"""The drivers of object storage and other remote files. No other file imports fsspec.

For s3:// the environment names the store: AWS_ENDPOINT_URL (or S3_ENDPOINT_URL, as in streaming) for any store but
Amazon's, and the usual AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_PROFILE.
"""

import functools
import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from megaslm.errors import ConfigError, DataError
from megaslm.storage.retries import RemoteSettings

S3 = ("s3", "s3a")
WEB = ("http", "https")

_LOCAL = ("file", "local")
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://")
_S3 = ("s3", "s3a")
ENDPOINT_VARIABLES = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")

Info = Mapping[str, object]
"""A driver's description of a file."""


class OpenFile(AbstractContextManager["OpenFile"], Protocol):
    """The used part of fsspec's open files."""

    def _fetch_range(self, start: int, stop: int, **limit: float) -> bytes:
        """The bytes from `start` to before `stop`, or fewer."""


class FileSystem(Protocol):
    """The used part of fsspec's file systems."""

    async_impl: bool

    def _strip_protocol(self, url: str) -> str:
        """The driver's path for a URL, which the other methods take."""

    def open(self, path: str, *, block_size: int, size: int) -> OpenFile:
        """Open a file of known size."""

    def cat_file(self, path: str, **options: float) -> bytes:
        """A file's content, from `start` to before `end` where these are given."""

    def pipe_file(self, path: str, content: bytes, **limit: float) -> object:
        """Write a file."""

    def put_file(self, local: str, path: str, **options: float) -> object:
        """Copy a local file."""

    def info(self, path: str, **limit: float) -> Info:
        """Size, type and more. Raises FileNotFoundError where there is neither file nor folder."""

    def rm_file(self, path: str) -> None:
        """Remove a file."""

    def find(self, path: str, *, detail: bool) -> Mapping[str, Info]:
        """Every file below a folder, or the file itself."""


def is_remote(path: str) -> bool:
    """Whether `path` is a URL, such as s3://bucket/folder, and not a local path."""
    match = _URL.match(path)
    return match is not None and match[1] not in _LOCAL


def protocol_of(url: str) -> str:
    """The part before ://. Raises DataError where there is none."""
    match = _URL.match(url)
    if match is None:
        raise DataError(f"{url} is no URL; expected one such as s3://bucket/folder")
    return match[1]


def time_limit(files: FileSystem, settings: RemoteSettings, moved_bytes: int) -> dict[str, float]:
    """The time limit of a call, as the driver's arguments; empty for drivers with limits of their own."""
    blocks = max(1.0, moved_bytes / settings.block_bytes)
    return {"timeout": settings.timeout_seconds * blocks} if files.async_impl else {}


def connect(url: str, settings: RemoteSettings, inner_attempts: int = 1) -> FileSystem:
    """The file system of a URL. `inner_attempts`: the driver's own attempts, where one call makes many requests."""
    endpoint = next((value for name in ENDPOINT_VARIABLES if (value := os.environ.get(name))), None)
    return _file_system(protocol_of(url), endpoint, settings.timeout_seconds, inner_attempts, os.getpid())


@functools.cache
def _file_system(
    protocol: str, endpoint: str | None, timeout_seconds: float, inner_attempts: int, process: int
) -> FileSystem:
    """One file system per process, because connections and event loops do not survive a fork."""
    import fsspec  # type: ignore[import-untyped]

    options: dict[str, object] = {}
    if protocol in S3:
        retries = {"total_max_attempts": inner_attempts, "mode": "standard"}
        limits = {"connect_timeout": timeout_seconds, "read_timeout": timeout_seconds}
        # With one connection per call, reading needs no request for the size first.
        options = {"config_kwargs": {"retries": retries, **limits}, "max_concurrency": 1}
        options |= {"endpoint_url": endpoint} if endpoint else {}
    elif protocol in WEB:
        # Without compression, ranges are those of the file.
        options = {"headers": {"Accept-Encoding": "identity"}}
    try:
        files = fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False, **options)
    except ImportError as error:
        mend = "`make install EXTRAS=s3` in MegaSLM's folder" if protocol in _S3 else "install the named package"
        raise ConfigError(f"{protocol}:// needs a driver that is not installed ({error}): {mend}") from error
    except ValueError as error:
        raise ConfigError(f"{protocol}:// is no kind of storage that fsspec knows ({error})") from error
    if protocol in S3:
        # s3fs would retry on its own, silently and for an unknown time.
        files.retries = 1
    connected: FileSystem = files
    return connected


def glob_pattern(url: str) -> re.Pattern[str]:
    """The pattern of all URLs that match a glob."""
    from fsspec.utils import glob_translate  # type: ignore[import-untyped]

    return re.compile(glob_translate(url))
