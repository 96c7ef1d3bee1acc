"""The rows of the heat map, and token dynamics, as the page gets them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megaslm.observe.probe_files import ProbeRows
from megaslm.report.document import MOST_PROBES, document_of
from megaslm.report.heat import heat_entry, most_rows, rows_shown
from megaslm.report.probe import probe_of
from megaslm.report.runs import read_runs
from megaslm.training.probe_selection import would_keep
from tests.messages import Says
from tests.probed import probe_rows, write_probe
from tests.reported import cost_of, kept_by_page, unpacked, write_run

PLENTY = 10_000_000


def random_losses(rows: ProbeRows, measurements: int = 4, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    # Few values, so that some tie.
    return generator.integers(0, 12, (measurements, *rows.valid.shape)).astype(np.float32) / 4 + 0.1


def write_probed(folder: Path, rows: ProbeRows, losses: np.ndarray, **changes: Any) -> Path:
    """A run with these measurements, and with what its own selection keeps of them."""
    losses = losses.astype(np.float32)
    write_run(folder, cost=cost_of(seconds=60.0), **changes)
    (run,) = read_runs([folder])
    kept = None
    if run.is_selective:
        kept = np.stack([would_keep(run.config, rows, of_step, step=1, tokens_seen=1) for of_step in losses])
    write_probe(folder / "probe", rows, losses, kept=kept)
    return folder


def heat_of(folder: Path, most_bytes: int = PLENTY) -> dict[str, Any]:
    (run,) = read_runs([folder])
    probe = probe_of(run)
    assert probe is not None
    return heat_entry(probe, most_bytes)


@pytest.mark.parametrize(
    "slm",
    [
        {},
        {"criterion": "loss"},
        {"criterion": "reference"},
        {"scope": "sequence"},
        {"max_ref_loss": 1.2},
        {"granularity": "span", "span_reach": 2},
        {"granularity": "document", "criterion": "reference"},
    ],
    ids=str,
)
def test_the_page_can_repeat_the_selection_of_the_run(tmp_path: Path, slm: dict[str, Any]) -> None:
    rows = probe_rows(rows=4, scored=True)
    rows.ref_loss[:, ::3] = 1.0  # type: ignore[index]
    rows.valid[1, 2:4] = False
    folder = write_probed(tmp_path / "run", rows, random_losses(rows), keep_ratio="0.5", sections={"slm": slm})
    heat = heat_of(folder)
    own = unpacked(heat["kept_by_run"])
    assert 0 < own.sum() < own.size
    assert np.array_equal(kept_by_page(heat) & np.stack([unpacked(row["valid"]) for row in heat["rows"]]), own)
    assert np.array_equal(unpacked(heat["checkpoints"][-1]["kept"]), own)


def test_a_plain_run_is_ranked_by_what_its_rows_have(tmp_path: Path) -> None:
    for scored, criterion in ((True, "excess"), (False, "loss")):
        rows = probe_rows(scored=scored)
        heat = heat_of(write_probed(tmp_path / criterion, rows, random_losses(rows)))
        assert (heat["criterion"], heat["keep_ratio"], heat["kept_by_run"]) == (criterion, None, None)
        assert (heat["ref_loss"] is None) == (not scored)


def test_the_pieces_of_a_row_are_its_text(tmp_path: Path) -> None:
    rows = probe_rows()
    rows.tokens[0, 3] = rows.eos_id
    rows.valid[0, 3] = False
    heat = heat_of(write_probed(tmp_path / "run", rows, random_losses(rows)))
    first = heat["rows"][0]
    assert first["first"] == " w3"
    assert first["pieces"][:4] == [" w4", " w5", "</s>", "w7"]
    assert first["new_document"] == [3]
    assert unpacked(first["valid"]).tolist() == rows.valid[0].tolist()
    assert np.allclose(unpacked(heat["checkpoints"][0]["loss"]), random_losses(rows)[0], atol=2e-3)


def test_rows_are_left_out_evenly_where_the_page_has_no_room(tmp_path: Path, says: Says) -> None:
    rows = probe_rows(rows=6, domains=("a", "b"))
    folder = write_probed(tmp_path / "run", rows, random_losses(rows, measurements=20))
    room = next(size for size in range(100, PLENTY, 100) if most_rows(rows, 12, size) == 4)
    heat = heat_of(folder, room)
    assert [(row["domain"], row["row"]) for row in heat["rows"]] == [(0, 0), (1, 1), (0, 4), (1, 5)]
    assert len(heat["checkpoints"]) == 12
    assert (heat["checkpoints"][0]["step"], heat["checkpoints"][-1]["step"]) == (0, 190)
    says(heat["note"], "4 of 6", "12 of 20")
    assert heat_of(folder)["note"] is None


def test_a_domain_with_few_rows_leaves_room_to_others() -> None:
    rows = probe_rows(rows=6, domains=("a", "b"))
    rows.domain[:] = [0, 1, 1, 1, 1, 1]
    assert rows_shown(rows, 4).tolist() == [0, 1, 3, 5]


def test_very_long_rows_get_fewer_measurements(tmp_path: Path) -> None:
    rows = probe_rows(rows=1, seq_len=40)
    heat = heat_of(write_probed(tmp_path / "run", rows, random_losses(rows, measurements=20)), 1000)
    assert len(heat["rows"]) == 1
    assert len(heat["checkpoints"]) == 3


def test_dynamics_have_classes_with_examples(tmp_path: Path) -> None:
    rows = probe_rows(rows=2, scored=True)
    losses = np.ones((4, *rows.valid.shape))
    losses[:, 0, 2] = [5.0, 4.0, 3.0, 2.0]
    folder = write_probed(tmp_path / "run", rows, losses, keep_ratio="0.5")
    (found,) = document_of(read_runs([folder]))["dynamics"]
    assert found["classes"]["H→L"]["tokens"] == 1
    (example,) = found["classes"]["H→L"]["examples"]
    assert (example["token"], example["losses"]) == (" w6", [5.0, 4.0, 3.0, 2.0])
    assert sum(one["share"] for one in found["classes"].values()) == pytest.approx(1.0)
    assert found["shares_over_time"]["steps"] == [20, 30]
    assert found["kept_share"]["H→L"] == 1.0


def test_a_probe_that_cannot_be_read_is_said_and_the_rest_is_reported(tmp_path: Path, says: Says) -> None:
    rows = probe_rows()
    young = write_probed(tmp_path / "young", rows, random_losses(rows, measurements=2))
    torn = write_probed(tmp_path / "torn", rows, random_losses(rows))
    (torn / "probe" / "step-00000020.safetensors").write_bytes(b"torn")
    wordless = write_probed(tmp_path / "wordless", rows, random_losses(rows))
    (wordless / "model" / "tokenizer.json").unlink()
    headless = write_probed(tmp_path / "headless", rows, random_losses(rows))
    (headless / "probe" / "rows.safetensors").write_bytes(b"torn")
    document = document_of(read_runs([young, torn, wordless, headless]))
    assert [one["run"] for one in document["heat"]] == ["young"]
    assert document["dynamics"] == []
    for entry in document["runs"]:
        says("\n".join(entry["notes"]).replace(str(tmp_path), "RUNS"))


def test_the_tokens_of_a_few_runs_are_shown(tmp_path: Path, says: Says) -> None:
    rows = probe_rows()
    folders = [write_probed(tmp_path / f"run{number}", rows, random_losses(rows)) for number in range(MOST_PROBES + 1)]
    document = document_of(read_runs(folders))
    assert (len(document["heat"]), len(document["dynamics"])) == (MOST_PROBES, MOST_PROBES)
    (note,) = document["notes"]
    says(note, f"run{MOST_PROBES}")
    json.dumps(document, allow_nan=False)


def test_a_long_token_takes_little_room(tmp_path: Path) -> None:
    rows = probe_rows(rows=2, scored=False)
    folder = write_probed(tmp_path / "run", rows, random_losses(rows))
    number = int(rows.tokens[0, 1])
    tokenizer = folder / "model" / "tokenizer.json"
    stored = json.loads(tokenizer.read_text())
    words = stored["model"]["vocab"]
    del words[next(word for word, found in words.items() if found == number)]
    words["W" * 10_000] = number
    tokenizer.write_text(json.dumps(stored))
    piece = heat_of(folder)["rows"][0]["pieces"][0]
    assert "WWW" in piece
    assert "10,0" in piece
    assert len(piece) < 200


def test_no_document_begins_in_padding(tmp_path: Path) -> None:
    rows = probe_rows(rows=1)
    rows.tokens[0, [2, 5, 6, 7, 8]] = rows.eos_id
    (shown,) = heat_of(write_probed(tmp_path / "run", rows, random_losses(rows)))["rows"]
    assert shown["new_document"] == [2]
