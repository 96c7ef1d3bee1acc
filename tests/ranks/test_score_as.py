"""Losses of further references as columns of their own: stored on any ranks, kept by other verbs, named by criteria."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from megaslm.config.schema import DataSection
from megaslm.dataset.manifest import Reference, RunStep, read_manifest, write_manifest
from megaslm.dataset.rows import RowReader
from megaslm.inspect.domain_weights import SMOOTHING
from tests.chain import Chain
from tests.columns import write_column
from tests.forked_cli import run_megaslm
from tests.messages import Says, line_with
from tests.ranks.test_attach import column_of
from tests.ranks.test_selection_runs import changed, steps_of
from tests.toy import place_of, write_config


@pytest.fixture(scope="module")
def history(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the chain's run, after it."""
    folder = tmp_path_factory.mktemp("history") / "history"
    run_megaslm("export", chain.slm_run, folder)
    return folder


@pytest.fixture(scope="module")
def dataset(chain: Chain, history: Path) -> Path:
    """The scored dataset with two further columns: `history`, and `again`, by the reference of `ref_loss`."""
    folder = history.parent
    run_megaslm("score", "--as", "history", "--reference", history, chain.scored, folder / "one", world_size=2)
    run_megaslm("score", "--as", "again", "--reference", chain.reference, folder / "one", folder / "two")
    return folder / "two"


def test_each_column_is_what_a_scored_dataset_of_its_own_would_hold(
    chain: Chain, history: Path, dataset: Path, tmp_path: Path
) -> None:
    run_megaslm("score", "--reference", history, chain.tokens, tmp_path / "scored")
    alone, manifest = read_manifest(tmp_path / "scored"), read_manifest(dataset)
    assert np.array_equal(column_of(dataset, "history"), column_of(tmp_path / "scored", "ref_loss"))
    for name in ("ref_loss", "again"):
        assert np.array_equal(column_of(dataset, name), column_of(chain.scored, "ref_loss"))
    assert not np.array_equal(column_of(dataset, "history"), column_of(dataset, "again"))
    assert manifest.losses["history"] == alone.reference
    assert manifest.losses["again"] == manifest.reference == read_manifest(chain.scored).reference
    assert (manifest.kind, manifest.number_columns) == ("scored", ("ref_loss", "history", "again"))
    assert (dataset / "scores.json").read_bytes() == (chain.scored / "scores.json").read_bytes()
    costs = [json.loads((folder / "cost.json").read_text())["scoring"] for folder in (chain.scored, dataset)]
    assert costs[1]["rank_seconds"] > costs[0]["rank_seconds"]
    for split, domains in manifest.splits.items():
        for domain, share in domains.items():
            theirs = alone.splits[split][domain].parts
            for part, other in zip(share.parts, theirs, strict=True):
                assert part.hashes == other.hashes
                assert dict(part.losses_sha256)["history"] == other.ref_loss_sha256


def test_any_ranks_and_shares_write_the_same(chain: Chain, history: Path, dataset: Path, tmp_path: Path) -> None:
    command = ("score", "--as", "history", "--reference", history, chain.scored)
    run_megaslm(*command, tmp_path / "alone")
    run_megaslm(*command, tmp_path / "shares", "--share", "2/2")
    # What a share has left is scored by the plain job.
    assert not (tmp_path / "shares" / "manifest.json").exists()
    run_megaslm(*command, tmp_path / "resumed", "--share", "1/2")
    run_megaslm(*command, tmp_path / "resumed", world_size=2)
    run_megaslm(*command, tmp_path / "shares", "--share", "1/2")
    run_megaslm(*command, tmp_path / "shares", "--finish")
    expected = read_manifest(dataset.with_name("one"))
    for name in ("alone", "shares", "resumed"):
        assert read_manifest(tmp_path / name) == expected
    before = (tmp_path / "alone" / "manifest.json").stat().st_mtime_ns
    run_megaslm(*command, tmp_path / "alone")
    assert (tmp_path / "alone" / "manifest.json").stat().st_mtime_ns == before


def test_other_verbs_show_check_and_keep_it(dataset: Path, chain: Chain, tmp_path: Path) -> None:
    said = run_megaslm("inspect", dataset)
    assert "history" in line_with(said, "losses of history")
    run_megaslm("verify", dataset)
    run_megaslm("mask", dataset, tmp_path / "masked")
    file = write_column(tmp_path / "column.parquet", dataset, {"row": [1], "position": [2], "value": [0.5]})
    run_megaslm("attach", dataset, file, "--as", "weight", "--out", tmp_path / "weighted")
    for name in ("masked", "weighted"):
        assert np.array_equal(column_of(tmp_path / name, "history"), column_of(dataset, "history"))
        run_megaslm("verify", tmp_path / name)
    broken = Path(shutil.copytree(dataset, tmp_path / "broken"))
    manifest = read_manifest(broken)
    share = manifest.splits["train"]["b"]
    parts = [
        part.model_copy(update={"losses_sha256": (("history", "0" * 64), part.losses_sha256[1])})
        for part in share.parts
    ]
    splits = {
        **manifest.splits,
        "train": {**manifest.splits["train"], "b": share.model_copy(update={"parts": tuple(parts)})},
    }
    write_manifest(broken, manifest.model_copy(update={"splits": splits}))
    assert "a column history" in run_megaslm("verify", broken, expect_status=2)


def test_a_run_is_the_reference_of_its_own_history(chain: Chain, history: Path, dataset: Path, tmp_path: Path) -> None:
    """The newest checkpoint is that which `export` writes."""
    run = Path(shutil.copytree(chain.slm_run, tmp_path / "earlier"))
    command = ("score", "--as", "history", chain.scored)
    said = run_megaslm(*command, tmp_path / "newest", "--from-run", run, world_size=2)
    assert "warning" not in said
    fourth = run / "checkpoints" / "step-00000004"
    assert "warning" not in run_megaslm(*command, tmp_path / "fourth", "--from-run", fourth)
    assert np.array_equal(column_of(tmp_path / "newest", "history"), column_of(dataset, "history"))
    assert not np.array_equal(column_of(tmp_path / "fourth", "history"), column_of(dataset, "history"))
    newest, middle = (read_manifest(tmp_path / name).losses["history"] for name in ("newest", "fourth"))
    assert newest.run == RunStep(run=str(run), step=8)
    assert middle.run == RunStep(run=str(run), step=4)
    assert (newest.name, middle.name) == ("earlier", "earlier")
    assert newest.weights_sha256 == read_manifest(dataset).losses["history"].weights_sha256 != middle.weights_sha256
    assert "from step 4 of" in " ".join(run_megaslm("inspect", tmp_path / "fourth").replace("│", "").split())
    # Which run it was is told, and does not matter: the weights are the same.
    run_megaslm(*command, tmp_path / "newest", "--reference", history)


def test_a_run_trains_on_what_it_has_learned_since_and_resumes_as_it_was(chain: Chain, tmp_path: Path) -> None:
    """As in ssToken: the run's own past is the reference, and the sign is turned."""
    command = ("score", "--as", "history", "--from-run", chain.slm_run)
    run_megaslm(*command, chain.tokens, tmp_path / "data", world_size=2)
    run = tmp_path / "run"
    slm = {"criterion": "history - loss", "reference": None}
    model = {"from_run": str(chain.slm_run)}
    config = changed(chain.slm_config(run), run, slm=slm, model=model, data={"train": str(tmp_path / "data")})
    path = write_config(tmp_path / "run.yaml", config)
    run_megaslm("train", path, world_size=2)
    undisturbed = steps_of(run)
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    run_megaslm("train", path, "--resume", world_size=2)
    assert steps_of(run) == undisturbed
    assert len(undisturbed) == 8


@pytest.mark.parametrize(
    "options", [("--from-run",), (), ("--from-run", "--reference")], ids=["no run", "none", "both"]
)
def test_one_model_is_named(chain: Chain, tmp_path: Path, says: Says, options: tuple[str, ...]) -> None:
    named = [word for option in options for word in (option, str(chain.tokens))]
    said = run_megaslm("score", *named, chain.tokens, tmp_path / "out", expect_status=2)
    says(said.partition("\n")[2], chain.tokens if options == ("--from-run",) else "--from-run")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        (("--as", "history"), ("history",)),
        (("--as", "ref_loss"), ("ref_loss",)),
        (("--as", "max"), ("max",)),
        (("--as", "lambda"), ("lambda",)),
        (("--as", "My-Loss"), ("My-Loss",)),
        (("--as", "other", "--entropy"), ("other", "--entropy")),
    ],
    ids=["twice", "the reference's", "a function", "a keyword", "no name", "entropies"],
)
def test_what_cannot_be_a_column_is_refused(
    chain: Chain, dataset: Path, tmp_path: Path, says: Says, options: tuple[str, ...], facts: tuple[str, ...]
) -> None:
    said = run_megaslm("score", *options, "--reference", chain.reference, dataset, tmp_path / "out", expect_status=2)
    says(line_with(said, "--as"), *facts)
    assert not (tmp_path / "out").exists()


def test_another_reference_does_not_join_what_was_scored(
    chain: Chain, dataset: Path, tmp_path: Path, says: Says
) -> None:
    one = Path(shutil.copytree(dataset.with_name("one"), tmp_path / "one"))
    said = run_megaslm("score", "--as", "history", "--reference", chain.reference, chain.scored, one, expect_status=2)
    says(line_with(said, "losses.history.weights_sha256"), one)


def test_a_run_by_a_column_is_the_run_by_the_same_losses(chain: Chain, dataset: Path, tmp_path: Path) -> None:
    found = []
    for name, criterion in (("excess", "excess"), ("column", "loss - again")):
        run = tmp_path / name
        data = {"train": str(dataset), "loader_workers": 1}
        config = changed(chain.slm_config(run), run, slm={"criterion": criterion, "reference": None}, data=data)
        run_megaslm("train", write_config(tmp_path / f"{name}.yaml", config), world_size=2)
        found.append(steps_of(run))
    assert len(found[0]) == 8
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "criterion",
    ["again - history", "history - loss", "max(again, history) - entropy"],
    ids=["columns alone", "history", "both and entropy"],
)
def test_a_run_by_columns_resumes_as_it_was(chain: Chain, dataset: Path, tmp_path: Path, criterion: str) -> None:
    run = tmp_path / "run"
    slm = {"criterion": criterion, "reference": None, "keep_ratio": "0.5"}
    config = changed(chain.slm_config(run), run, slm=slm, data={"train": str(dataset)}, train={"micro_batch_rows": 1})
    path = write_config(tmp_path / "run.yaml", config)
    run_megaslm("train", path, world_size=2)
    undisturbed = steps_of(run)
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    run_megaslm("train", path, "--resume", world_size=2)
    assert steps_of(run) == undisturbed
    assert {round(float(str(step["selected_ratio"])), 1) for step in undisturbed} == {0.5}
    if criterion == "again - history":
        values = column_of(dataset, "again").astype(np.float32) - column_of(dataset, "history").astype(np.float32)
        assert {float(str(step["threshold"])) for step in undisturbed} <= set(values.flatten().tolist())


def with_reference(dataset: Path, folder: Path, **changes: object) -> Path:
    """The dataset with another record of the reference of `history`."""
    shutil.copytree(dataset, folder)
    manifest = read_manifest(folder)
    record = Reference.model_validate({**manifest.losses["history"].model_dump(), **changes})
    write_manifest(folder, manifest.model_copy(update={"losses": {**manifest.losses, "history": record}}))
    return folder


@pytest.mark.parametrize(
    ("changes", "facts"),
    [({"dataset_sha256": "0" * 64}, ("000000000000",)), ({"document_isolation": False}, ("document_isolation",))],
    ids=["other rows", "another isolation"],
)
def test_a_column_of_another_dataset_is_refused(
    chain: Chain, dataset: Path, tmp_path: Path, says: Says, changes: dict[str, object], facts: tuple[str, ...]
) -> None:
    other = with_reference(dataset, tmp_path / "other", **changes)
    run = tmp_path / "run"
    slm = {"criterion": "history - loss", "reference": None}
    file = write_config(tmp_path / "run.yaml", changed(chain.slm_config(run), run, slm=slm, data={"train": str(other)}))
    for command in (("train", file), ("train", file, "--check")):
        says(line_with(run_megaslm(*command, expect_status=2), str(other), *facts), other, "history", *facts)
    assert not (run / "checkpoints").exists()


def test_all_streams_have_the_column(chain: Chain, dataset: Path, tmp_path: Path, says: Says) -> None:
    run = tmp_path / "run"
    streams = {"with": {"dataset": str(dataset)}, "without": {"dataset": str(chain.scored)}}
    slm = {"criterion": "history - loss", "reference": None}
    config = changed(chain.slm_config(run), run, slm=slm, data={"train": None, "streams": streams})
    file = write_config(tmp_path / "run.yaml", config)
    said = run_megaslm("train", file, expect_status=2)
    says(
        line_with(said, "has no column history"),
        "data.streams.without",
        chain.scored,
        PLACE=place_of(file, "dataset: " + str(chain.scored)),
    )
    assert not run.exists()


def test_another_history_is_other_training_data(chain: Chain, dataset: Path, tmp_path: Path, says: Says) -> None:
    run = tmp_path / "run"
    slm = {"criterion": "history - loss", "reference": None}
    config = changed(chain.slm_config(run), run, slm=slm, data={"train": str(dataset)})
    run_megaslm("train", write_config(tmp_path / "run.yaml", config))
    other = with_reference(dataset, tmp_path / "other", weights_sha256="0" * 64)
    config = changed(config, run, data={"train": str(other)})
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    said = run_megaslm("train", write_config(tmp_path / "run.yaml", config), "--resume", expect_status=2)
    assert "0" * 64 in line_with(said, "history_weights_sha256")


def test_rows_of_a_column_are_read_by_part(dataset: Path) -> None:
    reader = RowReader(dataset, "heldout", "a")
    assert reader.rows(0, len(reader))["history"].dtype == np.float16


def test_weights_of_domains_follow_the_mean_of_an_expression(dataset: Path, tmp_path: Path) -> None:
    rate, manifest = 3.0, read_manifest(dataset)
    arguments = ("--weights-by", "max(history - ref_loss, 0)", "--weights-rate", str(rate))
    said = run_megaslm("inspect", dataset, *arguments, "--json", tmp_path / "weights.json")
    means, targets = [], []
    for domain in manifest.splits["train"]:
        rows = RowReader(dataset, "train", domain)
        values = [np.maximum(row["history"].astype(np.float32) - row["ref_loss"], 0) for row in rows]  # type: ignore[attr-defined]
        valid = np.concatenate([row["tokens"][:-1] != manifest.eos_id for row in rows])  # type: ignore[attr-defined]
        means.append(np.concatenate(values)[valid].astype(np.float64).mean())
        targets.append(valid.sum())
    expected = np.array(targets) / sum(targets) * np.exp(rate * np.array(means))
    expected = (1 - SMOOTHING) * expected / expected.sum() + SMOOTHING / len(expected)
    found = json.loads((tmp_path / "weights.json").read_text())
    assert [one["domain"] for one in found] == list(manifest.splits["train"])
    assert [one["targets"] for one in found] == targets
    assert [one["mean"] for one in found] == pytest.approx(means, rel=1e-6)
    assert [one["weight"] for one in found] == pytest.approx(expected, rel=1e-6)
    assert len(set(expected.round(3))) > 1
    section = yaml.safe_load(said[said.index("data:") :])["data"]
    streams = DataSection.model_validate({"seq_len": manifest.seq_len, **section}).streams.values()
    assert [stream.domains for stream in streams] == [(one["domain"],) for one in found]
    assert [stream.weight for stream in streams] == pytest.approx(expected, abs=1e-6)
    assert {stream.dataset for stream in streams} == {str(dataset)}


@pytest.mark.parametrize("expression", ["excess", "loss - ref_loss", "history - nothing", "history -", "1 + 1"])
def test_weights_by_what_is_not_stored_are_refused(dataset: Path, says: Says, expression: str) -> None:
    said = run_megaslm("inspect", dataset, "--weights-by", expression, expect_status=2)
    says(line_with(said, "--weights-by"), expression)
