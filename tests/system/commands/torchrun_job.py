"""Jobs that launcher/torchrun.sh starts, which only look around: what they are, and how they are watched."""

import os
import subprocess
import time
from pathlib import Path

from tests.faults.host import MARK, processes_of, wait_until_gone
from tests.launched import ROOT

_SCRIPT = ROOT / "launcher" / "torchrun.sh"

JOB = """
import os, pathlib, signal, sys, time
rank, attempt, verb = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"], sys.argv[1]
told = []
if verb in ("stop", "stay"):
    signal.signal(signal.SIGTERM, lambda *_: told.append(rank))
pathlib.Path(f"began-{rank}-{attempt}").write_text(os.environ["WORLD_SIZE"] + " at " + os.environ["MASTER_ADDR"])
if verb == "exit":
    if sys.argv[2 + int(rank)] != "0":
        print("SomeError: why", file=sys.stderr)
    sys.exit(int(sys.argv[2 + int(rank)]))
# A host counts the attempts that its own ranks have failed in.
died = pathlib.Path("died")
if verb == "die-once" and died.exists():
    sys.exit(0)
if verb == "die-once" and rank == "1":
    while not list(pathlib.Path().glob("began-0-*")):
        time.sleep(0.05)
    died.touch()
    os.kill(os.getpid(), signal.SIGKILL)
deadline = time.monotonic() + 120
while time.monotonic() < deadline:
    time.sleep(0.05)
    # The ranks agree to stop, wherever the signal came.
    if told and verb == "stop":
        pathlib.Path("told").touch()
    if verb == "stop" and pathlib.Path("told").exists():
        sys.exit(75)
"""


def start(workplace: Path, *arguments: str, **variables: str) -> "subprocess.Popen[bytes]":
    """Starts it in that folder, which holds the job, with these variables besides."""
    settings = {"RANKS_PER_NODE": "2", "MAX_RESTARTS": "2", "CUDA_VISIBLE_DEVICES": "", MARK: str(workplace)}
    environment = {**os.environ, **settings, **variables}
    (workplace / "tmp").mkdir(exist_ok=True)
    environment["TMPDIR"] = str(workplace / "tmp")
    with (workplace / "output").open("a") as output:
        return subprocess.Popen(
            [str(_SCRIPT), *arguments], cwd=workplace, env=environment, stdout=output, stderr=output
        )


def status_of(workplace: Path, *arguments: str, **variables: str) -> int:
    """Starts it, and gives its status."""
    return ended(workplace, start(workplace, *arguments, **variables))


def ended(workplace: Path, job: "subprocess.Popen[bytes]") -> int:
    """The status of a job that comes to its end, and leaves nothing running."""
    try:
        status = job.wait(timeout=60)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"still running:\n{output(workplace)}") from None
    wait_until_gone(lambda: processes_of(str(workplace)))
    return status


def output(workplace: Path) -> str:
    """All that the jobs of this folder have said so far."""
    return (workplace / "output").read_text()


def began(workplace: Path) -> set[str]:
    """Which ranks have begun in which attempts."""
    return {path.name.removeprefix("began-") for path in workplace.glob("began-*")}


def wait_until_begun(workplace: Path, ranks: set[str]) -> None:
    """Waits for these, each with its attempt, for a minute at most."""
    deadline = time.monotonic() + 60
    while not ranks <= began(workplace):
        assert time.monotonic() < deadline, output(workplace)
        time.sleep(0.05)
