"""The manifests in launcher/k8s: held against the schemas of Kubernetes' API, and every value put in as it was."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as some

from megaslm.errors import ConfigError
from megaslm.launch.command import PROJECT, VerbCall
from megaslm.launch.kubernetes import kubernetes_command, read_manifests
from tests.messages import Says
from tests.unit.launch.kubernetes_jobs import (
    API_VERSION,
    TRAIN,
    cluster,
    container,
    documents,
    kubernetes_validate,
)

MANIFESTS = PROJECT / "launcher" / "k8s"
MARKS = some.sampled_from("$(){}'\"#:-&*!|>%@`, \n\tHOMEy1")
HOSTILE = [
    "a b",
    "$(HOME)",
    "$$(HOME) $HOME $",
    "`reboot`",
    'it\'s "so"',
    "a\nkind: Secret\n---\n- b",
    "y",
    "0o17",
    "1e3",
    "null",
    "",
    "{a: [b]}",
    "# no comment",
    "\x85\u2028",
]


@pytest.mark.parametrize("file", sorted(MANIFESTS.glob("*.yaml")), ids=lambda file: file.name)
def test_the_files_are_objects_as_they_stand(file: Path) -> None:
    manifests = read_manifests(file)
    assert manifests
    for manifest in manifests:
        kubernetes_validate.validate(manifest.content(), API_VERSION, strict=True)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("restartPolicy: Never", "restartPolcy: Never"),
        ("completions: 2", "completions: two"),
        ("- name: ranks", "- title: ranks"),
        ("claimName: megaslm", "claim: megaslm"),
        ("medium: Memory", "medium: 1"),
        ("action: FailJob", "acton: FailJob"),
    ],
)
def test_a_broken_manifest_is_caught(right: str, wrong: str) -> None:
    text = (MANIFESTS / "train.yaml").read_text(encoding="utf-8")
    assert right in text
    job = list(yaml.safe_load_all(text.replace(right, wrong)))[1]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, API_VERSION, strict=True)


def expanded(text: str, variables: dict[str, str]) -> str:
    """As the documentation of a container's `command` says: `$(NAME)` is the variable, and `$$` a dollar."""
    return re.sub(
        r"\$\$|\$\(([^)]*)\)",
        lambda found: "$" if found[0] == "$$" else variables.get(found[1], found[0]),
        text,
    )


@settings(max_examples=5)
@given(some.lists(some.text(MARKS | some.characters(codec="utf-8", exclude_characters="\0")), min_size=8, max_size=8))
def test_a_value_arrives_as_it_is(drawn: list[str]) -> None:
    # Many at once: to make a manifest and to check it takes longer than to look at its values.
    texts = (*drawn, *HOSTILE)
    values = {f"V{number}": text for number, text in enumerate(texts)}
    place = cluster(environment={"HOME": "/root", **values})
    for work in (VerbCall("train", texts), VerbCall("score", texts)):
        job = documents(place, work)[-1]
        variables: dict[str, str] = {}
        for variable in container(job)["env"]:
            variables[variable["name"]] = expanded(variable["value"], variables)
        assert {name: variables[name] for name in values} == values
        words = [expanded(word, variables) for word in container(job)["command"]]
        start = words.index(work.verb) + 1
        assert words[start : start + len(texts)] == list(texts)


def test_text_that_readers_of_yaml_take_for_something_else_is_in_quotes() -> None:
    words = ("y", "0o17", "1e3", "null", "yes", "~", "1_0", "12:30", "=", "<<")
    place = cluster(environment={f"V{number}": word for number, word in enumerate(words)})
    lines = (kubernetes_command(place, TRAIN).standard_input or "").splitlines()
    for word in words:
        assert any(line.strip() in (f'value: "{word}"', f"value: '{word}'") for line in lines), word


def test_a_field_that_is_not_there_is_named(tmp_path: Path, says: Says) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("kind: Job\nspec: {template: {}}\n", encoding="utf-8")
    (manifest,) = read_manifests(file)
    with pytest.raises(ConfigError) as refused:
        manifest.set("x", "spec", "template", "spec", "subdomain")
    says(refused, file, "Job", "spec.template.spec.subdomain")
    file.write_text("kind: [", encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        read_manifests(file)
    says(refused, file)
    file.write_text("- a\n", encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        read_manifests(file)
    says(refused, file)


def test_a_file_without_its_objects_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says) -> None:
    (tmp_path / "launcher" / "k8s").mkdir(parents=True)
    (tmp_path / "launcher" / "k8s" / "train.yaml").write_text("kind: Job\n", encoding="utf-8")
    monkeypatch.setattr("megaslm.launch.command.PROJECT", tmp_path)
    with pytest.raises(ConfigError) as refused:
        kubernetes_command(cluster(), TRAIN)
    says(refused, "train.yaml", "Service", "Job")
