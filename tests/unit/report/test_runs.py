"""Which folders a report takes, and what it says of runs that are not whole."""

import json
import os
from pathlib import Path

import pytest

from megaslm.errors import ConfigError
from megaslm.report.runs import read_runs, short_names
from tests.messages import Says
from tests.reported import STEPS, cost_of, step_line, write_run
from tests.toy import make_tokenizer


@pytest.fixture(autouse=True)
def _within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", ["missing", "file", "smoke test", "dataset", "checkpoint", "runs", "no run"])
def test_what_is_no_run_is_refused_by_name(kind: str, says: Says) -> None:
    place = Path("runs/place")
    if kind == "file":
        place.parent.mkdir()
        place.write_text("text")
    elif kind != "missing":
        place.mkdir(parents=True)
    for found, name, content in (
        ("smoke test", "smoke.json", "{}"),
        ("runs", "clm/config.yaml", ""),
        ("runs", "clm/metrics.jsonl", ""),
        ("dataset", "manifest.json", '{\n "checksum": "0"'),
        ("checkpoint", "layout.json", "{}"),
    ):
        if kind == found:
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_runs([write_run(Path("runs/whole")), place])
    says(str(caught.value), str(place))


def test_a_whole_run_has_no_notes() -> None:
    (run,) = read_runs([write_run(Path("run"), cost=cost_of(seconds=60.0))])
    assert (run.is_complete, run.last_step, run.total_steps, run.notes) == (True, STEPS, STEPS, ())


def test_a_run_that_trains_says_how_far_it_is(says: Says) -> None:
    folder = write_run(Path("run"), steps=4)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(step_line(5))[:-9])
    (run,) = read_runs([folder])
    assert (run.is_complete, run.last_step, run.metrics.unreadable_lines) == (False, 4, 0)
    says("\n".join(run.notes), "4 of 6", "cost.json")


def test_a_run_of_an_earlier_build_is_read_as_far_as_it_tells(says: Says) -> None:
    folder = write_run(Path("run"))
    kept = ("kind", "step", "tokens", "loss", "learning_rate")
    lines = [{key: step_line(step)[key] for key in kept} for step in range(1, STEPS + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "model" / "config.json").unlink()
    (run,) = read_runs([folder])
    assert run.spent.seconds is None
    assert run.spent.flops is None
    assert run.spent.selected_tokens.tolist() == run.spent.tokens.tolist()
    says("\n".join(run.notes), "all_loss", "cost.json", "config.json")


def test_a_cost_that_cannot_be_read_is_no_missing_one(says: Says) -> None:
    folder = write_run(Path("run"))
    (folder / "cost.json").write_text("{")
    (run,) = read_runs([folder])
    assert run.spent.seconds is not None
    says("\n".join(run.notes), "cost.json")


def test_lines_that_cannot_be_read_are_counted_and_left_out(says: Says) -> None:
    folder = write_run(Path("run"), cost=cost_of(seconds=60.0))
    whole = (folder / "metrics.jsonl").read_bytes()
    broken = (
        b"\0\0\0\0\n" + b'["no record"]\n' + b'{"kind": "step", "step": 7}\n' + b'{"kind": "validation", "step": 1}\n'
    )
    (folder / "metrics.jsonl").write_bytes(broken + whole)
    (run,) = read_runs([folder])
    assert (run.last_step, run.metrics.unreadable_lines) == (STEPS, 4)
    says("\n".join(run.notes), "4 lines")


def test_a_step_that_was_made_again_counts_once() -> None:
    folder = write_run(Path("run"), steps=4)
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(step_line(step, loss=1.25)) + "\n" for step in (3, 4, 5))
    (run,) = read_runs([folder])
    assert run.metrics.step.tolist() == [1, 2, 3, 4, 5]
    assert run.metrics.columns["loss"].tolist() == [4.0, 3.0, 1.25, 1.25, 1.25]


def test_skipped_steps_are_told_unless_they_were_made_again(says: Says) -> None:
    folder = write_run(Path("run"), steps=4)
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"kind": "skipped", "step": step}) + "\n" for step in (3, 4))
    (run,) = read_runs([folder])
    assert (run.metrics.skipped_steps, run.metrics.step.tolist()) == ((3, 4), [1, 2])
    says("\n".join(run.notes), "2", "step 4")
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(step_line(step)) + "\n" for step in (3, 4, 5, 6))
    (run,) = read_runs([folder])
    assert (run.metrics.skipped_steps, run.metrics.step.tolist()) == ((), [1, 2, 3, 4, 5, 6])


def test_a_run_without_a_step_is_reported_beside_others_but_not_alone(says: Says) -> None:
    begun = write_run(Path("begun"), steps=0, losses=())
    runs = read_runs([begun, write_run(Path("run"))])
    says("\n".join(runs[0].notes))
    with pytest.raises(ConfigError) as caught:
        read_runs([begun])
    says(str(caught.value), "begun")


def test_a_folder_with_a_model_and_no_configuration_has_not_begun(says: Says) -> None:
    make_tokenizer(Path("run/model"))
    with pytest.raises(ConfigError) as caught:
        read_runs([Path("run")])
    says(str(caught.value), "config.yaml")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads all files")
def test_a_file_that_cannot_be_read_is_named() -> None:
    folder = write_run(Path("run"))
    (folder / "metrics.jsonl").chmod(0)
    with pytest.raises(ConfigError) as caught:
        read_runs([folder])
    assert "metrics.jsonl" in str(caught.value)


def test_a_run_that_is_named_twice_is_reported_once() -> None:
    folder = write_run(Path("runs/one"))
    assert [run.name for run in read_runs([folder, folder.parent / "." / "one", folder.resolve()])] == ["one"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/a/runs/clm", "/a/runs/slm"], ["clm", "slm"]),
        (["/a/x/run", "/a/y/run", "/a/z"], ["x/run", "y/run", "z"]),
        (["/run", "/a/run"], ["/run", "a/run"]),
        (["/a/run"], ["run"]),
    ],
)
def test_names_are_as_short_as_they_can_be(paths: list[str], names: list[str]) -> None:
    assert short_names([Path(path) for path in paths]) == names
