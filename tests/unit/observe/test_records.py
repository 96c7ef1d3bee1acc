import json
from dataclasses import replace
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megaslm.observe.records import MetricsFile, StepRecord, ValidationRecord, read_validations
from megaslm.observe.tensorboard import TensorBoard


def step(number: int) -> StepRecord:
    return StepRecord(number, 10 * number, 1.5, 2.5, 0.6, 1e-3, 0.7, 100.0)


def validation(number: int) -> ValidationRecord:
    return ValidationRecord(number, 10 * number, "held", "a", 2.0, 7.4, 50)


def test_a_step_tells_of_its_selection_where_there_was_one(tmp_path: Path) -> None:
    selective = replace(step(1), threshold=0.25, excess_quantiles={"p50": 0.5}, domain_ratio={"a": 0.7, "b": 0.4})
    unmeasured = replace(step(2), all_loss=None, domain_tokens={"web/a": 48}, domain_passes={"web/a": 1.5})
    writer = TensorBoard(tmp_path, last_step=0)
    writer.write([selective, unmeasured])
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert tags["selection/threshold"] == tags["selection/excess_p50"] == [1]
    assert tags["selection_ratio/a"] == tags["selection_ratio/b"] == [1]
    assert tags["train/loss_all"] == [1]
    assert tags["train/selected_ratio"] == [1, 2]
    assert tags["domain_tokens/web/a"] == tags["domain_passes/web/a"] == [2]


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
