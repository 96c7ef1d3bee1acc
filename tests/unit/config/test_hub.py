"""Names on the Hugging Face hub, and the command that fetches what they name."""

import shlex
from pathlib import Path

import pytest

from megaslm.config.hub import Hub, hub_hint
from tests.messages import Says


def test_the_command_is_one_that_the_hub_takes() -> None:
    """Its own parser reads the words; nothing is fetched."""
    typer = pytest.importorskip("typer.main")
    download = pytest.importorskip("huggingface_hub.cli.download")
    import typer as typer_module

    settings = {"repo": "a/b-c", "revision": "0123abc", "folder": "corpora/with space", "files": ["data/*", "*.json"]}
    program, verb, *words = shlex.split(Hub.model_validate(settings).command)
    assert (program, verb) == ("hf", "download")
    app = typer_module.Typer()
    app.command()(download.download)
    read = typer.get_command(app).make_context("download", list(words)).params
    assert read["repo_id"] == "a/b-c"
    assert read["revision"] == "0123abc"
    assert list(read["include"]) == ["data/*", "*.json"]
    assert read["local_dir"] == "corpora/with space"
    assert str(getattr(read["repo_type"], "value", read["repo_type"])) == "dataset"


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("open-web-math/open-web-math", "dataset"),
        ("TinyLlama/TinyLlama_v1.1", "model"),
        ("mistralai/Mistral-7B-v0.1", "tokenizer"),
    ],
)
def test_a_name_on_the_hub_gets_the_command(place: str, kind: str, says: Says) -> None:
    says(hub_hint(place, kind), place, "hf download")  # type: ignore[arg-type]


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
