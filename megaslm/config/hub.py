"""Names on the Hugging Face hub, and the command that fetches what they name. MegaSLM downloads nothing itself."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from megaslm.config.section import HUB_NAME_PATTERN, HubName, HubPattern, HubRevision, LocalPath, Positive, Section

_USUAL_FOLDERS = ("configs", "corpora", "data", "datasets", "models", "runs")
"""A path below one of these is meant as a path, also where the folder is missing."""
HubKind = Literal["dataset", "model", "tokenizer"]
"""What a name stands for. A tokenizer is the small files of a model."""


class Hub(Section):
    """Where the files of a source come from: a dataset on the Hugging Face hub. The manifest repeats it."""

    repo: HubName
    """The dataset's name, such as open-web-math/open-web-math."""
    revision: HubRevision = "main"
    """A commit, which pins the files, or a branch or tag."""
    folder: LocalPath
    """The local folder for the files. The source's paths lie in it."""
    files: tuple[HubPattern, ...] = ()
    """Patterns of the files to fetch; `*` crosses slashes. None means all files."""
    size_bytes: Positive | None = None
    """The size of the files to fetch; null where it is not known."""

    @property
    def command(self) -> str:
        """The command that fetches the files into the folder."""
        return download_command(self.repo, "dataset", self.folder, revision=self.revision, files=self.files)


class HubModel(Section):
    """Where a model comes from: a repository on the Hugging Face hub."""

    repo: HubName
    """The model's name, such as mistralai/Mistral-7B-v0.1."""
    revision: HubRevision = "main"
    """A commit, which pins the files, or a branch or tag."""

    def command(self, folder: str) -> str:
        """The command that fetches the model into a folder, without the pickled copies of its weights."""
        return download_command(self.repo, "model", folder, revision=self.revision, leave=("*.bin",))


def download_command(
    repo: str,
    kind: HubKind,
    folder: str,
    *,
    revision: str | None = None,
    files: Sequence[str] = (),
    leave: Sequence[str] = (),
) -> str:
    """The hub's own command, as huggingface_hub of constraints.txt takes it: one --include or --exclude per pattern."""
    command = ["hf", "download", repo]
    command += ["--repo-type", "dataset"] if kind == "dataset" else []
    command += [] if revision is None else ["--revision", revision]
    for pattern in files:
        command += ["--include", pattern]
    for pattern in leave:
        command += ["--exclude", pattern]
    return shlex.join([*command, "--local-dir", folder])


PUBLISHED = {
    "tinyllama-1.1b": HubModel(
        repo="TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", revision="036fa4651240b9a1487f709833b9e4b96b4c1574"
    ),
    "mistral-7b": HubModel(repo="mistralai/Mistral-7B-v0.1", revision="26bca36bde8333b5d7f72e9ed20ccda6a618af24"),
    "llama-2-7b": HubModel(repo="meta-llama/Llama-2-7b-hf", revision="01c7f73d771dfac7d292323805ebc428287df4f9"),
}
"""The models of configs/ and data/, by the names of their folders."""


def hub_hint(place: str | Path, kind: HubKind) -> str:
    """The end of a message that there is no folder `place`: how it is fetched from the hub, else empty."""
    name = str(place)
    if kind != "dataset" and Path(place).parent.name == "models" and Path(place).name in PUBLISHED:
        return f"; fetch the model with\n    {PUBLISHED[Path(place).name].command(name)}"
    owner, _, last = name.partition("/")
    if not re.fullmatch(HUB_NAME_PATTERN, name) or owner in _USUAL_FOLDERS or Path(owner).exists():
        return ""
    folder = f"corpora/{last}" if kind == "dataset" else f"models/{last}"
    files = ["*.json"] if kind == "tokenizer" else []
    command = download_command(name, kind, folder, files=files)
    return (
        f"; if {name} is a name on the Hugging Face hub, fetch it with `{command}` and write {folder} instead: MegaSLM "
        "downloads nothing from the hub"
    )
