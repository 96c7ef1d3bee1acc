"""The command of a dry run, and which of its lines are told."""

from pathlib import Path

from megaslm.doctor.two_steps import DryRun, of_ranks

OF_TORCHRUN = """\
W1130 13:18:52.101000 77 site-packages/torch/distributed/run.py:852] Setting OMP_NUM_THREADS
train · a smoke test
ConfigError: train.lr = 0: must be above 0
W1130 13:18:55.101000 77 site-packages/torch/distributed/elastic/multiprocessing/api.py:1010] Sending SIGTERM
E1130 13:18:55.101000 77 site-packages/torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: 2)
Traceback (most recent call last):
  File "run.py", line 1, in <module>
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
"""


def test_the_last_words_are_those_of_the_ranks() -> None:
    lines = OF_TORCHRUN.splitlines()
    assert of_ranks(lines) == lines[1:3]
    own = ["Traceback (most recent call last):", '  File "torch/distributed/elastic/a.py"', "RuntimeError: a"]
    assert of_ranks(own) == own


def test_overrides_come_before_the_folder_of_the_steps() -> None:
    overrides = ("train.lr=1e-3", "run_dir=runs/mine")
    alone = DryRun(Path("run.yaml"), overrides, "runs/mine.doctor", Path("runs/mine.doctor.smoke"), 1).command()
    assert alone[1:5] == ["-m", "megaslm", "train", "run.yaml"]
    assert alone[-6:] == ["--set", "train.lr=1e-3", "--set", "run_dir=runs/mine", "--set", "run_dir=runs/mine.doctor"]
    several = DryRun(Path("run.yaml"), overrides, "runs/mine.doctor", Path("runs/mine.doctor.smoke"), 4).command()
    assert "--nproc-per-node=4" in several
    assert several[-len(alone[1:]) :] == alone[1:]
