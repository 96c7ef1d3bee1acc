"""From object storage and to it: the same scored dataset as from folder to folder."""

import os
import signal
from pathlib import Path

import pytest

import megaslm.dataset.mosaic  # noqa: F401 (imported once, here, and not by each process that is forked)
from megaslm.dataset.manifest import MANIFEST
from megaslm.dataset.remote import fetch_description, read_remote_manifest
from megaslm.scoring.request import ScoreRequest, ScoreSettings
from tests.corpus import content
from tests.forks import statuses_of, wait_until
from tests.messages import Says
from tests.s3 import Answer, Bucket, FaultyS3, Rule
from tests.scoring import fail, make_reference, rows_of, run_job, start, task_of
from tests.toy import make_dataset

pytest.importorskip("s3fs")

SMALL = {("train", "a"): [60, 35]}
GROWN = {("train", "a"): [60, 35, 50], ("train", "b"): [31]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference, a dataset, the same with more parts, and that scored from folder to folder."""
    folder = tmp_path_factory.mktemp("remote")
    make_reference(folder / "model")
    make_dataset(folder / "small", SMALL)  # type: ignore[arg-type]
    make_dataset(folder / "grown", GROWN)  # type: ignore[arg-type]
    run_job(1, task_of(folder / "model", folder / "grown", folder / "scored"))
    return folder


def upload(bucket: Bucket, dataset: Path, name: str) -> str:
    for path, found in content(dataset).items():
        bucket.put(f"{name}/{path}", found)
    return bucket.url(name)


def task(folder: Path, bucket: Bucket, dataset: str, working: Path) -> ScoreRequest:
    settings = ScoreSettings(batch_rows=4)
    return ScoreRequest(
        folder / "model", dataset, bucket.url("scored"), settings, working=working, cache=working.parent / "cache"
    )


def stored_rows(bucket: Bucket) -> dict[str, bytes]:
    keys = [key.removeprefix("scored/") for key in bucket.stored_keys("scored/")]
    return {key: bucket.get(f"scored/{key}") for key in keys if key not in ("cost.json", "scores.json")}


def test_from_a_faulty_store_to_it(faulty_s3: FaultyS3, folder: Path, tmp_path: Path) -> None:
    bucket = faulty_s3.bucket
    dataset = upload(bucket, folder / "grown", "tokens")
    faulty_s3.proxy.rules += [Rule(Answer(500), methods=("GET", "PUT"), fraction=0.1, seed=1)]
    run_job(2, task(folder, bucket, dataset, tmp_path / "working"))
    assert faulty_s3.proxy.faults > 0
    assert stored_rows(bucket) == rows_of(folder / "scored")
    assert {"scored/cost.json", "scored/scores.json"} <= set(bucket.stored_keys("scored/"))
    assert list((tmp_path / "working").iterdir()) == []


def test_killed_on_its_way_it_resumes_and_grows(faulty_s3: FaultyS3, folder: Path, tmp_path: Path) -> None:
    bucket = faulty_s3.bucket
    job = task(folder, bucket, upload(bucket, folder / "small", "small"), tmp_path / "working")
    ranks = start(1, job)
    wait_until(lambda: any("/part-" in key for key in bucket.stored_keys("scored/")))
    os.killpg(ranks[0], signal.SIGKILL)
    statuses_of(ranks)
    run_job(2, job)
    before = read_remote_manifest(bucket.url("scored"))
    sent = len(faulty_s3.proxy.requests("PUT", "*/scored/train/a/part-0000[01]/*"))
    assert sent >= 4

    grown = task(folder, bucket, upload(bucket, folder / "grown", "grown"), tmp_path / "working")
    ranks = start(1, grown)
    wait_until(lambda: any("/part-00002" in key for key in bucket.stored_keys("scored/")))
    os.killpg(ranks[0], signal.SIGKILL)
    statuses_of(ranks)
    if read_remote_manifest(bucket.url("scored")) == before:
        # Until it is finished anew, readers find the dataset as it was.
        fetch_description(bucket.url("scored"), tmp_path / "reader")
    run_job(1, grown)
    assert stored_rows(bucket) == rows_of(folder / "scored")
    again = len(faulty_s3.proxy.requests("PUT", "*/scored/train/a/part-0000[01]/*"))
    assert again == sent, "old parts were sent again"


def test_a_place_that_holds_something_else(
    s3: Bucket, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    s3.put("scored/notes.txt", b"mine")
    job = task(folder, s3, str(folder / "small"), tmp_path / "working")
    says(fail(1, job, 2, capfd), s3.url("scored"), BUCKET=s3.name)
    without = ScoreRequest(folder / "model", str(folder / "small"), s3.url("other"), ScoreSettings())
    says(fail(1, without, 2, capfd), s3.url("other"), "--work", BUCKET=s3.name)
    assert not (tmp_path / "working" / MANIFEST).exists()
    (tmp_path / "mine" / "train").mkdir(parents=True)
    mine = ScoreRequest(
        folder / "model", str(folder / "small"), s3.url("other"), ScoreSettings(), working=tmp_path / "mine"
    )
    says(fail(1, mine, 2, capfd), tmp_path / "mine")
    assert (tmp_path / "mine" / "train").is_dir()


def test_two_jobs_on_one_url(
    s3: Bucket, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    """From two working folders, of which neither sees the other's lock; and one folder for two URLs."""
    first = task(folder, s3, str(folder / "small"), tmp_path / "first")
    ranks = start(1, first)
    wait_until(lambda: any("/part-" in key for key in s3.stored_keys("scored/")))
    os.killpg(ranks[0], signal.SIGKILL)
    statuses_of(ranks)
    second = task(folder, s3, str(folder / "small"), tmp_path / "second")
    says(fail(1, second, 2, capfd), s3.url("scored"), BUCKET=s3.name)
    elsewhere = ScoreRequest(
        folder / "model", str(folder / "small"), s3.url("other"), first.settings, working=first.working
    )
    says(fail(1, elsewhere, 2, capfd), first.working, s3.url("scored"), BUCKET=s3.name)
    run_job(1, first)
    assert set(s3.stored_keys("scored/")).isdisjoint({"scored/unfinished.json"})
