"""The progress of a run and of a job on a real terminal, and where there is none."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.launched import ROOT
from tests.own_text import make_tokenizer, write_corpus

COLUMNS = 80
STAYS = "slm · a line that stays"
RUN = f"""
from megaslm.observe.third_party_output import diverted
with diverted("train"):
    pass
from megaslm.observe.console import RunConsole
from megaslm.observe.records import StepRecord
console = RunConsole("slm", total_steps=14305, done_steps=0)
console.at_step(1)
console.show([StepRecord(1000, 1_048_576_000, 1.5, 2.5, 0.6, 1e-3, 0.7, 372_088.0)])
console.say({STAYS!r})
console.show([StepRecord(14305, 14305 * 1_048_576, 1.25, 2.25, 0.6, 1e-3, 0.7, 372_088.0)])
console.close()
"""


def shown(command: Sequence[str | Path] = ("-c", RUN), columns: int = COLUMNS, **variables: str) -> str:
    """What Python writes to a terminal, with its control sequences. As under a launcher, its input is no terminal."""
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR", "COLUMNS")}
    terminal, standard = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.DEVNULL,
        stdout=standard,
        stderr=standard,
        env={**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **variables},
    )
    os.close(standard)
    written = b""
    # Linux reports the end of a terminal as an error.
    with suppress(OSError):
        while piece := os.read(terminal, 1 << 16):
            written += piece
    os.close(terminal)
    assert process.wait() == 0
    return written.decode()


def test_a_terminal_has_two_lines_that_move_and_lines_that_stay() -> None:
    written = shown()
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", written)]
    assert max(map(len, lines)) <= COLUMNS
    assert STAYS in lines
    *_, bar, numbers = [line.strip() for line in lines if line.strip()]
    assert re.fullmatch(r"slm ━+ step 14,305/14,305", bar)
    assert numbers == "loss 1.2500 (60%) · all 2.2500 · 15.00B tokens · 372,088 tokens/s"
    # The cursor is hidden while the lines move, and shown at the end.
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


def test_a_narrow_terminal_cuts_the_numbers() -> None:
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", shown(columns=60))]
    assert max(len(line) for line in lines if STAYS not in line) == 60
    assert lines[-2].endswith("…") or lines[-1].endswith("…")


def test_what_a_job_has_made_is_told_below_its_bar(tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "tokenizer")
    recipe = {
        "name": "own",
        "licence": "own",
        "seq_len": 32,
        "tokenizer": {"huggingface": str(tmp_path / "tokenizer")},
        "heldout_fraction": 0.2,
        "sources": [{"domain": "web", "reader": "jsonl", "paths": [str(write_corpus(tmp_path / "web.jsonl"))]}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    written = shown(
        ["-m", "megaslm", "prepare", tmp_path / "recipe.yaml", tmp_path / "made", "--workers", "1"], columns=200
    )
    told = written[written.rindex("\x1b[") :].splitlines()
    assert [line.split(" · ")[1].split(":")[0] for line in told[-2:]] == ["train/web", "heldout/web"]


@pytest.mark.parametrize("variable", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"CI": "true"}], ids=str)
def test_elsewhere_a_line_follows_the_other(variable: dict[str, str]) -> None:
    written = shown(**variable)
    assert "\x1b" not in written
    assert [line.split(" · ")[1] for line in written.splitlines()] == [
        "step 1000/14305",
        "a line that stays",
        "step 14305/14305",
    ]
