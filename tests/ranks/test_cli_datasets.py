"""`megaslm verify` and `megaslm inspect` as they are called: what they print, write and end with."""

import json
import re
from pathlib import Path

import pytest

from megaslm.dataset.kinds import Kind, kind_of
from megaslm.dataset.score_summary import ScoreSummary
from megaslm.jobs.ledger import Ledger
from megaslm.jobs.progress import JobProgress, Tally, Unwatched
from megaslm.jobs.run import JobRun
from tests.chain import Chain
from tests.forked_cli import call_megaslm, run_megaslm
from tests.inspected import make_inspected
from tests.messages import Says
from tests.scores import write_scores


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inspected(tmp_path_factory.mktemp("scored"), scored=True).folder


def test_a_whole_dataset_is_said_to_be_whole(scored: Path, tmp_path: Path, says: Says) -> None:
    done = call_megaslm("verify", scored, "--workers", "1", "--json", tmp_path / "found.json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads((tmp_path / "found.json").read_text())
    speed = re.search(r"[\d.]+ s · [\d.]+ \w+/s", done.stdout)
    assert speed is not None
    says(done.stdout, scored, SPEED=speed[0])
    assert (found["problems"], found["warnings"], found["rows"]) == ([], [], 9)


def test_every_problem_is_printed_and_the_status_is_2(tmp_path: Path, says: Says) -> None:
    dataset = make_inspected(tmp_path / "dataset", scored=False).folder
    shard = dataset / "train" / "b" / "part-00000" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-1])
    (dataset / "train" / "a" / "index.json").unlink()
    (dataset / ".unfinished-train").mkdir()
    done = call_megaslm("verify", dataset, "--json", tmp_path / "found.json")
    assert done.returncode == 2
    told = [line for line in done.stdout.splitlines() if line.startswith(("problem", "warning"))]
    says("\n".join(told), "train/a/index.json", "train/b/part-00000/shard.00000.mds", ".unfinished-train")
    says(done.stderr, f"DataError: {dataset}: 2 ")
    assert "Traceback" not in done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [problem["path"] for problem in found["problems"]] == [
        "train/a/index.json",
        "train/b/part-00000/shard.00000.mds",
    ]


def test_a_manifest_that_was_edited_is_said_to_be(tmp_path: Path, says: Says) -> None:
    dataset = make_inspected(tmp_path, scored=False).folder
    manifest = dataset / "manifest.json"
    manifest.write_text(manifest.read_text().replace("alphabet", "alphabets"))
    done = call_megaslm("verify", dataset)
    assert done.returncode == 2
    says(done.stdout.splitlines()[1], "manifest.json")


def test_a_dataset_is_shown(scored: Path, tmp_path: Path) -> None:
    done = call_megaslm("inspect", scored, "--domain", "a", "--json", tmp_path / "facts.json")
    assert done.returncode == 0
    assert "alphabet · scored" in done.stdout
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["manifest"]["name"] == "alphabet"
    assert [(share["domain"], share["rows"]) for share in facts["shares"]] == [("a", 6)]


def test_the_scoring_of_a_dataset_is_shown(tmp_path: Path) -> None:
    dataset = make_inspected(tmp_path / "dataset", scored=True).folder
    summary = write_scores(dataset, fewest_targets=4)
    done = call_megaslm("inspect", dataset, "--json", tmp_path / "facts.json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert ScoreSummary.model_validate(facts["scores"]) == summary
    assert [share["scores"]["worst"][0]["excerpt"] for share in facts["shares"]] == ["qrstuvwxyz", "lkjihg"]
    verified = call_megaslm("verify", dataset)
    assert "warning" not in verified.stdout


def test_a_row_is_shown(scored: Path, tmp_path: Path, says: Says) -> None:
    done = call_megaslm("inspect", scored, "--row", "5", "--json", tmp_path / "row.json")
    assert done.returncode == 0
    says(done.stdout.splitlines()[0], "train/a", "row 5", "row 1", "part-00001")
    assert "\x1b" not in done.stdout
    row = json.loads((tmp_path / "row.json").read_text())
    assert [piece["text"] for document in row["documents"] for piece in document["pieces"]] == [
        "\N{REPLACEMENT CHARACTER}",
        "𝄞",
    ]
    assert len(row["ref_loss"]) == len(row["tokens"]) == 9


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--row", "9"), "row 9"),
        (("--domain", "c"), "/c"),
        (("--split", "heldout", "--row", "0"), "heldout"),
    ],
)
def test_what_is_not_there_is_one_message(scored: Path, arguments: tuple[str, ...], named: str, says: Says) -> None:
    done = call_megaslm("inspect", scored, *arguments)
    assert done.returncode == 2
    says(done.stderr, named)
    assert "Traceback" not in done.stderr


def run_with_a_task_done(ledger: Path, *, rows: int) -> JobRun[int]:
    """A run of four tasks with so many rows each, one of them done before."""
    return JobRun(
        Ledger(ledger, JobProgress, place="the dataset"),
        "run",
        range(4),
        Unwatched(),
        job="a-verb",
        unit="rows",
        size=lambda _: rows,
        is_done=lambda task: task == 0,
    )


@pytest.mark.parametrize("ledger", [".prepare", ".score/.derived", ".mask/.derived"])
def test_a_job_under_way_is_told_of_from_another_terminal(tmp_path: Path, ledger: str) -> None:
    folder = tmp_path / "dataset" / ledger
    folder.mkdir(parents=True)
    run = run_with_a_task_done(folder, rows=10)
    tally = Tally(folder, "run", 0)
    tally.report(rows=10)
    tally.end_task(retried=True)
    run.publish()
    done = call_megaslm("inspect", tmp_path / "dataset", "--json", tmp_path / "found.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a-verb ·  50% · 10 rows · ")
    (job,) = json.loads((tmp_path / "found.json").read_text())["jobs"]
    assert (job["job"], job["tasks_done"], job["tasks_retried"], job["counts"]) == ("a-verb", 2, 1, {"rows": 10})


def test_the_progress_of_a_dataset_that_grows_is_told_before_what_it_is(tmp_path: Path) -> None:
    dataset = make_inspected(tmp_path / "dataset", scored=False).folder
    (dataset / ".score" / ".derived").mkdir(parents=True)
    run_with_a_task_done(dataset / ".score" / ".derived", rows=1).publish()
    done = call_megaslm("inspect", dataset)
    assert done.returncode == 0
    first, *rest = done.stdout.splitlines()
    assert first.startswith("a-verb ·  25% · ")
    assert any("MegaSLM" in line for line in rest)


def test_a_run_is_shown_and_its_checkpoints_are_verified(chain: Chain, tmp_path: Path, says: Says) -> None:
    shown = run_megaslm("inspect", chain.slm_run, "--json", tmp_path / "run.json")
    assert "8 of 8" in shown
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["last_step"]["step"] == 8
    assert [Path(one["folder"]).name for one in facts["checkpoints"]] == ["step-00000004", "step-00000008"]
    for place in (chain.slm_run, chain.slm_run / "checkpoints" / "step-00000008"):
        says(run_megaslm("verify", place).splitlines()[-1])


def test_what_the_verbs_made_is_told_apart(chain: Chain) -> None:
    kinds = [kind_of(path) for path in (chain.scored, chain.slm_run, chain.slm_run / "checkpoints" / "step-00000008")]
    assert [*kinds, kind_of(chain.reference)] == [Kind.DATASET, Kind.RUN, Kind.CHECKPOINT, Kind.MODEL]
