import json
from pathlib import Path

from megaslm.observe.records import MetricsFile, StepRecord, ValidationRecord, read_validations


def step(number: int) -> StepRecord:
    return StepRecord(number, 10 * number, 1.5, 2.5, 0.6, 1e-3, 0.7, 100.0)


def validation(number: int) -> ValidationRecord:
    return ValidationRecord(number, 10 * number, "held", "a", 2.0, 7.4, 50)


def test_what_a_cut_off_run_wrote_after_its_checkpoint_is_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path, last_step=0)
    first.write([step(1), step(2), validation(2), step(3), validation(3)])
    first.close()
    with path.open("a") as file:
        file.write('{"kind": "step", "ste')
    resumed = MetricsFile(path, last_step=2)
    resumed.write([step(3)])
    resumed.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("step", 1),
        ("step", 2),
        ("validation", 2),
        ("step", 3),
    ]
    assert read_validations(path) == [validation(2)]
