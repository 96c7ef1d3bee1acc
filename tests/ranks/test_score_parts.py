"""Parts scored by many jobs, and parts that come later: only what is missing is scored."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import megaslm.dataset.mosaic  # noqa: F401 (imported once, here, and not by each process that is forked)
from megaslm.config.cluster import Share
from megaslm.dataset import output
from megaslm.dataset.folder import check_layout
from megaslm.dataset.manifest import read_manifest, write_manifest
from megaslm.inspect.verify import verify
from megaslm.model.reference_model import ReferenceModel
from megaslm.scoring.job import finish, score, score_share
from tests.forks import fork, fork_ranks, statuses_of, wait_until
from tests.messages import Says, line_with
from tests.scoring import fail, failing, loss_counts, make_reference, notes, rows_of, run_job, scores, start, task_of
from tests.toy import make_dataset

SMALL = {("train", "a"): [60, 35, 50]}
GROWN = {**SMALL, ("train", "a"): [60, 35, 50, 20, 44], ("train", "b"): [31], ("heldout", "a"): [15]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference, a dataset, and the same dataset with more parts."""
    folder = tmp_path_factory.mktemp("parts")
    make_reference(folder / "model")
    make_dataset(folder / "small", SMALL)  # type: ignore[arg-type]
    make_dataset(folder / "grown", GROWN)  # type: ignore[arg-type]
    run_job(1, task_of(folder / "model", folder / "grown", folder / "scored"))
    return folder


def test_shares_at_the_same_time_and_then_joined(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    scored = tmp_path / "scored"
    task = task_of(folder / "model", folder / "grown", scored)
    # The first share has two ranks, and a share may be asked for again.
    jobs = [*fork_ranks(2, lambda: score_share(task, Share(1, 3))), fork(lambda: score_share(task, Share(2, 3)))]
    assert statuses_of(jobs) == [0, 0, 0]
    says(failing(lambda: finish(task), 2, capfd), "2 of 7 ", "(train/")
    assert statuses_of(
        [fork(lambda: score_share(task, Share(3, 3))), fork(lambda: score_share(task, Share(1, 3)))]
    ) == [0, 0]
    assert not (scored / "manifest.json").exists()
    assert statuses_of([fork(lambda: _expect(finish(task) == read_manifest(scored)))]) == [0]
    assert rows_of(scored) == rows_of(folder / "scored")
    # What is finished is left as it is.
    written = (scored / "manifest.json").stat().st_mtime_ns
    assert statuses_of([fork(lambda: score_share(task, Share(1, 3))), *start(1, task)]) == [0, 0]
    assert (scored / "manifest.json").stat().st_mtime_ns == written


def test_shares_of_unlike_jobs_do_not_mix(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The second is refused while the first has finished no part yet."""
    scored = tmp_path / "scored"
    make_reference(tmp_path / "other", intermediate_size=64)
    task, other = (task_of(model, folder / "grown", scored) for model in (folder / "model", tmp_path / "other"))

    go_on = tmp_path / "go on"
    first = fork(
        lambda: _before_each_batch(
            lambda: wait_until(go_on.exists), tmp_path / "begun", lambda: score_share(task, Share(1, 2))
        )
    )
    wait_until((tmp_path / "begun").exists)
    said = failing(lambda: score_share(other, Share(2, 2)), 2, capfd)
    assert not notes(scored)
    go_on.touch()
    assert "reference.weights_sha256 = " in said
    assert statuses_of([first]) == [0]
    run_job(1, task)
    assert rows_of(scored) == rows_of(folder / "scored")


def test_a_part_that_another_job_is_at_is_come_back_to(folder: Path, tmp_path: Path) -> None:
    """Shares of two arrays overlap."""
    scored = tmp_path / "scored"
    task = task_of(folder / "model", folder / "grown", scored)

    first = fork(
        lambda: _before_each_batch(lambda: time.sleep(0.02), tmp_path / "begun", lambda: score_share(task, Share(1, 1)))
    )
    wait_until((tmp_path / "begun").exists)
    assert statuses_of([fork(lambda: score_share(task, Share(1, 2))), first]) == [0, 0]
    assert statuses_of([fork(lambda: _expect(finish(task) == read_manifest(scored)))]) == [0]
    assert rows_of(scored) == rows_of(folder / "scored")


def test_shares_may_be_joined_where_there_is_no_gpu(folder: Path, tmp_path: Path) -> None:
    """`auto` means what it meant to those who scored."""
    scored = tmp_path / "scored"
    task = task_of(folder / "model", folder / "grown", scored, precision="bf16")
    assert statuses_of([fork(lambda: score_share(task, Share(1, 1)))]) == [0]
    auto = task_of(folder / "model", folder / "grown", scored)
    for _ in range(2):
        assert statuses_of([fork(lambda: _expect(finish(auto) == read_manifest(scored)))]) == [0]
    found = read_manifest(scored).reference
    assert found is not None
    assert found.precision == "bf16"


def test_what_shares_left_out_a_plain_job_scores(folder: Path, tmp_path: Path) -> None:
    scored = tmp_path / "scored"
    task = task_of(folder / "model", folder / "grown", scored)
    assert statuses_of([fork(lambda: score_share(task, Share(2, 2)))]) == [0]
    done = notes(scored)
    assert len(done) == 3
    run_job(2, task)
    assert rows_of(scored) == rows_of(folder / "scored")


def test_a_dataset_that_has_grown(folder: Path, tmp_path: Path) -> None:
    scored = tmp_path / "scored"
    run_job(2, task_of(folder / "model", folder / "small", scored))
    before = {path: path.stat().st_mtime_ns for path in scored.rglob("*.mds")}
    old = read_manifest(scored)

    # Killed on its way, it leaves the dataset as it was.
    ranks = start(1, task_of(folder / "model", folder / "grown", scored))
    wait_until(lambda: len(notes(scored)) > len(before))
    os.killpg(ranks[0], signal.SIGKILL)
    statuses_of(ranks)
    assert read_manifest(scored) == old
    check_layout(scored)
    assert not verify(scored).problems

    run_job(1, task_of(folder / "model", folder / "grown", scored))
    assert {path: path.stat().st_mtime_ns for path in before} == before, "old parts were written again"
    assert rows_of(scored) == rows_of(folder / "scored")
    assert scores(scored) == scores(folder / "scored")
    assert len(loss_counts(scored)) > 1
    assert loss_counts(scored) == loss_counts(folder / "scored")
    assert not verify(scored).problems


@pytest.mark.parametrize("step", ["write_manifest", "merge_index"])
def test_a_kill_while_it_is_joined_loses_nothing(folder: Path, tmp_path: Path, step: str) -> None:
    scored = tmp_path / "scored"
    run_job(1, task_of(folder / "model", folder / "small", scored))
    task = task_of(folder / "model", folder / "grown", scored)

    def run() -> None:
        setattr(output, step, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        score(task)

    assert statuses_of([fork(run)]) == [-signal.SIGKILL]
    run_job(2, task)
    assert rows_of(scored) == rows_of(folder / "scored")
    assert scores(scored) == scores(folder / "scored")
    assert loss_counts(scored) == loss_counts(folder / "scored")
    assert not verify(scored).warnings


def test_looking_at_what_is_finished_leaves_a_growing_job_alone(folder: Path, tmp_path: Path) -> None:
    scored = tmp_path / "scored"
    run_job(1, task_of(folder / "model", folder / "small", scored))
    grown = task_of(folder / "model", folder / "grown", scored)
    assert statuses_of([fork(lambda: score_share(grown, Share(1, 2)))]) == [0]
    done = notes(scored)
    run_job(1, task_of(folder / "model", folder / "small", scored))
    assert notes(scored) == done


def test_a_dataset_that_grows_while_it_is_scored(folder: Path, tmp_path: Path) -> None:
    scored = tmp_path / "scored"
    assert statuses_of(
        [fork(lambda: score_share(task_of(folder / "model", folder / "small", scored), Share(1, 2)))]
    ) == [0]
    done = notes(scored)
    ranks = start(2, task_of(folder / "model", folder / "grown", scored))
    wait_until(lambda: len(notes(scored)) > len(done))
    assert done.items() <= notes(scored).items()
    assert statuses_of(ranks) == [0, 0]
    assert rows_of(scored) == rows_of(folder / "scored")


def test_other_rows_do_not_join(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says) -> None:
    scored = Path(shutil.copytree(folder / "scored", tmp_path / "scored"))
    make_dataset(tmp_path / "other", GROWN, seed=1)  # type: ignore[arg-type]
    said = fail(1, task_of(folder / "model", tmp_path / "other", scored), 2, capfd)
    says(said, scored, "train/a/part-00000")
    said = fail(1, task_of(folder / "model", folder / "small", scored), 2, capfd)
    says(said, scored, "domains.b = 1 there, None here")
    assert rows_of(scored) == rows_of(folder / "scored")

    begun = tmp_path / "begun"
    assert statuses_of(
        [fork(lambda: score_share(task_of(folder / "model", folder / "small", begun), Share(1, 2)))]
    ) == [0]
    done = notes(begun)
    said = fail(1, task_of(folder / "model", tmp_path / "other", begun), 2, capfd)
    says(said, begun, "train/a/part-0000")
    assert notes(begun) == done


@pytest.mark.parametrize(
    ("settings", "different"),
    [
        ({"batch_rows": 5}, "reference.batch_rows = 4 there, 5 here"),
        ({"document_isolation": False}, "reference.document_isolation = True there, False here"),
        ({"window": 8, "stride": 4}, "reference.window = 16 there, 8 here; reference.stride = 16 there, 4 here"),
        ({"precision": "bf16"}, "reference.precision = fp32 there, bf16 here"),
    ],
)
def test_what_is_scored_otherwise_does_not_join(
    folder: Path, tmp_path: Path, settings: dict[str, int], different: str, capfd: pytest.CaptureFixture[str]
) -> None:
    scored = Path(shutil.copytree(folder / "scored", tmp_path / "scored"))
    assert different in fail(1, task_of(folder / "model", folder / "grown", scored, **settings), 2, capfd)
    begun = tmp_path / "begun"
    assert statuses_of(
        [fork(lambda: score_share(task_of(folder / "model", folder / "grown", begun), Share(1, 2)))]
    ) == [0]
    assert different in fail(1, task_of(folder / "model", folder / "grown", begun, **settings), 2, capfd)


def test_a_job_that_has_done_nothing_yet_may_be_begun_otherwise(folder: Path, tmp_path: Path) -> None:
    scored = tmp_path / "scored"
    ranks = start(1, task_of(folder / "model", folder / "grown", scored, batch_rows=1))
    wait_until(lambda: (scored / ".score" / ".derived" / "plan.json").exists())
    os.killpg(ranks[0], signal.SIGKILL)
    statuses_of(ranks)
    if notes(scored):
        pytest.skip("it was too quick to be stopped before its first part")
    run_job(1, task_of(folder / "model", folder / "grown", scored))
    assert rows_of(scored) == rows_of(folder / "scored")


def test_what_is_no_output_is_left_alone(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    (tmp_path / "killed" / ".score").mkdir(parents=True)
    run_job(1, task_of(folder / "model", folder / "small", tmp_path / "killed"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    said = fail(1, task_of(folder / "model", folder / "small", tmp_path / "mine"), 2, capfd)
    says(said, tmp_path / "mine")
    said = fail(1, task_of(folder / "model", folder / "small", folder / "small"), 2, capfd)
    says(said, folder / "small", "kind = tokens there, scored here")
    said = fail(1, task_of(folder / "model", folder / "scored", tmp_path / "new"), 2, capfd)
    says(said, folder / "scored", "'scored'")
    assert not (tmp_path / "new").exists()


def test_tokens_that_are_not_those_of_the_manifest(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    """Shards and indices agree, and yet the rows are others than the manifest was written for."""
    tokens = Path(shutil.copytree(folder / "small", tmp_path / "tokens"))
    manifest = read_manifest(tokens)
    share = manifest.splits["train"]["a"]
    parts = (share.parts[0].model_copy(update={"tokens_sha256": "0" * 64}), *share.parts[1:])
    changed = share.model_copy(update={"parts": parts})
    write_manifest(tokens, manifest.model_copy(update={"splits": {"train": {"a": changed}}}))
    said = fail(2, task_of(folder / "model", tokens, tmp_path / "scored"), 2, capfd)
    says(line_with(said, "train/a/part-00000"), "0" * 12)
    assert not any("part-00000" in note for note in notes(tmp_path / "scored"))


def _before_each_batch(wait: Callable[[], None], begun: Path, run: Callable[[], object]) -> None:
    """Runs a job that waits before each batch that it scores; `begun` is there once it has come to one."""
    measure = ReferenceModel.measure

    def slow(*arguments: Any) -> Any:
        begun.touch()
        wait()
        return measure(*arguments)

    ReferenceModel.measure = slow  # type: ignore[method-assign]
    run()


def _expect(condition: bool) -> None:
    assert condition


def test_files_beside_the_reference_that_are_not_ours(folder: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(folder / "model", tmp_path / "model"))
    for content in ("{}", "nonsense", '{"training": 3}'):
        (model / "cost.json").write_text(content)
        shutil.rmtree(tmp_path / "scored", ignore_errors=True)
        run_job(1, task_of(model, folder / "small", tmp_path / "scored"))
        assert json.loads((tmp_path / "scored" / "cost.json").read_text()).keys() == {"scoring"}
    (model / "cost.json").write_text('{"training": {"seconds": 3.0, "gpu_hours": 0.5}}')
    shutil.rmtree(tmp_path / "scored")
    run_job(1, task_of(model, folder / "small", tmp_path / "scored"))
    cost = json.loads((tmp_path / "scored" / "cost.json").read_text())
    assert cost["reference_training"] == {"seconds": 3.0, "gpu_hours": 0.5}
    assert 0 < cost["scoring"]["seconds"] <= cost["scoring"]["rank_seconds"] * 1.01
    assert cost["scoring"]["gpu_hours"] == 0


def test_a_reference_without_a_tokenizer_is_refused(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    model = Path(shutil.copytree(folder / "model", tmp_path / "model"))
    (model / "tokenizer.json").unlink()
    said = fail(1, task_of(model, folder / "small", tmp_path / "scored"), 2, capfd)
    says(said, model, "tokenizer.json")
    assert not (tmp_path / "scored").exists()


def test_scoring_by_function_call_gives_the_manifest(folder: Path, tmp_path: Path) -> None:
    task = task_of(folder / "model", folder / "small", tmp_path / "scored")
    assert statuses_of([fork(lambda: _expect(score(task) == read_manifest(tmp_path / "scored")))]) == [0]
