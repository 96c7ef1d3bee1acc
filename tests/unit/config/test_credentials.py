"""No secret reaches a message, a resolved configuration or a manifest: it is refused where it would come in."""

from pathlib import Path

import pytest

from megaslm.config.load import load
from megaslm.config.recipe import Recipe
from megaslm.config.schema import RunConfig
from megaslm.config.section import is_secret_name, refuse_credentials, without_credentials
from megaslm.dataset.output import output_at
from megaslm.dataset.remote import open_dataset
from megaslm.errors import ConfigError
from tests.messages import Says

SECRET = "wJalr/XUtn+FEMI"
URLS = {
    f"s3://AKIA:{SECRET}@bucket/web": "s3://***@bucket/web",
    f"sftp://me:{SECRET}@host:22/web": "sftp://***@host:22/web",
    "https://hf_abc123@host/web.jsonl": "https://***@host/web.jsonl",
    f"https://host/a.jsonl?download=true&token={SECRET}": "https://host/a.jsonl?download=true&token=***",
    f"https://b.s3.amazonaws.com/a?X-Amz-Credential={SECRET}&X-Amz-Date=1&X-Amz-Signature={SECRET}": (
        "https://b.s3.amazonaws.com/a?X-Amz-Credential=***&X-Amz-Date=1&X-Amz-Signature=***"
    ),
    f"https://a.blob.core.windows.net/c/x?sv=2024&sig={SECRET}": "https://a.blob.core.windows.net/c/x?sv=2024&sig=***",
}
HARMLESS = [
    "s3://bucket/web",
    "s3://bucket/web/*.jsonl?",
    "http://host:8080/path/a@b",
    "abfs://container@account.dfs.core.windows.net/web",
    "https://host/a.jsonl?download=true&tokens=no",
    "data/a:b@c",
    r"https?://\S+:\S+@",
]


@pytest.mark.parametrize(("url", "shown"), URLS.items())
def test_what_a_url_holds_of_secrets_is_not_shown(url: str, shown: str) -> None:
    assert without_credentials(f"nothing at {url} (404)") == f"nothing at {shown} (404)"
    with pytest.raises(ConfigError) as refused:
        refuse_credentials(url)
    assert str(refused.value).startswith(f"{shown}: ")


@pytest.mark.parametrize("place", HARMLESS)
def test_other_places_are_taken(place: str) -> None:
    refuse_credentials(place)


def test_names_of_secrets_are_known_and_none_is_a_name_of_ours() -> None:
    assert all(map(is_secret_name, ("api_key", "hf_token", "AWS_SECRET_ACCESS_KEY", "db-password", "access_key_id")))
    sections = [RunConfig, Recipe]
    while sections:
        for name, field in sections.pop().model_fields.items():
            assert not is_secret_name(name)
            if hasattr(field.annotation, "model_fields"):
                sections.append(field.annotation)


@pytest.mark.parametrize("url", URLS)
def test_a_configuration_with_a_secret_is_refused_without_a_word_of_it(tmp_path: Path, url: str) -> None:
    """Whatever else is wrong with it: other complaints would show the value."""
    path = tmp_path / "run.yaml"
    path.write_text(f"run_dir: runs/a\ndata:\n  train: {url}\n  trian: {url}\n  seq_len: '{url}'\n")
    with pytest.raises(ConfigError) as refused:
        load(RunConfig, path)
    assert all(f"{key}: " in str(refused.value) for key in ("data.train", "data.trian", "data.seq_len"))
    assert f"({path}:3)" in str(refused.value)
    _require_silence(refused.value, url)


def test_overrides_and_deepspeeds_own_settings_are_looked_at(tmp_path: Path, says: Says) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"deepspeed_extra:\n  comet:\n    api_key: {SECRET}\n")
    url = f"s3://AKIA:{SECRET}@bucket/web"
    with pytest.raises(ConfigError) as refused:
        load(RunConfig, path, [f"validation.sets.a.dataset={url}"])
    says(refused, "deepspeed_extra.comet.api_key", "validation.sets.a.dataset")
    _require_silence(refused.value, url)


def test_a_line_that_is_no_yaml_is_shown_without_its_secret(tmp_path: Path, says: Says) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"data: {{train: s3://AKIA:{SECRET}@bucket/web\n")
    with pytest.raises(ConfigError) as refused:
        load(RunConfig, path)
    says(refused, path)
    assert SECRET not in str(refused.value)


def test_recipes_are_looked_at(tmp_path: Path) -> None:
    url = f"https://host/a.jsonl?token={SECRET}"
    path = tmp_path / "recipe.yaml"
    path.write_text(f"sources:\n- domain: a\n  reader: jsonl\n  paths: [data/a.jsonl, '{url}']\n")
    with pytest.raises(ConfigError) as refused:
        load(Recipe, path)
    assert "sources.0.paths.1: " in str(refused.value)
    _require_silence(refused.value, url)


def test_places_of_the_command_line_are_refused_before_they_are_reached(tmp_path: Path, says: Says) -> None:
    url = f"s3://AKIA:{SECRET}@bucket/web"
    with pytest.raises(ConfigError) as dataset:
        open_dataset(url, str(tmp_path / "cache"))
    with pytest.raises(ConfigError) as output:
        output_at(url, tmp_path / "work")
    says(dataset, "s3://***@bucket/web")
    assert str(output.value) == str(dataset.value)
    _require_silence(dataset.value, url)
    _require_silence(output.value, url)
    assert list(tmp_path.iterdir()) == []


def _require_silence(error: ConfigError, url: str) -> None:
    assert SECRET not in str(error)
    assert "hf_abc123" not in str(error)
    assert url not in str(error)
