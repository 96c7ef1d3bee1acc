"""`python -m megaslm train` as a launcher starts it: real processes, with nothing imported beforehand."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.launched import ROOT, run_megaslm
from tests.messages import Says, line_with
from tests.toy import make_dataset, run_config, write_config
from tests.training import losses, run_training


def test_two_ranks_train_as_forked_ones_do(tmp_path: Path, says: Says) -> None:
    make_dataset(tmp_path / "tokens", {("train", "a"): [20, 15]})
    config = write_config(tmp_path / "run.yaml", run_config(tmp_path / "run", tmp_path / "tokens"))
    said = run_megaslm("train", config, world_size=2)
    assert "Traceback" not in said
    says(line_with(said, "step 6: ", tmp_path / "run" / "checkpoints"))
    run_training(run_config(tmp_path / "forked", tmp_path / "tokens"), world_size=2)
    assert losses(tmp_path / "run") == losses(tmp_path / "forked")
    assert len(losses(tmp_path / "run")) == 6


def test_ctrl_c_during_imports_ends_the_command_at_once(tmp_path: Path, says: Says) -> None:
    make_dataset(tmp_path / "tokens", {("train", "a"): [20, 15]})
    config = write_config(tmp_path / "run.yaml", run_config(tmp_path / "run", tmp_path / "tokens"))
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "megaslm", "train", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as job:
        assert job.stdout is not None
        while "loads" not in job.stdout.readline():
            pass
        job.send_signal(signal.SIGINT)
        _, errors = job.communicate(timeout=60)
    assert job.returncode == 75
    says(errors)
    assert not (tmp_path / "run").exists()
