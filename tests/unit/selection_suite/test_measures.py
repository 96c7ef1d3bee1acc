"""What a run shows: costs up to the baseline's loss, the kinds of its targets, and the tables over seeds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.selection_suite.figures import Line, chart
from benchmarks.selection_suite.measures import Kept, Measures, times_cheaper
from benchmarks.selection_suite.pairs import TARGET
from benchmarks.selection_suite.tables import as_json, as_markdown, results_of, scaling_table
from benchmarks.selection_suite.texts import Document, Span
from benchmarks.selection_suite.truth import END, kinds_of_targets, write_documents
from megaslm.config.recipe import Recipe
from megaslm.dataset.rows import RowReader
from megaslm.errors import DataError
from megaslm.preparing.prepare import prepare
from megaslm.report.runs import read_runs
from megaslm.tokenizer.token_places import PlacingEncoder
from tests.messages import Says
from tests.reported import PLACE, cost_of, scored_cost, write_run

DOCUMENTS = [
    Document("quiet words first, then LOUD ONES, then quiet again", "quiet", (Span(24, 33, "loud"),)),
    Document("ALL OF THIS IS LOUD, AND ITS ÄÖÜ TOO", "loud"),
    Document("nothing but quiet words here; " * 4, "quiet"),
]


def prepared(folder: Path) -> tuple[Path, Path]:
    """A dataset of `DOCUMENTS` in rows of 8 targets, and the file of the documents."""
    texts = folder / "texts.jsonl"
    write_documents(texts, DOCUMENTS)
    settings: dict[str, Any] = {
        "name": "kinds",
        "licence": "none",
        "seq_len": 8,
        "tokenizer": {"train_sentencepiece": {"vocab_size": 310}},
        "sources": [{"domain": "corpus", "reader": "jsonl", "paths": [str(texts)]}],
        "heldout_fraction": 0,
    }
    prepare(Recipe.model_validate(settings), folder / "tokens", workers=1)
    return folder / "tokens", texts


def test_every_target_has_the_kind_of_its_characters(tmp_path: Path) -> None:
    dataset, texts = prepared(tmp_path)
    found, kinds = kinds_of_targets(dataset, "corpus", texts)
    reader = RowReader(dataset, "train", "corpus")
    tokens = reader.rows(0, len(reader))["tokens"][:, 1:]
    assert found.shape == tokens.shape
    pieces = PlacingEncoder(dataset / "tokenizer")._tokenizer
    seen = set()
    for number, token in zip(found.ravel(), tokens.ravel(), strict=True):
        piece = pieces.id_to_token(int(token))
        letters = [letter for letter in piece if letter.isalpha()] if not piece.startswith("<") else []
        if letters:
            seen.add(kinds[number])
            assert kinds[number] == ("loud" if letters[-1].isupper() else "quiet"), piece
        assert (piece == "</s>") == (kinds[number] == END)
    assert seen == {"loud", "quiet"}


def test_rows_of_other_documents_are_refused(tmp_path: Path, says: Says) -> None:
    dataset, texts = prepared(tmp_path)
    write_documents(texts, DOCUMENTS[::-1])
    with pytest.raises(DataError) as raised:
        kinds_of_targets(dataset, "corpus", texts)
    says(raised.value, str(dataset), str(texts))


def test_the_reference_counts_in_whole_or_by_the_part_of_a_run_that_shares_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clm = write_run(Path("clm"), losses=(4.0, 3.0, 2.0), cost=cost_of(seconds=60.0))
    cost = scored_cost(seconds=60.0, ratio=0.5, reference=100.0, scoring=20.0)
    slm = write_run(Path("slm"), losses=(4.0, 2.0, 1.0), cost=cost, keep_ratio="0.5")
    never = write_run(Path("never"), losses=(4.0, 3.5, 3.0), cost=cost, keep_ratio="0.5")
    baseline, fast, slow = read_runs([clm, slm, never])
    # SLM comes to CLM's last loss after 3 of 6 steps, so after 30 of 60 seconds. 120 seconds were spent before it.
    found = times_cheaper(fast, baseline, 4, PLACE)
    assert found["tokens"] == pytest.approx(2.0)
    assert found["seconds"] == pytest.approx(2.0)
    assert found["seconds_with_reference"] == pytest.approx(60 / 150)
    assert found["seconds_shared"] == pytest.approx(60 / (30 + 120 / 4))
    assert set(times_cheaper(slow, baseline, 4, PLACE).values()) == {None}
    assert set(times_cheaper(fast, None, 4, PLACE).values()) == {None}


def measures(
    arm: str,
    seed: int,
    loss: float,
    times: float | None,
    kept: tuple[float, float],
    pair: str = "pair",
    parameters: int = 1_000_000,
) -> Measures:
    names = ("tokens", "flops_shared", "flops_with_reference", "seconds_shared")
    shares = {TARGET: [1.0, kept[0]], "noise": [1.0, kept[1]]}
    return Measures(
        pair=pair,
        arm=arm,
        seed=seed,
        parameters=parameters,
        losses={"target": loss, "corpus": 2 * loss},
        curve=[(0.0, 9.0), (100.0, loss)],
        spent={"tokens": 100.0},
        before={"flops": 0.0, "seconds": 0.0},
        shared_by=1,
        times_cheaper=dict.fromkeys(names, times),
        kept=Kept([0.0, 100.0], shares, {TARGET: loss, "noise": 9.0}, {TARGET: 100, "noise": 300}),
    )


def test_arms_are_summed_up_over_their_seeds_and_compared_seed_by_seed() -> None:
    runs = [
        *(measures("clm", seed, loss, 1.0, (1.0, 1.0)) for seed, loss in ((1, 5.0), (2, 5.5), (3, 6.0))),
        *(measures("slm", seed, loss, 2.0, (0.9, 0.3)) for seed, loss in ((1, 4.5), (2, 4.7), (3, 5.8))),
        *(measures("lost", seed, 7.0, times, (0.5, 0.5)) for seed, times in ((1, None), (2, 1.5))),
    ]
    clm, slm, lost = results_of(runs)
    assert (clm.seeds, slm.seeds, lost.seeds) == ((1, 2, 3), (1, 2, 3), (1, 2))
    assert "clm" not in clm.against
    difference = slm.against["clm"].difference
    assert (difference.mean, difference.values) == (pytest.approx(-0.5), 3)
    assert slm.times_cheaper["tokens"].mean == 2.0
    assert (lost.reached, lost.times_cheaper["tokens"].mean) == (1, None)
    assert slm.kept == {TARGET: pytest.approx(0.9), "noise": pytest.approx(0.3)}
    # 90 of the 180 kept tokens are target-like; 100 of all 400.
    assert (slm.precision, clm.precision) == (pytest.approx(0.5), pytest.approx(0.25))
    stored = json.loads(json.dumps(as_json(runs, [clm, slm, lost])))
    assert stored["arms"][1]["against"]["clm"]["difference"]["mean"] == pytest.approx(-0.5)
    rows = [line.split(" | ") for line in as_markdown([clm, slm, lost]).splitlines() if line.startswith("| ")]
    assert len({len(row) for row in rows[:5]}) == 1


def test_a_chart_holds_its_points() -> None:
    drawn = chart("a < b", "x", "y", [Line("rising", [(0, 1.0), (10, 2.0)]), Line("flat", [(0, 1.5), (10, 1.5)])])
    assert drawn.count("<circle") == 4
    assert "a &lt; b" in drawn
    heights = [float(part.split('"')[0]) for part in drawn.split('cy="')[1:]]
    assert heights[0] > heights[2] > heights[1]
    assert np.isclose(heights[0] + heights[1], 2 * heights[2], atol=0.2)


def test_the_gain_is_told_by_size_and_per_doubling() -> None:
    measured = [
        measures(arm, seed, loss - 0.01 * seed, times, (0.5, 0.5), pair, size)
        for pair, size, gain, ratio in (("p@small", 250_000, 0.1, 1.5), ("p", 1_000_000, 0.3, 2.0))
        for arm, loss, times in (("clm", 5.0, 1.0), ("slm", 5.0 - gain, ratio))
        for seed in (1, 2)
    ]
    _, _, _, small, middle, slope = scaling_table(measured).split("\n")
    assert small.startswith("| p | slm | 0.25M | 2 | 0.1000 (0.1000 to 0.1000) | 1.50 ")
    assert middle.startswith("| p | slm | 1.00M | 2 | 0.3000 (0.3000 to 0.3000) | 2.00 ")
    # Two doublings for 0.2 nats and half a unit of tokens.
    assert slope.startswith("| p | slm | per doubling | 4 | 0.1000 (0.1000 to 0.1000) | 0.25 ")
    assert scaling_table([each for each in measured if each.pair == "p"]) == ""
