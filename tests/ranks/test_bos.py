"""Rows with BOS, from text to an export: scored, masked and trained on as any others, and told from those without."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from megaslm.config.recipe import Bos, Recipe
from megaslm.config.schema import RunConfig
from megaslm.dataset.manifest import TOKENIZER, read_manifest, write_manifest
from megaslm.dataset.rows import RowReader
from megaslm.errors import DataError
from megaslm.inspect.verify import verify
from megaslm.model.reference_model import ReferenceModel
from megaslm.preparing.prepare import prepare
from megaslm.tokenizer.tokenizer import FolderEncoder
from megaslm.training.training_data import open_training_data
from tests.forked_cli import run_megaslm
from tests.messages import Says, line_with
from tests.ranks.test_score_correctness import SEQ_LEN, VOCAB_SIZE, Text, by_contexts, record
from tests.scoring import make_reference
from tests.toy import SHAPE, run_config, write_config

BOS_ID, EOS_ID = 1, 2


@dataclass(frozen=True)
class Prepared:
    """Documents of about 40 words in rows, and a model with random weights for them."""

    root: Path
    bos: Bos

    @property
    def tokens(self) -> Path:
        return self.root / "tokens"

    @property
    def model(self) -> Path:
        return self.root / "model"

    def config(self, run: Path, **sections: dict[str, object]) -> RunConfig:
        """A run of six steps on the dataset."""
        given: dict[str, dict[str, object]] = {
            "model": {"from_scratch": {**SHAPE, "vocab_size": VOCAB_SIZE, "max_position_embeddings": SEQ_LEN}},
            "data": {"seq_len": SEQ_LEN},
            "train": {"total_tokens": 6 * 8 * SEQ_LEN, "global_batch_tokens": 8 * SEQ_LEN},
        }
        together = {name: {**given.get(name, {}), **sections.get(name, {})} for name in {*given, *sections}}
        return run_config(run, self.tokens, **together)


def prepared(root: Path, bos: Bos) -> Prepared:
    random = np.random.default_rng(0)
    words = ["the", "loss", "of", "a", "token", "</s>", "<s>", "é\n"]
    texts = [" ".join(random.choice(words, random.integers(5, 80))) for _ in range(120)]
    (root / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    recipe = {
        "name": "words",
        "licence": "CC0",
        "seq_len": SEQ_LEN,
        "bos": bos,
        "tokenizer": {"train_sentencepiece": {"vocab_size": 300}},
        "sources": [{"domain": "web", "reader": "jsonl", "paths": [str(root / "text.jsonl")]}],
        "heldout_fraction": 0.1,
    }
    prepare(Recipe.model_validate(recipe), root / "tokens", workers=1)
    tokenizer = root / "tokens" / TOKENIZER
    make_reference(root / "model", tokenizer=tokenizer, vocab_size=VOCAB_SIZE, max_position_embeddings=SEQ_LEN)
    return Prepared(root, bos)


@pytest.fixture(scope="module", params=["document", "row"])
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(tmp_path_factory.mktemp("none"), "none")


@pytest.mark.slow
def test_texts_are_those_without_bos(given: Prepared, plain: Prepared) -> None:
    ours, theirs = (RowReader(each.tokens, "train", "web") for each in (given, plain))
    rows, others = (reader.rows(0, len(reader))["tokens"] for reader in (ours, theirs))
    text = (rows[:, 1:].ravel() if given.bos == "row" else np.append(rows[0, 0], rows[:, 1:])).tolist()
    expected = np.append(others[0, 0], others[:, 1:]).tolist()
    without_bos = [token for token in text if token != BOS_ID]
    shorter = min(len(without_bos), len(expected))
    assert without_bos[:shorter] == expected[:shorter]
    assert set(without_bos[shorter:] + expected[shorter:]) <= {EOS_ID}
    assert not verify(given.tokens, workers=1).problems


@pytest.mark.slow
@pytest.mark.parametrize(("window", "stride"), [(SEQ_LEN, SEQ_LEN), (40, 24)])
@pytest.mark.parametrize("isolated", [True, False])
def test_losses_are_those_of_an_independent_loop(given: Prepared, window: int, stride: int, isolated: bool) -> None:
    manifest = read_manifest(given.tokens)
    described = record(manifest, document_isolation=isolated, window=window, stride=stride)
    model = ReferenceModel.load(given.model, described, eos_id=EOS_ID, device=torch.device("cpu"))
    lm = model._lm.lm.double()
    text = Text(given.tokens, manifest, given.model, lm, {})
    reader = RowReader(given.tokens, "train", "web")
    for number in (0, 1, len(reader) - 1):
        row = reader[number]["tokens"]
        found = model.measure(torch.from_numpy(row.astype(np.int64))[None]).losses[0].numpy()
        losses, _ = by_contexts(text, row, isolated=isolated, window=window, stride=stride)
        valid = row[:-1] != EOS_ID
        np.testing.assert_allclose(found[valid], losses[valid], rtol=1e-4, atol=1e-4)
        assert not (valid & (row[1:] == BOS_ID)).any()


@pytest.mark.slow
def test_what_is_scored_and_masked_keeps_its_bos(given: Prepared, tmp_path: Path) -> None:
    run_megaslm("score", "--reference", given.model, given.tokens, tmp_path / "scored")
    run_megaslm("mask", tmp_path / "scored", tmp_path / "masked")
    packing = read_manifest(given.tokens).packing
    for name in ("scored", "masked"):
        assert read_manifest(tmp_path / name).packing == packing
        assert not verify(tmp_path / name, workers=1).problems
    slm = {"train": {"objective": "slm"}, "slm": {"criterion": "reference", "scope": "sequence", "keep_ratio": 0.6}}
    for name in ("scored", "masked"):
        config = given.config(tmp_path / f"run-{name}", data={"train": str(tmp_path / name)}, **slm)
        run_megaslm("train", write_config(tmp_path / f"{name}.yaml", config))
    scored, masked = (steps_of(tmp_path / f"run-{name}") for name in ("scored", "masked"))
    assert [step["loss"] for step in scored] == [step["loss"] for step in masked]


def steps_of(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step"]


@pytest.mark.slow
def test_an_export_puts_bos_before_a_text_and_so_does_what_starts_from_it(given: Prepared, tmp_path: Path) -> None:
    config = given.config(tmp_path / "run", validation={"sets": {"held": {"dataset": str(given.tokens)}}})
    run_megaslm("train", write_config(tmp_path / "run.yaml", config))
    run_megaslm("export", tmp_path / "run", tmp_path / "model")
    opened = AutoTokenizer.from_pretrained(tmp_path / "model")
    (ids,) = FolderEncoder(given.tokens / TOKENIZER).encode(["the loss"])
    assert opened("the loss")["input_ids"] == [BOS_ID, *ids]
    assert AutoConfig.from_pretrained(tmp_path / "model").bos_token_id == BOS_ID
    said = run_megaslm("score", "--reference", tmp_path / "model", given.tokens, tmp_path / "scored")
    onward = given.config(tmp_path / "onward", model={"from_scratch": None, "from_run": str(tmp_path / "run")})
    said += run_megaslm("train", write_config(tmp_path / "onward.yaml", onward))
    assert "warning" not in said


def warnings_in(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("warning: ")]


@pytest.mark.slow
def test_a_model_that_expects_bos_is_warned_of_once(plain: Prepared, tmp_path: Path, says: Says) -> None:
    """By `train` where it is the start, and by `score` where it is the reference."""
    model = Path(shutil.copytree(plain.model, tmp_path / "model"))
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "add_bos_token": True}))
    config = plain.config(tmp_path / "run", model={"from_scratch": None, "from_pretrained": str(model)})
    for said in (
        run_megaslm("train", write_config(tmp_path / "run.yaml", config)),
        run_megaslm("score", "--reference", model, plain.tokens, tmp_path / "scored"),
    ):
        (warning,) = warnings_in(said)
        says(warning.replace(str(plain.root), "ROOT"), model, "`bos: document`")


@pytest.mark.slow
def test_a_model_that_expects_none_is_warned_of(given: Prepared, tmp_path: Path) -> None:
    (warning,) = warnings_in(run_megaslm("score", "--reference", given.model, given.tokens, tmp_path / "scored"))
    assert f"bos: {given.bos}" in warning


def test_rows_with_and_without_bos_are_not_trained_on_together(
    given: Prepared, plain: Prepared, tmp_path: Path, says: Says
) -> None:
    streams = {"with": {"dataset": str(given.tokens)}, "without": {"dataset": str(plain.tokens)}}
    with pytest.raises(DataError) as refused:
        open_training_data(given.config(tmp_path / "run", data={"train": None, "streams": streams}))
    message = str(refused.value).replace(str(given.root), "GIVEN").replace(str(plain.root), "PLAIN")
    says(message, f"bos {given.bos} (id 1)", "none", "data.streams.with", "data.streams.without")


@pytest.mark.slow
def test_rows_of_two_bos_are_not_trained_on_together(given: Prepared, tmp_path: Path) -> None:
    other = Path(shutil.copytree(given.tokens, tmp_path / "other"))
    write_manifest(other, read_manifest(other).model_copy(update={"bos_id": 3}))
    streams = {"one": {"dataset": str(given.tokens)}, "other": {"dataset": str(other)}}
    with pytest.raises(DataError, match=r"\(id 1\).*\(id 3\)"):
        open_training_data(given.config(tmp_path / "run", data={"train": None, "streams": streams}))


def test_validation_rows_have_bos_as_the_training_rows_do(
    given: Prepared, plain: Prepared, tmp_path: Path, says: Says
) -> None:
    config = given.config(tmp_path / "run", validation={"sets": {"held": {"dataset": str(plain.tokens)}}})
    said = run_megaslm("train", write_config(tmp_path / "run.yaml", config), expect_status=2)
    says(line_with(said, "validation.sets.held"), f"bos {given.bos} (id 1)", "none", plain.tokens)
