import json
import math
from dataclasses import replace
from pathlib import Path

from megaslm.observe.records import (
    MetricsFile,
    PaceRecord,
    SkippedRecord,
    StepRecord,
    ValidationRecord,
    read_step,
    read_validations,
)


def step(number: int) -> StepRecord:
    return StepRecord(number, 10 * number, 1.5, 2.5, 0.6, 1e-3, 0.7, 100.0)


def validation(number: int) -> ValidationRecord:
    return ValidationRecord(number, 10 * number, "held", "a", 2.0, 7.4, 50)


def skipped(number: int, skipped_steps: int) -> SkippedRecord:
    return SkippedRecord(number, 10 * number, "2 losses are NaN", skipped_steps)


def test_what_a_cut_off_run_wrote_after_its_checkpoint_is_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, last_step=0)
    first.write([step(1), step(2), validation(2), step(3), validation(3)])
    with path.open("a") as file:
        file.write('{"kind": "step", "ste')
    resumed = MetricsFile(path, last_step=2)
    resumed.write([step(3)])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("step", 1),
        ("step", 2),
        ("validation", 2),
        ("step", 3),
    ]
    assert read_validations(path) == [validation(2)]


def test_what_a_host_lost_with_its_power_is_taken_out(tmp_path: Path) -> None:
    """Blocks that were never written come back as zeros, and what follows them may be whole."""
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, last_step=0).write([step(1), validation(1)])
    kept = path.read_bytes()
    path.write_bytes(kept + b"\0" * 200 + b'"loss": 1.0}\n' + kept)
    MetricsFile(path, last_step=1)
    assert path.read_bytes() == kept


def test_a_validation_that_is_made_again_is_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    pace = PaceRecord(2, slowest_rank=1, slowest_rank_ratio=1.25)
    unmeasured = replace(step(2), all_loss=None)
    MetricsFile(path, last_step=0).write([step(1), validation(1), unmeasured, pace, validation(2), step(3)])
    assert read_step(path, 2) == [unmeasured, pace, validation(2)]
    MetricsFile(path, last_step=2, validation_is_due=True).write([replace(validation(2), loss=1.0)])
    assert read_validations(path) == [validation(1), replace(validation(2), loss=1.0)]
    assert read_step(path, 2)[:2] == [unmeasured, pace]
    assert read_step(path, 3) == []


def test_a_skipped_step_says_why_and_how_many_there_were(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, last_step=0).write([step(1), skipped(2, 1)])
    assert json.loads(path.read_text().splitlines()[1]) == {
        "kind": "skipped",
        "step": 2,
        "tokens": 20,
        "reason": "2 losses are NaN",
        "skipped_steps": 1,
    }


def test_the_file_is_json_also_where_a_loss_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, last_step=0).write([replace(validation(1), loss=math.nan, perplexity=math.inf)])
    line = json.loads(path.read_text(), parse_constant=lambda name: 1 / 0)
    assert line["loss"] is line["perplexity"] is None
    (read,) = read_validations(path)
    assert math.isnan(read.loss)
