"""Datasets on object storage: written part by part, described, streamed; with faults, kills and other people's data."""

import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from megaslm.dataset.manifest import Manifest, read_manifest, write_manifest
from megaslm.dataset.output import UPLOAD, RemoteOutput
from megaslm.dataset.remote import fetch_description, read_remote_manifest
from megaslm.dataset.rows import RowReader
from megaslm.errors import DataError
from megaslm.storage.remote import NotThere, RemoteSettings
from tests.messages import Says
from tests.s3 import Answer, Bucket, FaultyS3, Rule, Stall, Truncate

pytest.importorskip("s3fs")

ROOT = Path(__file__).resolve().parents[2]
QUICK = RemoteSettings(attempts=8, timeout_seconds=2, block_bytes=100_000, first_wait_seconds=0.01)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Here, so that the process that is killed need not import torch.
    from tests.toy import make_dataset

    folder = tmp_path_factory.mktemp("remote") / "dataset"
    make_dataset(folder, {("train", "a"): [40, 25], ("train", "b"): [30], ("heldout", "a"): [5]})
    return folder


@pytest.fixture
def working(dataset: Path, tmp_path: Path) -> Path:
    """The dataset as `prepare` has it before the end: parts and a tokenizer, no merged index and no manifest."""
    folder = tmp_path / "working"
    shutil.copytree(dataset, folder)
    (folder / "manifest.json").unlink()
    for merged in folder.glob("*/*/index.json"):
        merged.unlink()
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    """All files but the working folder's note of the place that it fills."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != UPLOAD]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def objects_of(bucket: Bucket, prefix: str) -> dict[str, bytes]:
    return {key.removeprefix(f"{prefix}/"): bucket.get(key) for key in bucket.stored_keys(f"{prefix}/")}


def shards_of(names: dict[str, bytes]) -> set[str]:
    return {name for name in names if name.endswith(".mds")}


def write_all(destination: RemoteOutput, manifest: Manifest, plan: str = "a plan") -> None:
    destination.begin(plan)
    for split, domains in manifest.splits.items():
        for domain, share in domains.items():
            for part in share.parts:
                destination.keep_part(split, domain, part)
    destination.finish(manifest)


def put_dataset(bucket: Bucket, prefix: str, dataset: Path) -> None:
    for name, content in files_of(dataset).items():
        bucket.put(f"{prefix}/{name}", content)


def test_what_is_written_is_the_dataset_and_its_manifest_comes_last(
    faulty_s3: FaultyS3, dataset: Path, working: Path
) -> None:
    manifest = read_manifest(dataset)
    destination = RemoteOutput(faulty_s3.bucket.url("ds/"), working)
    assert destination.finished() is None
    write_all(destination, manifest)
    assert objects_of(faulty_s3.bucket, "ds") == files_of(dataset)
    assert destination.finished() == manifest
    left = files_of(working)
    assert left == {name: content for name, content in files_of(dataset).items() if not name.endswith(".mds")}
    puts = [each.path.partition("/ds/")[2] for each in faulty_s3.proxy.requests("PUT")]
    assert puts[0] == "unfinished.json"
    assert puts[-1] == "manifest.json"
    assert len(puts) == len(files_of(dataset)) + 1
    for place, name in enumerate(puts):
        if name.endswith(".mds"):
            assert puts.index(f"{name.rpartition('/')[0]}/index.json") > place


def test_streaming_reads_what_was_written(s3: Bucket, dataset: Path, working: Path, tmp_path: Path) -> None:
    from megaslm.dataset.mosaic import Stream, StreamingDataset

    write_all(RemoteOutput(s3.url("ds"), working), read_manifest(dataset))
    described = fetch_description(s3.url("ds"), tmp_path / "cache")
    for name, local in (("described", described / "train" / "a"), ("plain", tmp_path / "plain")):
        read = StreamingDataset(
            streams=[Stream(remote=s3.url("ds/train/a"), local=str(local))], shuffle=False, batch_size=1
        )
        expected = RowReader(dataset, "train", "a").rows(0, 65)["tokens"]
        assert np.array_equal(np.stack([read[row]["tokens"] for row in range(65)]), expected), name


@pytest.mark.slow
def test_a_rerun_after_a_kill_sends_only_what_is_missing(faulty_s3: FaultyS3, dataset: Path, working: Path) -> None:
    manifest = read_manifest(dataset)
    program = """
import sys
from pathlib import Path
from megaslm.dataset.output import RemoteOutput
from megaslm.dataset.manifest import read_manifest
from tests.system.test_remote_dataset import write_all
url, working, dataset = sys.argv[1:]
write_all(RemoteOutput(url, Path(working)), read_manifest(Path(dataset)))
"""
    command = [sys.executable, "-c", program, faulty_s3.bucket.url("ds"), str(working), str(dataset)]
    fetched = len(shards_of(files_of(dataset)))
    for killed_at in (
        "*.mds",
        "*/part-00001/index.json",
        "*/b/part-00000/index.json",
        "*/a/index.json",
        "*manifest.json",
    ):
        faulty_s3.proxy.rules[:] = [Rule(Stall(60), ("PUT",), keys=killed_at, nth=(1,))]
        faults = faulty_s3.proxy.faults
        with subprocess.Popen(command, cwd=ROOT) as process:
            deadline = time.monotonic() + 60
            while faulty_s3.proxy.faults == faults:
                assert process.poll() is None, "ended before it met the stall"
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.kill()
        assert "ds/manifest.json" not in faulty_s3.bucket.stored_keys("ds/")
    faulty_s3.proxy.rules.clear()
    write_all(RemoteOutput(faulty_s3.bucket.url("ds"), working), manifest)
    assert objects_of(faulty_s3.bucket, "ds") == files_of(dataset)
    sent = [each for each in faulty_s3.proxy.requests("PUT", "*.mds") if each.fault is None]
    assert len(sent) == fetched


def test_other_things_at_the_place_are_refused(s3: Bucket, dataset: Path, working: Path, says: Says) -> None:
    put_dataset(s3, "finished", dataset)
    s3.put("files/x.txt", b"not ours")
    s3.put("finished10/x.txt", b"a neighbour whose name begins alike")
    before = {key: s3.get(key) for key in s3.stored_keys()}
    for place, named in (("finished", ""), ("files", "x.txt")):
        with pytest.raises(DataError) as refused:
            RemoteOutput(s3.url(place), working / place).begin("a plan")
        says(refused, s3.url(place), named, BUCKET=s3.name)
    assert {key: s3.get(key) for key in s3.stored_keys()} == before
    RemoteOutput(s3.url("begun"), working).begin("a plan")
    RemoteOutput(s3.url("begun"), working).begin("a plan")
    with pytest.raises(DataError) as refused:
        RemoteOutput(s3.url("begun"), working).begin("another plan")
    says(refused, s3.url("begun"), BUCKET=s3.name)


def test_a_part_that_is_corrupt_or_gone_is_refused(s3: Bucket, dataset: Path, working: Path, says: Says) -> None:
    manifest = read_manifest(dataset)
    destination = RemoteOutput(s3.url("ds"), working)
    part = manifest.splits["train"]["b"].parts[0]
    shard = working / "train" / "b" / part.name / "shard.00000.mds"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(DataError) as refused:
        destination.keep_part("train", "b", part)
    says(refused, shard, f"{len(content) - 1} bytes")
    assert not s3.stored_keys()
    shard.write_bytes(content)
    write_all(destination, manifest)
    s3.delete("ds/manifest.json")
    s3.delete(f"ds/train/b/{part.name}/shard.00000.mds")
    with pytest.raises(DataError) as refused:
        destination.finish(manifest)
    says(refused, "train/b/part-00000/shard.00000.mds", BUCKET=s3.name)
    with pytest.raises(DataError) as refused:
        destination.keep_part("train", "b", part)
    says(refused, "shard.00000.mds")
    assert "ds/manifest.json" not in s3.stored_keys()


@pytest.mark.slow
def test_a_fifth_of_all_requests_fails_and_all_is_right(
    faulty_s3: FaultyS3, dataset: Path, working: Path, tmp_path: Path
) -> None:
    methods = ("GET", "HEAD", "PUT", "POST", "DELETE")
    faulty_s3.proxy.rules += [
        Rule(Answer(500), methods, fraction=0.2, seed=1),
        Rule(Truncate(20), fraction=0.1, seed=2),
        Rule(Stall(20), ("GET", "PUT"), nth=(5,)),
        Rule(Stall(20, after_bytes=10), nth=(9,)),
    ]
    write_all(RemoteOutput(faulty_s3.bucket.url("ds"), working, QUICK), read_manifest(dataset))
    described = fetch_description(faulty_s3.bucket.url("ds"), tmp_path / "cache", QUICK)
    assert objects_of(faulty_s3.bucket, "ds") == files_of(dataset)
    assert files_of(described) == files_of(working)
    assert faulty_s3.proxy.faults >= 10


def test_a_description_is_fetched_once_and_proved_by_one_request(
    faulty_s3: FaultyS3, dataset: Path, tmp_path: Path
) -> None:
    put_dataset(faulty_s3.bucket, "ds", dataset)
    url, cache = faulty_s3.bucket.url("ds"), tmp_path / "cache"
    with ThreadPoolExecutor(4) as together:
        (folder,) = set(together.map(lambda _: fetch_description(url, cache), range(4)))
    described = {name: content for name, content in files_of(dataset).items() if not name.endswith(".mds")}
    assert files_of(folder) == described
    assert len(faulty_s3.proxy.seen) == len(described) + 3
    (folder / "train" / "a" / "part-00000" / "shard.00000.mds").write_bytes(b"as a stream puts it there")
    assert fetch_description(url + "/", cache) == folder
    assert [each.path for each in faulty_s3.proxy.seen[-1:]] == [f"{faulty_s3.bucket.name}/ds/manifest.json"]
    assert len(faulty_s3.proxy.seen) == len(described) + 4
    assert read_manifest(folder) == read_remote_manifest(url) == read_manifest(dataset)
    assert [path.name for path in cache.iterdir() if not path.name.startswith(".")] == [folder.name]


def test_another_dataset_at_the_same_place_is_not_mixed_in(
    s3: Bucket, dataset: Path, tmp_path: Path, says: Says
) -> None:
    put_dataset(s3, "ds", dataset)
    folder = fetch_description(s3.url("ds"), tmp_path / "cache")
    before = files_of(folder)
    changed = tmp_path / "changed"
    shutil.copytree(dataset, changed)
    write_manifest(changed, read_manifest(dataset).model_copy(update={"name": "another"}))
    s3.put("ds/manifest.json", (changed / "manifest.json").read_bytes())
    with pytest.raises(DataError) as refused:
        fetch_description(s3.url("ds"), tmp_path / "cache")
    says(refused, s3.url("ds"), FOLDER=folder, BUCKET=s3.name)
    assert files_of(folder) == before
    assert read_manifest(fetch_description(s3.url("ds"), tmp_path / "elsewhere")).name == "another"


def test_what_is_corrupt_is_named_and_nothing_stays(s3: Bucket, dataset: Path, tmp_path: Path) -> None:
    files = {name: content for name, content in files_of(dataset).items() if not name.endswith(".mds")}
    put_dataset(s3, "ds", dataset)
    for name, content in files.items():
        place = len(content) // 2
        s3.put(f"ds/{name}", content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DataError, match="prepare") as refused:
            fetch_description(s3.url("ds"), tmp_path / "cache")
        assert str(refused.value).startswith(f"{s3.url('ds')}/{name} ")
        s3.delete(f"ds/{name}")
        with pytest.raises(NotThere, match=name):
            fetch_description(s3.url("ds"), tmp_path / "cache")
        s3.put(f"ds/{name}", content)
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []
    folder = fetch_description(s3.url("ds"), tmp_path / "cache")
    for name in files:
        (folder / name).write_bytes(b"{}")
        with pytest.raises(DataError, match="remove"):
            fetch_description(s3.url("ds"), tmp_path / "cache")
        (folder / name).write_bytes(files[name])


def test_a_manifest_cannot_name_files_elsewhere(s3: Bucket, dataset: Path, tmp_path: Path, says: Says) -> None:
    evil = tmp_path / "evil"
    shutil.copytree(dataset, evil)
    write_manifest(evil, read_manifest(dataset).model_copy(update={"tokenizer_files": {"../../../stolen": "0"}}))
    put_dataset(s3, "ds", evil)
    with pytest.raises(DataError) as refused:
        fetch_description(s3.url("ds"), tmp_path / "cache")
    says(refused, "../../../stolen")


def test_what_is_no_dataset_is_said_to_be_none(s3: Bucket, tmp_path: Path, says: Says) -> None:
    s3.put("ds/unfinished.json", b"a plan")
    with pytest.raises(NotThere) as refused:
        fetch_description(s3.url("ds"), tmp_path / "cache")
    says(refused, s3.url("ds"), BUCKET=s3.name)
