"""Nothing from elsewhere is run or unpickled, and calls that would do so would be seen."""

from pathlib import Path

import pytest

from tests.policy.unsafe_calls import unsafe_calls

ROOT = Path(__file__).resolve().parents[2]


def test_no_call_could_run_what_comes_from_elsewhere() -> None:
    found = unsafe_calls(ROOT)
    assert not found, "\n" + "\n".join(found)


PLANTED = [
    ("import pickle", "imports pickle: it unpickles"),
    ("def f():\n    from cloudpickle import loads", "imports cloudpickle.loads: it unpickles"),
    ("import torch\ntorch.load(path)", "a.py:2: calls torch.load without weights_only=True"),
    ("import torch as t\nt.load(path, weights_only=False)", "calls torch.load without weights_only=True"),
    ("from torch import load\nload(path, weights_only=safe)", "calls torch.load without weights_only=True"),
    ("import numpy as np\nnp.load(path, allow_pickle=True)", "passes allow_pickle: only False"),
    ("read(path, trust_remote_code=config.trust)", "passes trust_remote_code: only False"),
    (
        "from transformers import AutoConfig\nAutoConfig.from_pretrained(folder)",
        "calls transformers.AutoConfig.from_pretrained without trust_remote_code=False",
    ),
    ("import subprocess\nsubprocess.run(line, shell=True)", "passes shell: only False"),
    ("import os\nos.system(line)", "uses os.system: it passes text to a shell"),
    ("import yaml\nyaml.load(text, Loader=yaml.SafeLoader)", "uses yaml.load: it makes objects of any class"),
    ("import yaml\nclass Reader(yaml.Loader): ...", "uses yaml.Loader: it makes objects of any class"),
    ("from yaml import unsafe_load as read\nread(text)", "uses yaml.unsafe_load: it makes objects of any class"),
    ("value = eval(text)", "uses eval: it runs text as code"),
    ("list(map(exec, lines))", "uses exec: it runs text as code"),
    ("engine.load_checkpoint(folder)", "calls load_checkpoint: it unpickles what DeepSpeed has saved"),
    (
        "from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint as whole\nwhole(folder)",
        "it unpickles what DeepSpeed has saved",
    ),
]


@pytest.mark.parametrize(("source", "expected"), PLANTED)
def test_a_planted_call_is_caught(tmp_path: Path, source: str, expected: str) -> None:
    _plant(tmp_path, source)
    found = unsafe_calls(tmp_path)
    assert len(found) == 1
    assert expected in found[0]


ALLOWED = [
    "import torch\ntorch.load(path, weights_only=True)",
    "import numpy as np\nnp.load(path)\nnp.load(path, allow_pickle=False)",
    "from transformers import AutoConfig\nAutoConfig.from_pretrained(folder, trust_remote_code=False)",
    "import subprocess\nsubprocess.run(['ls', folder])",
    "import yaml\nclass Reader(yaml.SafeLoader): ...\nyaml.safe_load(text)",
    "import re\nre.compile(pattern)\nmodel.eval()",
    "from megaslm.training.checkpoints.resume import load_checkpoint\nload_checkpoint(folder)",
]


@pytest.mark.parametrize("source", ALLOWED)
def test_what_is_safe_passes(tmp_path: Path, source: str) -> None:
    _plant(tmp_path, source)
    assert unsafe_calls(tmp_path) == []


def _plant(root: Path, source: str) -> None:
    path = root / "megaslm" / "a.py"
    path.parent.mkdir()
    path.write_text(source + "\n", encoding="utf-8")
