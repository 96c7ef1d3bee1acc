"""The file of a report: what it may replace, and that text of the corpus is data in it, never markup."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from megaslm.errors import ConfigError
from megaslm.report.job import MARK, report
from tests.messages import Says
from tests.probed import probe_rows, write_probe
from tests.reported import write_run

HOSTILE = "</script><script>alert(1)</script><!--"


@pytest.fixture(autouse=True)
def _within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_report_replaces_a_report_only(says: Says) -> None:
    run, output = write_run(Path("run")), Path("report.html")
    report([run], output)
    first = output.read_text()
    assert MARK in first[:2000]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "validation", "step": 6, "tokens": 768, "name": "new", "domain": "b", "loss": 1.0}\n')
    report([run], output)
    assert output.read_text() != first
    output.write_text("<html>my own page</html>")
    with pytest.raises(ConfigError) as caught:
        report([run], output)
    says(str(caught.value), "report.html", "-o")
    assert output.read_text() == "<html>my own page</html>"


def test_smoke_tests_beside_runs_are_left_out(says: Says) -> None:
    smoke = Path("run.smoke")
    smoke.mkdir()
    (smoke / "smoke.json").write_text("{}")
    written = report([write_run(Path("run")), smoke], Path("report.html"))
    assert [run["name"] for run in written.document["runs"]] == ["run"]
    says("\n".join(written.notes), str(smoke))
    with pytest.raises(ConfigError):
        report([smoke], Path("report.html"))


def test_a_report_leaves_its_runs_as_they_are() -> None:
    run = write_run(Path("run"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    report([run], Path("report.html"))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("kind", ["folder", "no such folder", "closed folder"])
def test_a_place_that_cannot_be_written_is_refused(kind: str, says: Says) -> None:
    place = Path("place")
    place.mkdir()
    output = {"folder": place, "no such folder": place / "none" / "a.html", "closed folder": place / "a.html"}[kind]
    if kind == "closed folder":
        if os.geteuid() == 0:
            # To root all folders are open: a folder stands where the file is first written.
            (place / ".unfinished-a.html").mkdir()
        else:
            place.chmod(0o500)
    with pytest.raises(ConfigError) as caught:
        report([write_run(Path("run"))], output)
    says(re.sub(r"\((Is a directory|Permission denied)\)", "(REASON)", str(caught.value)), str(output))


def test_a_mistake_leaves_the_earlier_report(tmp_path: Path) -> None:
    output = Path("report.html")
    report([write_run(Path("run"))], output)
    first = output.read_bytes()
    with pytest.raises(ConfigError):
        report([Path("run"), Path("none")], output)
    assert output.read_bytes() == first
    assert not list(tmp_path.glob(".unfinished*"))


def test_markup_in_a_corpus_is_data(tmp_path: Path) -> None:
    run = write_run(Path("run"), sections={"validation": {"sets": {}}})
    words = {"</s>": 2, **{f"{HOSTILE}{number}": number for number in range(64) if number != 2}}
    (run / "model" / "tokenizer.json").write_text(Tokenizer(models.WordLevel(words, unk_token="</s>")).to_str())
    rows = probe_rows()
    write_probe(run / "probe", rows, np.ones((4, *rows.valid.shape)))
    with (run / "metrics.jsonl").open("a") as file:
        line = {"kind": "validation", "step": 6, "tokens": 768, "name": HOSTILE, "domain": HOSTILE, "loss": 1.0}
        file.write(json.dumps(line) + "\n")
    written = report([run], Path("report.html"))
    assert HOSTILE in written.document["heat"][0]["rows"][0]["pieces"][0]
    page = Path("report.html").read_text()
    assert "alert(1)" in page
    for found in re.finditer(re.escape("alert(1)"), page):
        assert "<script>" not in page[found.start() - 12 : found.start()]
    (embedded,) = re.findall(r'<script type="application/json" id="document">(.*?)</script>', page, re.DOTALL)
    assert json.loads(embedded)["heat"] == written.document["heat"]
