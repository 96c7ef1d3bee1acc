"""Fetched shards: a file has its final name only once it is whole."""

from pathlib import Path
from typing import Any

import pytest

from megaslm.dataset.remote import fetch_shard
from tests.streams import shards_of, write_stream


def test_a_fetched_shard_is_whole_when_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = write_stream(tmp_path / "stream", shards=1)
    (shard,) = shards_of(stream)
    rename, renamed_bytes = Path.replace, list[int]()

    def replace(path: Path, target: Any) -> Path:
        renamed_bytes.append(path.stat().st_size)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    stored = stream.local / shard.stored.basename
    fetch_shard(stored.as_uri(), tmp_path / "cache" / "shard", shard)
    assert renamed_bytes == [shard.stored.bytes] == [stored.stat().st_size]
