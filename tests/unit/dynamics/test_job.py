"""From measurements to dynamics.json and trajectories.parquet, also from those that are few, broken or hostile."""

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from tokenizers import Tokenizer, models

from megaslm.config.run_files import measurement_file
from megaslm.dynamics.job import dynamics
from megaslm.dynamics.summary import DynamicsSummary
from megaslm.dynamics.view import show_dynamics
from megaslm.errors import DataError
from tests.messages import Says
from tests.probed import probe_rows, write_probe
from tests.toy import make_tokenizer

HOSTILE = ["[bold]x[/bold]", "<script>alert(1)</script>", "\x1b[31mred", "\u202eright", "new\nline", "\x00"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    make_tokenizer(folder)
    return folder


def shown(found: DynamicsSummary) -> str:
    output = StringIO()
    show_dynamics(Console(file=output, width=200, highlight=False), found)
    return output.getvalue()


def planted(n: int = 7) -> np.ndarray:
    """(n, 2, 8): of each row two tokens of every class."""
    pairs = [(6.0, 6.1), (1.0, 1.5), (4.0, 1.0), (0.5, 0.5)] * 2
    of_row = np.stack([np.linspace(first, last, n) for first, last in pairs], axis=1)
    return np.stack([of_row, of_row], axis=1)


def test_planted_classes_reach_every_file(tokenizer: Path, tmp_path: Path, says: Says) -> None:
    rows, losses = probe_rows(scored=True, domains=("a", "b")), planted()
    rows.valid[1, 4:] = False
    kept = losses > 2
    write_probe(tmp_path / "probe", rows, losses, kept=kept)
    found = dynamics(Path("run"), tmp_path / "probe", tokenizer, tmp_path / "out")
    assert {one.name: one.tokens for one in found.classes} == {"H→H": 3, "L→H": 3, "H→L": 3, "L→L": 3}
    assert found.domains == {name: dict.fromkeys(("H→H", "L→H", "H→L", "L→L"), 0.25) for name in "ab"}
    assert [at.step for at in found.over_time] == [20, 30, 40, 50, 60]
    assert found.classes[0].last_excess == pytest.approx(6.1 - 1.5)
    assert [one.kept_share for one in found.classes] == [1.0, 0.0, 0.0, 0.0]
    assert json.loads((tmp_path / "out" / "dynamics.json").read_text())["classes"][2]["change"] == pytest.approx(-3)
    table = pq.read_table(tmp_path / "out" / "trajectories.parquet")
    assert json.loads(table.schema.metadata[b"tokens_seen"]) == [0, 1000, 2000, 3000, 4000, 5000, 6000]
    assert len(table) == 12
    last = table.to_pylist()[-1]
    assert (last["row"], last["position"], last["token_id"], last["text"].strip()) == (1, 4, 16, "w16")
    assert last["loss"] == losses[:, 1, 3].astype(np.float32).tolist()
    assert last["kept"] == kept[:, 1, 3].tolist()
    says(shown(found))


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_measurements_are_refused(count: int, tokenizer: Path, tmp_path: Path, says: Says) -> None:
    write_probe(tmp_path / "probe", probe_rows(), planted()[:count])
    with pytest.raises(DataError) as refused:
        dynamics(Path("run"), tmp_path / "probe", tokenizer, tmp_path / "out")
    says(refused, f"has {count} measurement", "probe.every_tokens")
    assert not (tmp_path / "out").exists()


def test_losses_that_are_not_finite_are_left_out_and_counted(tokenizer: Path, tmp_path: Path, says: Says) -> None:
    losses = planted(6)
    losses[2, 0, 3] = np.nan
    losses[4] = np.inf
    write_probe(tmp_path / "probe", probe_rows(), losses)
    found = dynamics(Path("run"), tmp_path / "probe", tokenizer, tmp_path / "out")
    assert (found.tokens, found.non_finite_tokens, found.non_finite_steps) == (15, 1, (40,))
    assert found.stepwise is None
    says(shown(found).splitlines()[1], "40")
    losses[2] = np.nan
    losses[3] = np.nan
    losses[5] = np.nan
    write_probe(tmp_path / "probe", probe_rows(), losses)
    with pytest.raises(DataError, match="2 measurements"):
        dynamics(Path("run"), tmp_path / "probe", tokenizer, tmp_path / "out")


def test_rows_without_a_valid_target_are_refused(tokenizer: Path, tmp_path: Path, says: Says) -> None:
    rows = probe_rows()
    rows.valid[:] = False
    write_probe(tmp_path / "probe", rows, planted())
    with pytest.raises(DataError) as refused:
        dynamics(Path("run"), tmp_path / "probe", tokenizer, tmp_path / "out")
    says(refused)


def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path) -> None:
    words = {word: number for number, word in enumerate(["</s>", "</t>", "</u>", *HOSTILE])}
    words |= {f"w{number}": number for number in range(len(words), 40)}
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    Tokenizer(models.WordLevel(words, unk_token="</s>")).save(str(folder / "tokenizer.json"))
    write_probe(tmp_path / "probe", probe_rows(), planted())
    found = dynamics(Path("run"), tmp_path / "probe", folder, tmp_path / "out")
    text = shown(found)
    assert "[bold]" in text
    assert not any(sign in text for sign in ("\x1b", "\x00", "\u202e"))
    texts = pq.read_table(tmp_path / "out" / "trajectories.parquet")["text"].to_pylist()
    assert [one.strip(" ") for one in texts[:5]] == HOSTILE[1:]


def test_a_corrupt_measurement_is_named(tokenizer: Path, tmp_path: Path, says: Says) -> None:
    write_probe(tmp_path / "probe", probe_rows(), planted())
    path = measurement_file(tmp_path / "probe", 30)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError) as refused:
        dynamics(Path("run"), tmp_path / "probe", tokenizer, tmp_path / "out")
    assert str(path) in str(refused.value)
    write_probe(tmp_path / "other", probe_rows(seq_len=7), planted()[:, :, :7])
    measurement_file(tmp_path / "other", 30).rename(path)
    with pytest.raises(DataError) as refused:
        dynamics(Path("run"), tmp_path / "probe", tokenizer, tmp_path / "out")
    says(refused, "step-00000030", "(2, 7)", "(2, 8)")
