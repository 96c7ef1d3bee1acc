"""Nothing from elsewhere is run or unpickled, and calls that would do so would be seen."""

from pathlib import Path

import pytest

from tests.messages import Says
from tests.policy.unsafe_calls import RUNS_PROGRAMS, unsafe_calls

ROOT = Path(__file__).resolve().parents[2]


def test_no_call_could_run_what_comes_from_elsewhere() -> None:
    found = unsafe_calls(ROOT)
    assert not found, "\n" + "\n".join(found)


PLANTED = [
    "import pickle",
    "def f():\n    from cloudpickle import loads",
    "import torch\ntorch.load(path)",
    "import torch as t\nt.load(path, weights_only=False)",
    "from torch import load\nload(path, weights_only=safe)",
    "import numpy as np\nnp.load(path, allow_pickle=True)",
    "read(path, trust_remote_code=config.trust)",
    "from transformers import AutoConfig\nAutoConfig.from_pretrained(folder)",
    "import subprocess\nsubprocess.run(line, shell=True)",
    "import os\nos.system(line)",
    "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)",
    "import yaml\nclass Reader(yaml.Loader): ...",
    "from yaml import unsafe_load as read\nread(text)",
    "value = eval(text)",
    "list(map(exec, lines))",
    "engine.load_checkpoint(folder)",
    "from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint as whole\nwhole(folder)",
]


@pytest.mark.parametrize("source", PLANTED)
def test_a_planted_call_is_caught(tmp_path: Path, source: str, says: Says) -> None:
    _plant(tmp_path, source)
    (found,) = unsafe_calls(tmp_path)
    says(found, "megaslm/a.py:")


ALLOWED = [
    "import torch\ntorch.load(path, weights_only=True)",
    "import numpy as np\nnp.load(path)\nnp.load(path, allow_pickle=False)",
    "from transformers import AutoConfig\nAutoConfig.from_pretrained(folder, trust_remote_code=False)",
    "import subprocess\nsubprocess.run(['ls', folder])",
    "import yaml\nclass Reader(yaml.SafeLoader): ...\nyaml.safe_load(text)",
    "import re\nre.compile(pattern)\nmodel.eval()",
    "class Model:\n    compile: str = 'auto'",
    "from megaslm.training.checkpoints.store import load_checkpoint\nload_checkpoint(folder)",
]


@pytest.mark.parametrize("source", ALLOWED)
def test_what_is_safe_passes(tmp_path: Path, source: str) -> None:
    _plant(tmp_path, source)
    assert unsafe_calls(tmp_path) == []


def test_only_the_interpreter_of_the_sandbox_runs_text(tmp_path: Path) -> None:
    _plant(tmp_path, "exec(text)\nimport pickle", RUNS_PROGRAMS)
    (found,) = unsafe_calls(tmp_path)
    assert "pickle" in found
    _plant(tmp_path, "exec(text)", "megaslm/sandbox/worker.py")
    assert len(unsafe_calls(tmp_path)) == 2


def _plant(root: Path, source: str, file: str = "megaslm/a.py") -> None:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source + "\n", encoding="utf-8")
