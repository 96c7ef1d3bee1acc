"""What the server shows that README names, asked as a browser asks it; it runs while a run is cut off and resumed."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest

from megaslm.observe.records import PaceRecord, ProbeRecord, Record, SkippedRecord, StepRecord, ValidationRecord
from megaslm.observe.tensorboard import TensorBoard
from tests.forks import wait_until

Steps = dict[str, list[int]]
SAMPLE = "selected_text/1"
TAGS = ("loss/selected", "loss_validation/held/a", "guard/skipped_steps", "speed/slowest_rank_ratio")
open_url = build_opener(ProxyHandler({})).open


def step(number: int) -> StepRecord:
    return StepRecord(number, 10 * number, 1.5, 2.5, 0.6, 1e-3, 0.7, 100.0)


def validation(number: int) -> ValidationRecord:
    return ValidationRecord(number, 10 * number, "held", "a", 2.0, 7.5, 50)


def probe(number: int) -> ProbeRecord:
    return ProbeRecord(number, 10 * number, None, [{"domain": "web", "row": 3, "stretches": ["one ", "two"]}])


@contextmanager
def server(logdir: Path, *options: str) -> Iterator[str]:
    """TensorBoard at a port that is free; gives its address."""
    words = ["-m", "tensorboard.main", "--logdir", str(logdir), "--port", "0", "--reload_interval", "1", *options]
    with subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if address := re.search(r"http://localhost:\d+/", line):
                    yield address[0]
                    return
            raise AssertionError("".join(said))
        finally:
            process.terminate()


def steps_shown(address: str, run: str) -> Steps:
    """The steps at which a tag has points, of the tags that have any."""

    def ask(what: str, **query: str) -> dict[str, dict[str, object]] | list[tuple[float, int, float]]:
        with open_url(f"{address}data/plugin/scalars/{what}?{urlencode(query)}", timeout=60) as answer:
            return json.load(answer)

    def texts(tag: str) -> list[int]:
        with open_url(f"{address}data/plugin/text/text?{urlencode({'tag': tag, 'run': run})}", timeout=60) as answer:
            return [text["step"] for text in json.load(answer)]

    known = ask("tags").get(run, {})
    assert all(tag["description"] for tag in known.values())
    shown = {tag: [point[1] for point in ask("scalars", tag=tag, run=run)] for tag in TAGS if tag in known}
    shown[SAMPLE] = texts(SAMPLE)
    return {tag: steps for tag, steps in shown.items() if steps}


@pytest.mark.parametrize("options", [(), pytest.param(("--load_fast=false",), marks=pytest.mark.slow)])
def test_the_server_shows_nothing_that_was_taken_back(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Neither where it has read it before, nor where it begins to read."""
    run = tmp_path / "run" / "tensorboard"

    def shows(expected: Steps, name: str = "run/tensorboard") -> None:
        wait_until(lambda: steps_shown(address, name) == expected)

    cut_off: list[Record] = [
        *(validation(0), probe(0), step(1), PaceRecord(1, 0, 1.0), step(2), step(3), step(4), PaceRecord(4, 1, 1.5)),
        *(validation(4), probe(4), SkippedRecord(5, 50, "a loss is NaN", 1), step(6), step(7), validation(8)),
    ]
    TensorBoard(run, first_step=0, tokens_per_step=10).write(cut_off)
    with server(tmp_path, *options) as address:
        loss, validated, skipped, pace = TAGS
        shows({loss: [1, 2, 3, 4, 6, 7], validated: [0, 4, 8], skipped: [5], pace: [1, 4], SAMPLE: [0, 4]})
        resumed = TensorBoard(run, first_step=4, tokens_per_step=10)
        resumed.write([])
        kept = {loss: [1, 2, 3], validated: [0], pace: [1], SAMPLE: [0]}
        shows(kept)
        shutil.copytree(run, tmp_path / "read-afterwards")
        shows(kept, "read-afterwards")
        resumed.write([step(4), step(5), SkippedRecord(6, 60, "a loss is NaN", 1)])
        shows({**kept, loss: [1, 2, 3, 4, 5], skipped: [6]})
        # Begun anew, as after it was killed before its first checkpoint.
        TensorBoard(run, first_step=0, tokens_per_step=10).write([validation(0)])
        shows({validated: [0]})
