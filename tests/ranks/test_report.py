"""A report of runs that were really trained, with a probe and a reference."""

import json
from pathlib import Path

import numpy as np
import pytest

from megaslm.observe.probe_files import read_measurement, read_rows
from megaslm.report.job import MARK
from tests.chain import Chain
from tests.forked_cli import run_megaslm
from tests.messages import Says
from tests.reported import kept_by_page, unpacked
from tests.toy import SEQ_LEN, write_config
from tests.training import changed

STEP_TOKENS = 8 * SEQ_LEN


def test_trained_runs_are_reported_with_their_tokens_costs_and_curves(chain: Chain, tmp_path: Path, says: Says) -> None:
    run = tmp_path / "probed"
    config = changed(chain.slm_config(run), probe={"every_tokens": 2 * STEP_TOKENS, "rows": 4})
    run_megaslm("train", write_config(tmp_path / "run.yaml", config))
    page, numbers = tmp_path / "report.html", tmp_path / "numbers.json"
    said = run_megaslm("report", chain.reference_run, run, "-o", page, "--json", numbers)
    says(said.splitlines()[0].replace(str(tmp_path), "FOLDER"))
    assert MARK in page.read_text()[:2000]
    document = json.loads(numbers.read_text())
    assert [line.strip() for line in said.splitlines()[-len(document["in_short"]) :]] == document["in_short"]
    assert len(document["in_short"]) == len(document["targets"]) + 1
    clm, slm = document["runs"]
    assert (clm["name"], slm["name"]) == (chain.reference_run.name, "probed")
    assert [one["notes"] for one in (clm, slm)] == [[], []]
    assert unpacked(slm["series"]["tokens"]).tolist() == [STEP_TOKENS * step for step in range(1, 9)]
    cost = json.loads((run / "cost.json").read_text())
    assert unpacked(slm["series"]["seconds"])[-1] == pytest.approx(cost["training"]["seconds"])
    assert unpacked(slm["series"]["selected_tokens"])[-1] == pytest.approx(cost["training"]["tokens_selected"])
    assert slm["before"]["seconds"] == pytest.approx(cost["scoring"]["seconds"] + cost["reference_training"]["seconds"])
    assert slm["before"]["flops"] > 0
    assert document["targets"][0]["baseline"] == clm["name"]
    rows = read_rows(run / "probe")
    assert rows is not None
    last = read_measurement(run / "probe", 8, rows)
    (heat,) = document["heat"]
    assert np.array_equal(unpacked(heat["checkpoints"][-1]["loss"]), last.losses)
    assert np.array_equal(unpacked(heat["kept_by_run"]), last.kept)
    assert np.array_equal(kept_by_page(heat), last.kept)
    assert document["dynamics"][0]["steps"] == [0, 2, 4, 6, 8]
