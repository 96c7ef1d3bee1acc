"""A column is attached from object storage into object storage, as it is to local folders."""

from pathlib import Path

import pytest

from megaslm.scoring.attach_job import AttachRequest, attach
from tests.columns import write_column
from tests.inspected import make_inspected
from tests.s3 import Bucket

pytest.importorskip("s3fs")
pytestmark = pytest.mark.slow


def test_a_column_is_the_same_wherever_it_is_attached(s3: Bucket, tmp_path: Path) -> None:
    tokens = make_inspected(tmp_path / "tokens", scored=False).folder
    for path in tokens.rglob("*"):
        if path.is_file():
            s3.put(f"tokens/{path.relative_to(tokens).as_posix()}", path.read_bytes())
    columns = {"document": [0, 4], "start": [1, 0], "stop": [3, 2], "value": [2.0, -3.0]}
    file = write_column(tmp_path / "column.parquet", tokens, columns)
    local = attach(AttachRequest(tokens, file, "weight", tmp_path / "weighted"))
    task = AttachRequest(
        s3.url("tokens"), file, "weight", s3.url("weighted"), working=tmp_path / "work", cache=tmp_path / "cache"
    )
    assert attach(task) == local
    for name in ("manifest.json", "train/a/index.json", "train/a/part-00001/shard.00000.mds"):
        assert s3.get(f"weighted/{name}") == (tmp_path / "weighted" / name).read_bytes()
    assert attach(task) == local
