"""The log of a run that was told to stop, killed, and resumed each time, tells of everything once."""

import json
import signal
from pathlib import Path

import pytest
import torch

from megaslm.config.schema import RunConfig
from megaslm.errors import NonFiniteLoss
from megaslm.training.train import train
from tests.events import points_in
from tests.forks import fork_two_ranks, statuses_of
from tests.injection import faults
from tests.messages import Says, line_with
from tests.toy import SEQ_LEN, make_dataset, run_config

STEP_TOKENS = 8 * SEQ_LEN


def go_on(config: RunConfig, injected: str) -> list[int]:
    def rank() -> None:
        torch.set_num_threads(1)
        faults.arm(injected)
        train(config, resume=True)

    return statuses_of(fork_two_ranks(rank))


def test_each_step_and_validation_is_told_of_once(tmp_path: Path) -> None:
    tokens, run = tmp_path / "tokens", tmp_path / "run"
    make_dataset(tokens, {("train", "a"): [40], ("heldout", "a"): [5]})
    config = run_config(
        run,
        tokens,
        train={"total_tokens": 8 * STEP_TOKENS, "micro_batch_rows": 4},
        checkpoint={"every_tokens": 4 * STEP_TOKENS},
        validation={"every_tokens": 4 * STEP_TOKENS, "sets": {"held": {"dataset": str(tokens)}}},
        log={"every_steps": 1},
    )
    # Told in the midst of a validation, which the next attempt makes up for; that one is killed before it has saved.
    assert go_on(config, "nan@rank0:step2; term@rank1:step4:validate") == [75, 75]
    assert sorted(go_on(config, "kill@rank1:step7")) == [-signal.SIGKILL, 1]
    assert go_on(config, "nan@rank0:step7") == [0, 0]

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = {
        kind: [line["step"] for line in lines if line["kind"] == kind] for kind in ("step", "skipped", "validation")
    }
    assert told == {"step": [1, 3, 4, 5, 6, 8], "skipped": [2, 7], "validation": [0, 4, 8]}
    assert [line["skipped_steps"] for line in lines if line["kind"] == "skipped"] == [1, 2]
    shown = {tag: [step for step, _ in points] for tag, points in points_in(run).items()}
    assert shown["loss/selected"] == told["step"]
    assert shown["guard/skipped_steps"] == told["skipped"]
    assert shown["loss_validation/held/a"] == told["validation"]


def test_steps_that_were_skipped_before_a_stop_count_in_the_row_after_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], says: Says
) -> None:
    make_dataset(tmp_path / "tokens", {("train", "a"): [40]})
    config = run_config(
        tmp_path / "run",
        tmp_path / "tokens",
        train={"total_tokens": 8 * STEP_TOKENS, "micro_batch_rows": 4},
        guard={"max_skipped_steps": 3},
    )
    assert go_on(config, "nan@rank0:step4; term@rank1:step4; nan@rank0:step5") == [75, 75]
    assert go_on(config, "nan@rank0:step6") == [NonFiniteLoss.exit_status] * 2
    says.without_numbers(line_with(capfd.readouterr().err, "step 6: ", " 3 "))
