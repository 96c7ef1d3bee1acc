"""The process of test_full_log: writes a run's log on a disk that is full for a while, its standard output included."""

import subprocess
import sys
from pathlib import Path

from megaslm.engine.distributed import end_process
from megaslm.observe.console import RunConsole
from megaslm.observe.records import StepRecord
from megaslm.observe.run_log import RunLog

STEPS = 300


def main(disk: Path, *, is_mended: bool) -> None:
    console = RunConsole("run", total_steps=STEPS, done_steps=0)
    log = RunLog(
        console, disk / "metrics.jsonl", disk / "tensorboard", last_step=0, validation_is_due=False, tokens_per_step=10
    )
    for step in range(1, STEPS + 1):
        if step == STEPS and is_mended:
            subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        log.write([StepRecord(step, 10 * step, 1.5, 2.5, 0.6, 1e-3, 0.7, 100.0)])
    log.close()
    end_process(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), is_mended=sys.argv[2] == "mended")
