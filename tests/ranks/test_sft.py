"""Fine-tuning on conversations: only the targets that the target mask leaves are trained on, scored and counted."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from megaslm.config.schema import RunConfig
from megaslm.dataset.manifest import read_manifest
from megaslm.dataset.rows import RowReader, Rows, unpack_mask
from megaslm.dataset.score_summary import read_scores
from megaslm.errors import DataError
from megaslm.inspect.verify import verify
from megaslm.observe.records import read_validations
from megaslm.scoring.mask import mask_rule
from megaslm.scoring.mask_job import MaskRequest, mask
from megaslm.training.data_checks import check_scored
from megaslm.training.step_rows import rows_of_step
from megaslm.training.training_data import open_training_data
from tests.forked_cli import run_megaslm
from tests.messages import Says
from tests.ranks.test_train import steps_of
from tests.scoring import make_reference, run_job, task_of
from tests.toy import EOS_ID, SEQ_LEN, make_dataset, run_config, write_config
from tests.training import run_training

STEPS = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations, a model, and the conversations scored by the model."""
    folder = tmp_path_factory.mktemp("sft")
    rows = {("train", "a"): [20, 15], ("train", "b"): [30], ("heldout", "a"): [5]}
    make_dataset(folder / "tokens", rows, target_mask=True)
    make_dataset(folder / "texts", rows)
    make_reference(folder / "model")
    run_job(2, task_of(folder / "model", folder / "tokens", folder / "scored", entropy=True))
    return folder


def config_of(root: Path, run: Path, dataset: str = "tokens", **sections: dict[str, object]) -> RunConfig:
    """A run that hardly learns, so that all its losses are those of the model that it starts from."""
    settings: dict[str, dict[str, object]] = {
        "model": {"from_scratch": None, "from_pretrained": str(root / "model"), "document_isolation": False},
        "train": {
            "objective": "sft",
            "total_tokens": STEPS * 8 * SEQ_LEN,
            "micro_batch_rows": 2,
            "lr": 1e-30,
            "weight_decay": 0.0,
        },
        "log": {"every_steps": 1},
    }
    merged = {name: {**settings.get(name, {}), **sections.get(name, {})} for name in {**settings, **sections}}
    return run_config(run, root / dataset, **merged)


def labelled(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (n, L+1), and the labels that plain transformers takes: −100 where a token is not trained on."""
    tokens = torch.from_numpy(rows["tokens"].astype(np.int64))
    labels = tokens.clone()
    labels[:, 0] = -100
    labels[:, 1:][torch.from_numpy(rows["target_mask"]) == 0] = -100
    return tokens, labels


def plain_loss(root: Path, rows: Rows) -> float:
    """The loss of plain transformers over all rows at once."""
    tokens, labels = labelled(rows)
    with torch.no_grad():
        return float(AutoModelForCausalLM.from_pretrained(root / "model")(input_ids=tokens, labels=labels).loss)


def rows_named(dataset: Path, names: list[str]) -> Rows:
    read = [RowReader(dataset, "train", domain)[int(row)] for domain, _, row in (name.partition(":") for name in names)]
    return {column: np.stack([row[column] for row in read]) for column in read[0]}


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_loss_is_that_of_plain_transformers_with_labels(root: Path, tmp_path: Path, world_size: int) -> None:
    config = config_of(root, tmp_path / "run", validation={"sets": {"held": {"dataset": str(root / "tokens")}}})
    run_training(config, world_size=world_size)
    steps = steps_of(tmp_path / "run")
    assert len(steps) == STEPS
    for step in steps:
        rows = rows_named(root / "tokens", rows_of_step(tmp_path / "run", int(step["step"])).rows)
        assert step["loss"] == pytest.approx(plain_loss(root, rows), rel=1e-5)
        assert (step["selected_ratio"], step["all_loss"]) == (1, pytest.approx(step["loss"]))
    held = RowReader(root / "tokens", "heldout", "a")
    rows = held.rows(0, len(held))
    (first, *_) = read_validations(tmp_path / "run" / "metrics.jsonl")
    assert first.targets == rows["target_mask"].sum()
    assert first.loss == pytest.approx(plain_loss(root, rows), rel=1e-5)
    cost = json.loads((tmp_path / "run" / "cost.json").read_text())["training"]
    names = [name for step in range(1, STEPS + 1) for name in rows_of_step(tmp_path / "run", step).rows]
    assert cost["tokens_selected"] == rows_named(root / "tokens", names)["target_mask"].sum()


def test_slm_that_keeps_everything_is_sft_bit_for_bit(root: Path, tmp_path: Path) -> None:
    for name, objective in (("sft", "sft"), ("slm", "slm")):
        train = {"objective": objective, "lr": 1e-2, "micro_batch_rows": 8}
        model = {"document_isolation": True}
        config = config_of(root, tmp_path / name, "scored", train=train, model=model, slm={"keep_ratio": 1})
        run_training(config)
    assert steps_of(tmp_path / "sft") == steps_of(tmp_path / "slm")


@pytest.mark.parametrize(("scope", "criterion"), [("batch", "excess"), ("sequence", "reference")])
def test_slm_ranks_among_the_targets_that_are_left(root: Path, tmp_path: Path, scope: str, criterion: str) -> None:
    """Of each row's or step's N trained targets, ⌊k·N + ½⌋ are selected: of all targets it would be twice as many."""
    slm = {"keep_ratio": 0.5, "scope": scope, "criterion": criterion}
    config = config_of(
        root, tmp_path / "run", "scored", train={"objective": "slm"}, model={"document_isolation": True}, slm=slm
    )
    run_training(config, world_size=2)
    for step in steps_of(tmp_path / "run"):
        rows = rows_named(root / "tokens", rows_of_step(tmp_path / "run", int(step["step"])).rows)
        counts = rows["target_mask"].sum(axis=1, dtype=np.int64)
        groups = counts if scope == "sequence" else counts.sum(keepdims=True)
        assert step["selected_ratio"] == pytest.approx(float(((groups + 1) // 2).sum() / counts.sum()))


def test_a_score_keeps_the_mask_and_counts_what_it_leaves(root: Path) -> None:
    scored = read_manifest(root / "scored")
    assert (scored.kind, scored.target_mask) == ("scored", True)
    summary = read_scores(root / "scored")
    assert summary is not None
    for split, domain in (("train", "a"), ("train", "b"), ("heldout", "a")):
        of_tokens, of_scores = (RowReader(root / name, split, domain) for name in ("tokens", "scored"))
        before, after = (reader.rows(0, len(reader)) for reader in (of_tokens, of_scores))
        assert np.array_equal(before["target_mask"], after["target_mask"])
        assert not after["ref_loss"][after["target_mask"] == 0].any()
        assert (after["ref_loss"][after["target_mask"] == 1] > 0).all()
        found = summary.of_domain(split, domain)
        losses = after["ref_loss"][after["target_mask"] == 1].astype(np.float64)
        assert (found.targets, found.mean) == (len(losses), pytest.approx(losses.mean()))
    for part in summary.parts:
        assert sum(by.targets for by in part.by) == part.statistics.targets
    assert not verify(root / "scored").problems


def test_a_mask_selects_among_the_targets_that_are_left(root: Path, tmp_path: Path) -> None:
    mask(MaskRequest(root / "scored", tmp_path / "masked", mask_rule("reference", "0.5", None)))
    reader = RowReader(tmp_path / "masked", "train", "a")
    rows = reader.rows(0, len(reader))
    selected = unpack_mask(rows["selected"], SEQ_LEN)
    assert not (selected & (rows["target_mask"] == 0)).any()
    counts = rows["target_mask"].sum(axis=1, dtype=np.int64)
    assert np.array_equal(selected.sum(axis=1), (counts + 1) // 2)
    assert not verify(tmp_path / "masked").problems
    # Its rows are selected again by the reference at hand, among the same targets.
    slm = {"criterion": "reference", "scope": "sequence", "keep_ratio": "0.5", "reference": str(root / "model")}
    config = config_of(root, tmp_path / "run", train={"objective": "slm"}, model={"document_isolation": True}, slm=slm)
    config = config.model_copy(update={"data": config.data.model_copy(update={"train": str(tmp_path / "masked")})})
    assert check_scored(config, open_training_data(config), torch.device("cpu"))


def test_stored_losses_are_compared_where_targets_are_left(root: Path, tmp_path: Path) -> None:
    slm = {"reference": str(root / "model")}
    model = {"document_isolation": True}
    config = config_of(root, tmp_path / "run", "scored", train={"objective": "slm"}, model=model, slm=slm)
    assert check_scored(config, open_training_data(config), torch.device("cpu"))


@pytest.mark.parametrize(("objective", "dataset"), [("sft", "texts"), ("clm", "tokens")])
def test_an_objective_without_its_targets_is_refused(
    root: Path, tmp_path: Path, objective: str, dataset: str, says: Says
) -> None:
    config = config_of(root, tmp_path / "run", dataset, train={"objective": objective})
    with pytest.raises(DataError) as refused:
        open_training_data(config)
    says(refused, f"train.objective {objective}", "data.train", dataset)


def test_texts_and_conversations_of_two_recipes_are_refused(root: Path, tmp_path: Path, says: Says) -> None:
    streams = {name: {"dataset": str(root / name)} for name in ("tokens", "texts")}
    config = config_of(root, tmp_path / "run", data={"train": None, "streams": streams}, train={"objective": "slm"})
    with pytest.raises(DataError) as refused:
        open_training_data(config)
    says(refused, "data.streams.tokens", "target_mask")


def test_a_smoke_test_and_the_shown_run_name_the_objective(root: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "sft.yaml", config_of(root, tmp_path / "run", guard={"dry_run": True}))
    assert "passed" in run_megaslm("train", config, "--smoke", "--smoke-steps", "2", world_size=2)
    run_megaslm("train", config, world_size=2)
    assert "sft" in run_megaslm("inspect", tmp_path / "run")


def test_eos_is_trained_on_where_the_mask_leaves_it(root: Path) -> None:
    """The datasets of these tests have such targets, and excluded ones, in every domain."""
    for domain in ("a", "b"):
        reader = RowReader(root / "tokens", "train", domain)
        rows = reader.rows(0, len(reader))
        is_eos = (rows["tokens"][:, 1:] == EOS_ID) & (rows["tokens"][:, :-1] != EOS_ID)
        assert set(np.unique(rows["target_mask"][is_eos])) == {0, 1}
