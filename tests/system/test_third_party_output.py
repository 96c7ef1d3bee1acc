"""What libraries print goes to a log; our lines, a traceback and a crash reach the terminal. In real processes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launched import ROOT

JOB = """
import ctypes, logging, os, sys, warnings
from pathlib import Path
from megaslm.cli_output import end_third_party_output
from megaslm.observe.third_party_output import diverted, keep_in
how, run = sys.argv[1], Path(sys.argv[2])
if how == "silent":
    with diverted("train"):
        pass
    assert not keep_in(run / "logs" / "rank-0.log")
    end_third_party_output(0)
    sys.exit()
print("ours before")
with diverted("train"):
    handler = logging.StreamHandler(sys.stdout)
    logging.getLogger("library").addHandler(handler)
    print("noise of an import")
logging.getLogger("library").warning("noise of a logger")
logging.getLogger("other").warning("noise of a logger without a handler")
warnings.warn("noise of a warning")
if how != "refused":
    assert keep_in(run / "logs" / "rank-0.log")
os.write(1, b"noise of C++\\n")
os.write(2, b"noise of C++\\n")
print("ours after")
print("our error", file=sys.stderr)
logging.getLogger("megaslm.storage.retries").warning("our wait")
if how == "watchdog":
    from megaslm.health.stacks import say
    say(0, "our finding")
if how == "crash":
    ctypes.string_at(0)
if how == "uncaught":
    raise KeyError("why")
end_third_party_output({"fault": 1, "refused": 2}.get(how, 0))
"""


def run(how: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", JOB, how, str(folder / "run")],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "TMPDIR": str(folder)},
    )


@pytest.mark.parametrize("how", ["done", "fault", "refused", "watchdog"])
def test_the_terminal_has_our_lines_alone(how: str, tmp_path: Path) -> None:
    job = run(how, tmp_path)
    log = tmp_path / "run" / "logs" / "rank-0.log"
    named = [f"what PyTorch and DeepSpeed printed: {log}"] if how == "fault" else []
    assert job.stdout.splitlines() == ["ours before", "ours after"]
    found = ["rank 0: our finding"] if how == "watchdog" else []
    assert job.stderr.splitlines() == ["our error", "our wait", *found, *named]
    assert list(tmp_path.glob("*.log")) == []
    if how != "refused":
        noises = ["an import", "a logger", "a logger without a handler", "a warning", "C++", "C++"]
        assert re.findall("noise of (.*)", log.read_text()) == noises


@pytest.mark.parametrize("how", ["crash", "uncaught"])
def test_a_process_that_dies_leaves_the_last_lines_on_the_terminal(how: str, tmp_path: Path) -> None:
    job = run(how, tmp_path)
    assert job.returncode == (-11 if how == "crash" else 1)
    assert ("Segmentation fault" if how == "crash" else "KeyError: 'why'") in job.stderr
    assert job.stderr.endswith("noise of C++\nnoise of C++\n")


def test_a_second_attempt_adds_to_the_log_of_the_first(tmp_path: Path) -> None:
    for _ in range(2):
        run("done", tmp_path)
    assert (tmp_path / "run" / "logs" / "rank-0.log").read_text().count("noise of an import") == 2


def test_an_empty_log_is_removed_and_the_others_stay(tmp_path: Path) -> None:
    logs = tmp_path / "run" / "logs"
    assert run("silent", tmp_path).returncode == 0
    assert not logs.exists()
    logs.mkdir(parents=True)
    (logs / "rank-1.log").write_text("noise")
    run("silent", tmp_path)
    assert [path.name for path in logs.iterdir()] == ["rank-1.log"]
