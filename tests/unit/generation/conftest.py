"""A model folder that the tests of generation share."""

from pathlib import Path

import pytest
import torch

from tests.generating import make_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with a byte-level tokenizer."""
    torch.set_num_threads(1)
    return make_folder(tmp_path_factory.mktemp("model"))
