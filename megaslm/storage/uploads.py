"""Uploads to object storage, verified by checksum."""

import base64
import binascii
import hashlib
import io
import re
from contextlib import suppress
from pathlib import Path

from megaslm.storage.file_systems import S3, Info, connect, protocol_of, time_limit
from megaslm.storage.remote import DEFAULTS, info_of, open_remote
from megaslm.storage.retries import NotThere, RemoteSettings, with_retries

_MD5 = re.compile(r"[0-9a-f]{32}")
# Files up to this size take one request; larger ones are sent in pieces of this size.
_UPLOAD_PIECE_BYTES = 64 * 2**20


def write_bytes(url: str, content: bytes, settings: RemoteSettings = DEFAULTS) -> None:
    """Write a small file whole and verify it. Raises DataError where it did not arrive."""
    files = connect(url, settings)
    path = files._strip_protocol(url)
    limit = time_limit(files, settings, len(content))

    def send() -> None:
        files.pipe_file(path, content, **limit)
        _require_arrived(url, len(content), hashlib.md5(content, usedforsecurity=False).hexdigest(), settings)

    with_retries(url, send, settings)


def upload_file(local: Path, url: str, settings: RemoteSettings = DEFAULTS) -> None:
    """Copy a local file to `url` and verify it. Raises DataError where it did not arrive.

    It is verified by the store's MD5 or, where the store has none, by reading the file back.
    """
    files = connect(url, settings)
    path = files._strip_protocol(url)
    md5 = _md5_of_file(local)
    size = local.stat().st_size
    limit = time_limit(files, settings, size)
    pieces = {"chunksize": _UPLOAD_PIECE_BYTES} if protocol_of(url) in S3 else {}

    def send() -> None:
        files.put_file(str(local), path, **pieces, **limit)
        _require_arrived(url, size, md5, settings)

    with_retries(url, send, settings)


def has_arrived(local: Path, url: str, settings: RemoteSettings = DEFAULTS) -> bool:
    """Whether the file at `url` has the local file's size and, where the store has one, its MD5."""
    found = with_retries(url, lambda: info_of(url, settings), settings)
    return found.get("size") == local.stat().st_size and _stated_md5(found) == _md5_of_file(local)


def remove_remote(url: str, settings: RemoteSettings = DEFAULTS) -> None:
    """Remove a file, if it exists."""
    files = connect(url, settings)
    path = files._strip_protocol(url)
    with suppress(NotThere):
        with_retries(url, lambda: files.rm_file(path), settings)


class _NotArrived(OSError):
    """The store's content is not what was sent."""


def _require_arrived(url: str, size: int, md5: str, settings: RemoteSettings) -> None:
    found = info_of(url, settings)
    if found.get("size") != size:
        raise _NotArrived(f"{size} bytes were sent, the store has {found.get('size')}")
    stated = _stated_md5(found)
    # Where the store encrypts, an entity tag may look like an MD5 without being one. Only the content is proof.
    if stated != md5 and _md5_of_remote(url, size, settings) != md5:
        raise _NotArrived("the store has other bytes than were sent")


def _stated_md5(info: Info) -> str | None:
    tag = str(info.get("ETag", "")).strip('"')
    if _MD5.fullmatch(tag):
        return tag
    try:
        return base64.b64decode(str(info.get("md5Hash", "")), validate=True).hex()
    except binascii.Error:
        return None


def _md5_of_remote(url: str, size: int, settings: RemoteSettings) -> str:
    with open_remote(url, size, settings) as content:
        return _md5_of(content)


def _md5_of_file(local: Path) -> str:
    with local.open("rb") as content:
        return _md5_of(content)


def _md5_of(content: io.BufferedReader) -> str:
    return hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
