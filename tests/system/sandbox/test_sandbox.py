"""Model-written programs: whatever they do, the evaluator lives, the next is right, and nothing is left behind."""

import functools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from megaslm.errors import SandboxError
from megaslm.sandbox.result import Ending, ProgramResult
from megaslm.sandbox.sandbox import Sandbox
from megaslm.sandbox.tiers import Tier
from tests.forks import wait_until
from tests.launched import ROOT
from tests.messages import Says
from tests.system.sandbox.sandbox_outcomes import NEXT_PRINTS, OUTCOMES

TIERS = ("bubblewrap", "landlock")
NOBODY = 65534
MEMORY_BYTES = 2**30 + os.getpid()
"""A number that tells the processes of this session from those of others."""


def processes_of_this_session() -> list[str]:
    """The command lines that hold the number: those of workers and of the programs that they run."""
    lines = []
    for folder in Path("/proc").iterdir():
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f'"memory_bytes": {MEMORY_BYTES}' in line:
            lines.append(line)
    return lines


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    """Each tier that works here."""
    if problem := problem_of(request.param):
        pytest.skip(problem)
    return request.param


@functools.cache
def problem_of(tier: str) -> str | None:
    """Why a tier does not work here. One that starts and leaks is no reason to skip its tests."""
    try:
        with Sandbox(workers=1, tier=tier):  # type: ignore[arg-type]
            return None
    except SandboxError as error:
        if "self-test" in str(error):
            raise
        return str(error)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that everybody can reach, unlike pytest's own."""
    made = Path(tempfile.mkdtemp(prefix="sandbox-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(params=["as it is", pytest.param("as nobody", marks=pytest.mark.slow)])
def user(request: pytest.FixtureRequest, folder: Path) -> list[str]:
    """What stands before a command that the user runs; `folder` is then this user's."""
    if request.param == "as it is":
        return []
    if os.geteuid() != 0 or not shutil.which("setpriv") or not shutil.which("unshare"):
        pytest.skip("only root, with setpriv and unshare, becomes nobody")
    os.chown(folder, NOBODY, NOBODY)
    return as_nobody([Path(sys.base_prefix), Path(sys.prefix), ROOT])


def as_nobody(needed: list[Path]) -> list[str]:
    """Run a command as nobody, to whom the needed folders are shown even if a folder around them is closed."""
    steps = ["set -e", "mount -t tmpfs tmpfs /mnt"]
    hidden: dict[Path, list[Path]] = {}
    for path in needed:
        closed = next((each for each in reversed(path.parents) if not each.stat().st_mode & stat.S_IXOTH), None)
        if closed is not None:
            hidden.setdefault(closed, []).append(path)
    for number, (closed, paths) in enumerate(hidden.items()):
        steps += [f"mkdir /mnt/{number}", f"mount --bind {closed} /mnt/{number}", f"mount -t tmpfs tmpfs {closed}"]
        for path in paths:
            steps += [f"mkdir -p {path}", f"mount --bind /mnt/{number}/{path.relative_to(closed)} {path}"]
    steps += [f'exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups "$@"']
    return ["unshare", "--mount", "sh", "-c", "\n".join(steps), "sh"]


def test_whatever_a_program_does_the_next_is_right_and_nothing_is_left(
    tier: str, user: list[str], folder: Path
) -> None:
    ran = subprocess.run(
        [*user, sys.executable, "-m", "tests.system.sandbox.sandbox_outcomes", tier, str(folder), str(MEMORY_BYTES)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "SECRET": "a", "USER": "b"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    pairs = [[ProgramResult(**each) for each in pair] for pair in json.loads(ran.stdout)]
    wrong = {}
    for (name, expected), (found, after) in zip(OUTCOMES.items(), pairs, strict=True):
        is_right = (
            found.ending == expected.ending
            and found.stdout == expected.stdout
            and (found.error is None) == (expected.ending == Ending.DONE)
            and (not expected.errors or any(error in str(found.error) for error in expected.errors))
        )
        if not is_right or after != ProgramResult(Ending.DONE, NEXT_PRINTS, None):
            wrong[name] = (found.ending, found.stdout[:100], found.error, after)
    assert wrong == {}
    wait_until(lambda: not processes_of_this_session())
    assert [path.name for path in folder.iterdir()] == ["outside"]
    assert (folder / "outside").read_text() == "of the user"
    assert stat.S_IMODE((folder / "outside").stat().st_mode) & 0o600 == 0o600


def test_a_program_leaves_nothing_to_the_next(tier: str) -> None:
    change = "import builtins, math\nmath.pi = 3\nbuiltins.sum = None\nanswer = 4\nopen('left', 'w').write('x')"
    look = "import math, os\nprint(math.pi > 3, sum([1, 2]), 'answer' in globals(), os.path.exists('left'))"
    with Sandbox(workers=1, tier=tier) as sandbox:  # type: ignore[arg-type]
        changed, looked, again = sandbox.run([change, look, look])
    assert changed.ending == (Ending.DONE if tier == "bubblewrap" else Ending.ERROR)
    assert looked == again == ProgramResult(Ending.DONE, "True 3 False False\n", None)


def test_programs_run_side_by_side_and_results_are_in_their_order(tier: str) -> None:
    with Sandbox(workers=3, tier=tier) as sandbox:  # type: ignore[arg-type]
        assert sandbox.run([]) == []
        results = sandbox.run([f"import time\ntime.sleep({(7 - n) % 3 / 10})\nprint({n})" for n in range(20)])
        words = sandbox.run(["import time\ntime.sleep(0.2)\nprint(*{*'abcdefghijkl'})"] * 6)
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(20)]
    assert len(set(words)) == 1, "each worker orders a set in its own way"


def test_nothing_survives_an_evaluator_that_is_killed(tier: str, tmp_path: Path) -> None:
    program = "while True: pass"
    source = (
        "from megaslm.sandbox.sandbox import Sandbox\n"
        f"with Sandbox(workers=2, seconds=200, memory_gib={MEMORY_BYTES} / 2**30, tier={tier!r}) as sandbox:\n"
        f"    print(flush=True)\n    sandbox.run([{program!r}] * 2)\n"
    )
    evaluator = subprocess.Popen(
        [sys.executable, "-c", source],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
    )
    try:
        assert evaluator.stdout is not None
        evaluator.stdout.readline()
        # Each of two workers and its program; bubblewrap's own process beside them.
        wait_until(lambda: len(processes_of_this_session()) >= (6 if tier == "bubblewrap" else 4))
    finally:
        evaluator.kill()
        evaluator.communicate()
    wait_until(lambda: not processes_of_this_session())
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_is_killed_is_replaced_and_its_program_tried_again(tier: str) -> None:
    with Sandbox(workers=1, tier=tier) as sandbox:  # type: ignore[arg-type]
        (worker,) = sandbox._workers
        os.killpg(worker._process.pid, signal.SIGKILL)
        assert sandbox.run(["print(1)"]) == [ProgramResult(Ending.DONE, "1\n", None)]
        threading.Timer(0.5, os.killpg, (worker._process.pid, signal.SIGKILL)).start()
        program = "import time\ntime.sleep(2)\nprint(1)"
        assert sandbox.run([program]) == [ProgramResult(Ending.DONE, "1\n", None)]


def test_a_program_ends_with_its_worker(tier: str) -> None:
    with Sandbox(workers=1, seconds=200, memory_gib=MEMORY_BYTES / 2**30, tier=tier) as sandbox:  # type: ignore[arg-type]
        (worker,) = sandbox._workers
        idle = len(processes_of_this_session())
        worker.send(0, "import time\ntime.sleep(100)")
        wait_until(lambda: len(processes_of_this_session()) > idle)
        os.killpg(worker._process.pid, signal.SIGKILL)
        wait_until(lambda: not processes_of_this_session())


def test_landlock_takes_the_place_of_bubblewrap_where_no_namespace_can_be_made() -> None:
    if problem := problem_of("landlock"):
        pytest.skip(problem)
    if os.geteuid() != 0:
        pytest.skip("only root forbids namespaces")
    source = (
        "from megaslm.sandbox.sandbox import Sandbox\n"
        "with Sandbox(workers=1) as sandbox:\n    print(sandbox.describe(), sandbox.run(['print(1)'])[0].stdout)\n"
    )
    ran = in_python(source, without_namespaces=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith(" 1\n\n")
    assert ran.stdout.startswith("sandbox: Landlock")
    assert "bubblewrap" in ran.stdout


def test_without_bubblewrap_and_landlock_programs_are_refused_unless_they_may_be_unsafe(says: Says) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root forbids namespaces")
    source = (
        "import struct\nfrom megaslm.sandbox import confinement as c\nfrom megaslm.sandbox.sandbox import Sandbox\n"
        # Landlock's calls are answered as by a kernel without it.
        "c._filter = lambda pid: [(c._LOAD, 0, 0, 0), (c._EQUAL, 0, 1, 444), (c._RETURN, 0, 0, c._FAIL | 38),\n"
        "    (c._RETURN, 0, 0, c._ALLOW)]\n"
        "c.filter_system_calls()\n"
        "with Sandbox(workers=1, tier=TIER) as sandbox:\n    print(sandbox.describe())\n"
        "    print(sandbox.run(['print(1)'])[0].stdout)"
    )
    refused = in_python(source.replace("TIER", "'auto'"), without_namespaces=True)
    assert refused.returncode == 1
    message = refused.stderr.splitlines()[-1]
    assert "SandboxError" in message
    assert re.search(r"bubblewrap.*landlock.*OSError: \[Errno 38\]", message)
    unsafe = in_python(source.replace("TIER", "'unsafe'"), without_namespaces=True)
    description, answer, *_ = unsafe.stdout.splitlines()
    says(description)
    assert answer == "1"


def test_a_tier_that_leaks_is_not_used(monkeypatch: pytest.MonkeyPatch, says: Says) -> None:
    if problem := problem_of("landlock"):
        pytest.skip(problem)
    leaking = Tier("landlock", "all files readable", readable=("/",))
    monkeypatch.setattr("megaslm.sandbox.sandbox.tiers", lambda wanted: [leaking])
    with pytest.raises(SandboxError) as refusal, Sandbox(workers=1):
        pass
    says(refusal, "landlock", "read a file of yours")


def in_python(source: str, *, without_namespaces: bool) -> "subprocess.CompletedProcess[str]":
    """Run Python, if so in a user namespace in which no other can be made."""
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces\nexec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh"] if without_namespaces else []
    return subprocess.run(
        [*prefix, sys.executable, "-c", source],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
