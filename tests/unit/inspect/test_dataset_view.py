"""A dataset at a glance."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from megaslm.config.hub import Hub
from megaslm.dataset.manifest import read_manifest, write_manifest
from megaslm.inspect.dataset_facts import dataset_facts
from megaslm.inspect.dataset_view import show_dataset
from megaslm.observe.display import size
from tests.inspected import below_the_title, make_inspected
from tests.messages import Says


def printed(dataset: Path) -> str:
    output = io.StringIO()
    show_dataset(Console(file=output, width=140, highlight=False), dataset_facts(dataset))
    return output.getvalue()


def test_it_says_what_the_dataset_is(tmp_path: Path, says: Says) -> None:
    make_inspected(tmp_path, scored=True)
    text = printed(tmp_path)
    says(below_the_title(text), "abababababab", "fp32", "CC0 (a); MIT (b)")
    assert [line.split()[:4] for line in text.splitlines() if line.split()[:1] == ["train"]] == [
        ["train", "a", "6", "38"],
        ["train", "a", "6", "38"],
    ]


def test_names_are_no_markup(tmp_path: Path) -> None:
    make_inspected(tmp_path, scored=True)
    manifest = read_manifest(tmp_path)
    write_manifest(tmp_path, manifest.model_copy(update={"name": "[/x]", "licences": {"a": "[red]CC0", "b": "[/y]"}}))
    text = printed(tmp_path)
    assert "[/x] · scored" in text
    assert "[red]CC0 (a); [/y] (b)" in text


def test_it_says_where_the_files_come_from(tmp_path: Path) -> None:
    make_inspected(tmp_path, scored=False)
    assert " hub " not in printed(tmp_path)
    hub = (Hub(repo="a/b", revision="v1", folder="x"), Hub(repo="c/d", folder="y"))
    write_manifest(tmp_path, read_manifest(tmp_path).model_copy(update={"hub": hub}))
    assert "a/b at v1; c/d at main" in printed(tmp_path)


def test_without_losses_it_says_nothing_of_them(tmp_path: Path) -> None:
    make_inspected(tmp_path, scored=False)
    assert "ref_loss" not in printed(tmp_path)


@pytest.mark.parametrize(
    ("count_bytes", "text"),
    [(0, "0 bytes"), (0.25, "0.25 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2_560_000_000_000, "2.6 TB")],
)
def test_sizes(count_bytes: float, text: str) -> None:
    assert size(count_bytes) == text
