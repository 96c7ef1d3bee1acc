"""The reports of whole runs: in metrics.jsonl, and as TensorBoard shows them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

from megaslm.slm.telemetry import POSITION_BANDS
from megaslm.training.train import train
from tests.chain import Chain
from tests.events import points_in
from tests.forks import fork_two_ranks, statuses_of
from tests.injection import faults
from tests.noted_tracker import NotedTracker
from tests.toy import SEQ_LEN, make_dataset, run_config
from tests.training import changed, run_training, with_steps

STEP_TOKENS = 8 * SEQ_LEN


def lines_of(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    return [line for line in lines if line["kind"] == kind]


def test_a_run_in_two_attempts_reports_as_one(chain: Chain, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = changed(chain.slm_config(run), probe={"every_tokens": 4 * STEP_TOKENS, "rows": 4}, log={"every_steps": 3})
    run_training(with_steps(config, 4), world_size=2)
    run_training(config, world_size=2, resume=True)

    reports, steps = lines_of(run, "report"), lines_of(run, "step")
    assert sum(report["steps"] for report in reports) == len(steps) == 8
    assert {(report["keep_ratio"], report["second_pass_ratio"]) for report in reports} == {(0.6, 0.0)}
    assert len({report["begun_at"] for report in reports}) == 1
    seconds = [report["seconds_in_steps"] for report in reports]
    assert seconds == sorted(seconds)
    assert all(0 < report["effective_time_ratio"] < 1 for report in reports)
    phases = {"data_wait", "selection", "forward", "backward", "optimizer", "other"}
    assert all(report["phase_seconds"].keys() == phases for report in reports)
    assert seconds[0] == pytest.approx(reports[0]["steps"] * sum(reports[0]["phase_seconds"].values()), abs=1e-4)
    assert all(len(report["position_ratio"]) == POSITION_BANDS for report in reports)
    cost = json.loads((run / "cost.json").read_text())["training"]
    assert reports[-1]["selected_tokens"] == cost["tokens_selected"]
    valid = sum(sum(report["excess_counts"]) for report in reports)
    assert reports[-1]["selected_tokens"] / valid == pytest.approx(0.6, abs=0.01)

    assert [save["saved_step"] for save in lines_of(run, "save")] == [4, 8]
    assert all(0 < save["halted_seconds"] < save["seconds"] for save in lines_of(run, "save"))
    probes = lines_of(run, "probe")
    assert [probe["step"] for probe in probes] == [0, 4, 8]
    assert [probe["churn"] is None for probe in probes] == [True, False, False]
    assert all(len(probe["samples"]) == 2 for probe in probes)

    events = EventMultiplexer().AddRunsFromDirectory(str(run.parent)).Reload()
    assert set(events.Runs()) == {"run", "run/tokens"}
    assert [event.step for event in events.Tensors("run", "selected_text/2")] == [0, 4, 8]
    assert [event.step for event in events.Tensors("run", "config")] == [0, 5]
    by_tokens = points_in(run / "tokens")["loss_vs_tokens/selected"]
    assert by_tokens == [(step["tokens"], pytest.approx(step["loss"])) for step in steps]


def test_a_tracker_gets_the_steps_and_is_alerted_of_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A skipped step, a step told to stop; on the first rank alone."""
    tracker = NotedTracker.in_folder(tmp_path / "tracker")
    monkeypatch.syspath_prepend(tracker.folder)
    make_dataset(tmp_path / "tokens", {("train", "a"): [40], ("heldout", "a"): [5]})
    config = run_config(
        tmp_path / "run",
        tmp_path / "tokens",
        train={"total_tokens": 8 * STEP_TOKENS, "micro_batch_rows": 4},
        validation={"every_tokens": 4 * STEP_TOKENS, "sets": {"held": {"dataset": str(tmp_path / "tokens")}}},
        log={"tracker": "trackio", "project": "rho"},
    )

    def rank() -> None:
        torch.set_num_threads(1)
        faults.arm("nan@rank0:step2; term@rank1:step4:validate")
        train(config)

    assert statuses_of(fork_two_ranks(rank)) == [75, 75]
    made = tracker.calls
    assert [call for call, _, _ in made if call != "log"] == ["init", "alert", "alert", "finish"]
    assert made[0][2]["project"] == "rho"
    assert [alert["title"] for alert in tracker.alerts] == ["run: skipped step", "run: stopped"]
    logged: dict[int, dict[str, float]] = {}
    for call, args, facts in made:
        if call == "log":
            logged.setdefault(facts["step"], {}).update(args[0])
    assert [step for step, values in logged.items() if "loss/selected" in values] == [1, 3, 4]
    assert logged[2]["guard/skipped_steps"] == 1
