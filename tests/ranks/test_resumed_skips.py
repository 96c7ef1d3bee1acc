"""Steps that were skipped in a row before a resume count with those after it."""

import json
from pathlib import Path

from megaslm.training.train import train
from tests.forks import fork_ranks, statuses_of
from tests.injection.faults import arm
from tests.toy import make_dataset, run_config
from tests.training import LENGTHENED, changed, with_steps


def test_a_run_that_skips_on_after_a_resume_stops_at_the_limit(tmp_path: Path) -> None:
    make_dataset(tmp_path / "tokens", {("train", "a"): [20, 15]})
    config = changed(run_config(tmp_path / "run", tmp_path / "tokens"), guard={"max_skipped_steps": 3})

    def status_of(steps: int, injected: str, *, resume: bool) -> int:
        def rank() -> None:
            arm(injected)
            train(with_steps(config, steps), resume=resume, allow_changed=LENGTHENED)

        (status,) = statuses_of(fork_ranks(1, rank))
        return status

    assert status_of(3, "nan@rank0:step2; nan@rank0:step3", resume=False) == 0
    assert status_of(6, "nan@rank0:step4", resume=True) == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    skipped = [(line["step"], line["skipped_steps"]) for line in lines if line["kind"] == "skipped"]
    assert skipped == [(2, 1), (3, 2), (4, 3)]
