"""Tokenizers of each kind, as folders."""

from pathlib import Path

import pytest

from tests.conversations import FOLDERS


@pytest.fixture(scope="module", params=FOLDERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizer") / "folder"
    FOLDERS[request.param](made)
    return made
