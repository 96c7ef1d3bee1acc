"""The import rules hold, and would be seen to be broken."""

from pathlib import Path

import pytest

from tests.policy.import_rules import OWNERS, violations

ROOT = Path(__file__).resolve().parents[2]


def test_no_import_breaks_a_rule() -> None:
    found = violations(ROOT)
    assert not found, "\n" + "\n".join(found)


PLANTED = [
    (
        "slm/a.py",
        "import torch\nfrom megaslm.config import schema",
        "megaslm/slm/a.py:2: imports megaslm.config.schema; slm",
    ),
    ("slm/a.py", "import numpy", "slm imports torch and megaslm.errors only"),
    ("slm/a.py", "import triton.language as tl", f"only {OWNERS['triton']} may import triton"),
    ("model/a.py", "def f():\n    import triton", f"megaslm/model/a.py:2: imports triton; only {OWNERS['triton']} may"),
    ("slm/triton_exponentials.py", "import triton\nimport tritonclient", "2: imports tritonclient; slm imports torch"),
    ("slm/a.py", "from ..data import stream", "imports megaslm.data.stream; slm imports"),
    (
        "config/a.py",
        "def f():\n    import torch.nn",
        "megaslm/config/a.py:2: imports torch.nn; config never imports torch",
    ),
    ("data/stream.py", "from streaming.base.dataset import _ShardState", "by its public names alone"),
    ("data/a.py", "from megaslm.model import load", "imports run one way"),
    ("data/a.py", "from megaslm import engine", "imports run one way"),
    ("errors.py", "import megaslm.config.load", "imports run one way"),
    ("observe/a.py", "import megaslm.cli", "imports run one way"),
    ("training/a.py", "from megaslm.scoring.job import score", "do not import one another"),
    ("evaluation/a.py", "import megaslm.training", "do not import one another"),
    ("scoring/a.py", "from megaslm.launch.work import Work", "do not import one another"),
    ("launch/a.py", "from megaslm.engine import places", "launch imports megaslm.config and megaslm.errors only"),
    ("launch/a.py", "def f():\n    import torch", "launch imports megaslm.config and megaslm.errors only"),
    ("engine/a.py", "import megaslm.launch", "imports run one way"),
    ("helpers/a.py", "import megaslm.errors", "megaslm/helpers has no place in the order"),
    ("engine/distributed.py", "import deepspeed.comm as dist", f"only {OWNERS['deepspeed']} may import deepspeed"),
    ("data/shards.py", "from streaming import MDSWriter", f"only {OWNERS['streaming']} may import streaming"),
    ("data/readers.py", "def f():\n    import fsspec", f"only {OWNERS['fsspec']} may import fsspec"),
    ("training/loop.py", "from torch.utils.tensorboard import SummaryWriter", "only megaslm/observe/tensorboard.py"),
    ("training/loop.py", "from torch.utils import tensorboard", "only megaslm/observe/tensorboard.py"),
    ("cli.py", "import importlib\nimportlib.import_module('deepspeed')", "megaslm/cli.py:2: imports deepspeed"),
    ("training/a.py", "from transformers import AutoModelForCausalLM", "model classes belong to megaslm/model"),
    ("data/a.py", "import transformers\nx = transformers.LlamaForCausalLM", "model classes belong to megaslm/model"),
    ("scoring/a.py", "from transformers.models.llama import modeling_llama", "model classes belong to megaslm/model"),
]


@pytest.mark.parametrize(("file", "source", "expected"), PLANTED)
def test_a_planted_violation_is_caught(tmp_path: Path, file: str, source: str, expected: str) -> None:
    _plant(tmp_path, file, source)
    found = violations(tmp_path)
    assert len(found) == 1
    assert expected in found[0]


ALLOWED = [
    ("engine/zero.py", "import deepspeed\nfrom transformers.integrations import HfDeepSpeedConfig"),
    ("data/stream.py", "import transformers\nimport streaming"),
    ("data/storage/file_systems.py", "def f():\n    from fsspec.utils import glob_translate"),
    ("data/tokenizer.py", "from transformers import AutoTokenizer, LlamaTokenizerFast"),
    ("model/load.py", "from transformers import LlamaForCausalLM\nfrom megaslm.slm.objective import loss"),
    ("observe/tensorboard.py", "from torch.utils.tensorboard import SummaryWriter"),
    ("slm/a.py", "import math\nimport torch\nfrom . import b\nfrom megaslm.errors import ConfigError"),
    ("slm/triton_exponentials.py", "import torch\nimport triton\nimport triton.language as tl"),
    ("slm/exponentials.py", "def f():\n    from megaslm.slm.triton_exponentials import fused_exponentials"),
    ("launch/a.py", "import yaml\nfrom megaslm.config.cluster import Cluster\nfrom megaslm.launch.work import Work"),
    ("config/deepspeed.py", "from megaslm.config.deepspeed import deepspeed_settings"),
    ("cli.py", "from megaslm import __version__, demo\nimport megaslm.training.loop"),
]


@pytest.mark.parametrize(("file", "source"), ALLOWED)
def test_what_is_allowed_passes(tmp_path: Path, file: str, source: str) -> None:
    _plant(tmp_path, file, source)
    assert violations(tmp_path) == []


def _plant(root: Path, file: str, source: str) -> None:
    path = root / "megaslm" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source + "\n", encoding="utf-8")
