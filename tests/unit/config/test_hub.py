"""Names on the Hugging Face hub, and the command that fetches what they name."""

import shlex
from pathlib import Path

import pytest
import typer

from megaslm.config.hub import Hub, HubKind, hub_hint
from tests.messages import Says


def test_the_command_is_one_that_the_hub_takes() -> None:
    """The hub's own parser reads the words. Nothing is fetched."""
    download = pytest.importorskip("huggingface_hub.cli.download").download
    settings = {"repo": "a/b-c", "revision": "0123abc", "folder": "corpora/with space", "files": ["data/*", "*.json"]}
    program, verb, *words = shlex.split(Hub.model_validate(settings).command)
    assert (program, verb) == ("hf", "download")
    app = typer.Typer()
    app.command()(download)
    read = typer.main.get_command(app).make_context("download", list(words)).params
    assert (read["repo_id"], read["repo_type"].value, read["revision"]) == ("a/b-c", "dataset", "0123abc")
    assert (list(read["include"]), read["local_dir"]) == (["data/*", "*.json"], "corpora/with space")


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("open-web-math/open-web-math", "dataset"),
        ("TinyLlama/TinyLlama_v1.1", "model"),
        ("mistralai/Mistral-7B-v0.1", "tokenizer"),
    ],
)
def test_a_name_on_the_hub_gets_the_command(place: str, kind: HubKind, says: Says) -> None:
    says(hub_hint(place, kind), place, "hf download")


def test_a_path_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for place in (
        "models/tinyllama",
        "mine/model",
        "/a/b",
        "a/b/c",
        "a",
        "../a",
        "a/*.json",
        "s3://a/b",
        "a/",
        "./a/b",
    ):
        assert hub_hint(place, "model") == ""
