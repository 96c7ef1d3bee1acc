import json
import math
from dataclasses import replace
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megaslm.observe.records import (
    MetricsFile,
    PaceRecord,
    SkippedRecord,
    StepRecord,
    ValidationRecord,
    read_step,
    read_validations,
)
from megaslm.observe.tensorboard import TensorBoard


def step(number: int) -> StepRecord:
    return StepRecord(number, 10 * number, 1.5, 2.5, 0.6, 1e-3, 0.7, 100.0)


def validation(number: int) -> ValidationRecord:
    return ValidationRecord(number, 10 * number, "held", "a", 2.0, 7.4, 50)


def skipped(number: int, skipped_steps: int) -> SkippedRecord:
    return SkippedRecord(number, 10 * number, "2 losses are NaN", skipped_steps)


def scalars_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_a_step_tells_of_its_selection_where_there_was_one(tmp_path: Path) -> None:
    selective = replace(step(1), threshold=0.25, excess_quantiles={"p50": 0.5}, domain_ratio={"a": 0.7, "b": 0.4})
    unmeasured = replace(step(2), all_loss=None, domain_tokens={"web/a": 48}, domain_passes={"web/a": 1.5})
    TensorBoard(tmp_path, hidden_from=0).write([selective, unmeasured])
    tags = {tag: [number for number, _ in values] for tag, values in scalars_of(tmp_path).items()}
    assert tags["selection/threshold"] == tags["selection/excess_p50"] == [1]
    assert tags["selection_ratio/a"] == tags["selection_ratio/b"] == [1]
    assert tags["loss/all"] == [1]
    assert tags["train/selected_ratio"] == [1, 2]
    assert tags["tokens_of_domain/web/a"] == tags["passes_of_domain/web/a"] == [2]


def test_the_losses_are_what_tensorboard_opens_with(tmp_path: Path) -> None:
    told = replace(step(1), threshold=0.25, domain_ratio={"a": 0.7}, domain_tokens={"a": 48}, domain_passes={"a": 1.5})
    TensorBoard(tmp_path, hidden_from=0).write([told, validation(1), PaceRecord(1, 0, 1.0)])
    groups = sorted({tag.partition("/")[0] for tag in scalars_of(tmp_path)})
    assert groups[:2] == ["loss", "loss_validation"]


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
    TensorBoard(tmp_path, hidden_from=0).write([step(1), skipped(2, 1), skipped(4, 2)])
    assert scalars_of(tmp_path)["guard/skipped_steps"] == [(2, 1.0), (4, 2.0)]


def test_the_file_is_json_also_where_a_loss_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, last_step=0).write([replace(validation(1), loss=math.nan, perplexity=math.inf)])
    line = json.loads(path.read_text(), parse_constant=lambda name: 1 / 0)
    assert line["loss"] is line["perplexity"] is None
    (read,) = read_validations(path)
    assert math.isnan(read.loss)


def test_tensorboard_hides_what_a_cut_off_run_wrote_after_its_checkpoint(tmp_path: Path) -> None:
    """Also where it begins anew, and what it wrote at step 0."""
    TensorBoard(tmp_path, hidden_from=0).write([validation(0), step(1), step(2), step(3)])
    TensorBoard(tmp_path, hidden_from=3).write([replace(step(3), loss=9.0)])
    assert scalars_of(tmp_path)["loss/selected"] == [(1, 1.5), (2, 1.5), (3, 9.0)]
    TensorBoard(tmp_path, hidden_from=0).write([replace(validation(0), loss=9.0), replace(step(1), loss=8.0)])
    assert scalars_of(tmp_path)["loss/selected"] == [(1, 8.0)]
    assert scalars_of(tmp_path)["loss_validation/held/a"] == [(0, 9.0)]


def test_tensorboard_reads_what_was_begun_within_a_second_in_its_order(tmp_path: Path) -> None:
    for number in range(1, 13):
        TensorBoard(tmp_path, hidden_from=number).write([step(number)])
    assert [number for number, _ in scalars_of(tmp_path)["loss/selected"]] == list(range(1, 13))


def test_tensorboard_takes_numbers_beyond_float32(tmp_path: Path) -> None:
    TensorBoard(tmp_path, hidden_from=0).write([replace(validation(1), perplexity=math.exp(700.0))])
    assert scalars_of(tmp_path)["perplexity/held/a"] == [(1, math.inf)]
