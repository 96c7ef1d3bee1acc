"""What a path is, and what is said where a dataset was expected."""

from pathlib import Path

import pytest

from megaslm.dataset.kinds import Kind, kind_of
from megaslm.dataset.manifest import read_manifest
from megaslm.errors import CorruptData, DataError
from tests.messages import Says
from tests.toy import make_dataset

RUN = ("config.yaml", "manifest.json", "metrics.jsonl", "checkpoints/step-00000008/COMPLETE")


def make(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("kind", "files", "place"),
    [
        (Kind.RUN, RUN, "."),
        (Kind.RUN, ("config.yaml", "manifest.json", "model/config.json"), "."),
        (Kind.CHECKPOINT, ("step-00000008/config.yaml", "step-00000008/layout.json"), "step-00000008"),
        (Kind.MODEL, ("config.json", "tokenizer.json", "model.safetensors"), "."),
        (Kind.TOKENIZER, ("tokenizer.json", "tokenizer_config.json"), "."),
        (Kind.TOKENIZER, ("tokenizer.json", "config.json"), "."),
        (Kind.WITHIN, RUN, "checkpoints"),
        (Kind.WITHIN, (*RUN, "model/config.json", "model/tokenizer.json"), "model"),
        (Kind.UNFINISHED, (".prepare/plan.json", "tokenizer/tokenizer.json"), "."),
        (Kind.UNFINISHED, (".score/.derived/plan.json",), "."),
        (Kind.UNFINISHED, (".derived/plan.json", "train/web/part-00000/index.json"), "."),
        (Kind.OTHER, ("notes.txt",), "."),
        (Kind.OTHER, ("manifest.json", "notes.txt"), "."),
        (Kind.FILE, ("run.yaml",), "run.yaml"),
        (Kind.MISSING, (), "nowhere"),
        (Kind.SMOKE_TEST, ("smoke.json", "metrics.jsonl"), "."),
        (Kind.SMOKE_TEST, ("smoke.json", *RUN), "."),
    ],
)
def test_what_is_no_dataset_is_named_for_what_it_is_and_not_called_damaged(
    kind: Kind, files: tuple[str, ...], place: str, tmp_path: Path, says: Says
) -> None:
    path = make(tmp_path / "it", *files) / place
    assert kind_of(path) is kind
    with pytest.raises(DataError) as refused:
        read_manifest(path)
    assert not isinstance(refused.value, CorruptData)
    assert "remove" not in str(refused.value)
    says(refused, path)


def test_of_another_folder_the_datasets_and_runs_in_it_are_named(tmp_path: Path, says: Says) -> None:
    for name in ("runs/slm", "runs/clm", "other"):
        make(tmp_path / "it" / name, *RUN)
    for number in range(12):
        make(tmp_path / "it" / "datasets" / f"{number:02}", "manifest.json", "tokenizer/tokenizer.json")
    make(tmp_path / "it" / "models" / "reference", "config.json", "model.safetensors")
    with pytest.raises(DataError) as refused:
        read_manifest(tmp_path / "it")
    says(refused, "it/runs/clm, ", "it/runs/slm", "it/other", "it/datasets/09, …")
    assert "models" not in str(refused.value)


def test_the_folders_of_a_dataset_are_no_datasets(tmp_path: Path) -> None:
    make_dataset(tmp_path / "it", {("train", "a"): [2], ("heldout", "a"): [1]})
    assert [kind_of(tmp_path / "it" / name) for name in ("train", "heldout", "tokenizer")] == [Kind.WITHIN] * 3


def test_a_dataset_whose_manifest_is_damaged_is_still_one(tmp_path: Path) -> None:
    damaged = make(tmp_path / "it", "manifest.json", "tokenizer/tokenizer.json", "train/web/index.json")
    assert kind_of(damaged) is Kind.DATASET
    with pytest.raises(CorruptData):
        read_manifest(damaged)
