"""URLs, and what is said where a driver or a store cannot serve them; the stores themselves are in tests/system."""

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from megaslm.errors import ConfigError, DataError
from megaslm.storage.remote import (
    describe_remote,
    is_remote,
    list_remote,
    open_remote,
    read_bytes,
    require_unchanged,
)
from megaslm.storage.uploads import has_arrived, upload_file, write_bytes
from tests.messages import Says


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("s3://b/k", True),
        ("S3://b/k", False),
        ("https://host/x.jsonl?download=1", True),
        ("hf://datasets/a/b", True),
        ("memory://x", True),
        ("file:///x", False),
        ("local://x", False),
        ("/a/b", False),
        ("a:b//c", False),
        ("C:\\x", False),
    ],
)
def test_what_is_remote(path: str, expected: bool) -> None:
    assert is_remote(path) is expected


def test_any_file_system_of_fsspec_serves(says: Says) -> None:
    write_bytes("memory://test-remote/a/x.txt", b"hello")
    write_bytes("memory://test-remote/y.txt", b"")
    found = describe_remote("memory://test-remote/a/x.txt")
    assert found.version
    assert read_bytes(found.url) == b"hello"
    with open_remote(found.url, found.size) as file:
        file.seek(-3, 2)
        assert file.read() == b"llo"
    assert [each.url for each in list_remote("memory://test-remote/**/*.txt")] == [
        found.url,
        "memory://test-remote/y.txt",
    ]
    write_bytes(found.url, b"HELLO")
    with pytest.raises(DataError) as refused:
        require_unchanged(found)
    says(refused, found.url, BEFORE=found.version, AFTER=describe_remote(found.url).version)
    require_unchanged(describe_remote(found.url))


STATED: dict[str, Callable[[bytes], dict[str, str]]] = {
    "an entity tag": lambda md5: {"ETag": f'"{md5.hex()}"'},
    "base64": lambda md5: {"md5Hash": base64.b64encode(md5).decode()},
}
"""How stores state the MD5 of a file."""


@pytest.mark.parametrize("name", STATED)
def test_only_a_file_of_the_same_bytes_has_arrived(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = MemoryFileSystem.info

    def with_md5(files: MemoryFileSystem, path: str, **options: Any) -> dict[str, Any]:
        return info(files, path, **options) | STATED[name](hashlib.md5(files.cat_file(path)).digest())

    local, url = tmp_path / "shard", f"memory://test-arrived/{name}"
    local.write_bytes(b"what was meant")
    upload_file(local, url)
    # A store that states no MD5 tells no file from another one of its size.
    assert not has_arrived(local, url)
    monkeypatch.setattr(MemoryFileSystem, "info", with_md5)
    assert has_arrived(local, url)
    for other in (b"what was meanT", b"what was"):
        write_bytes(url, other)
        assert not has_arrived(local, url)


@pytest.mark.parametrize("url", ["https://host/folder/*.jsonl", "s3://*/x", "s3://b*/x", "no/url"])
def test_urls_that_cannot_be_listed(url: str, says: Says) -> None:
    with pytest.raises(DataError) as refused:
        list_remote(url)
    says(refused, url)


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(ConfigError, match="nosuch://"):
        list_remote("nosuch://x")
