"""Real programs of a published model print what the publication recorded."""

import json
import os
import re
from pathlib import Path

import pytest

from megaslm.sandbox.sandbox import Sandbox

LEAST_SHARE = 0.99
_BLOCK = re.compile(r"```python\n(.*?)```\n```output\n(.*?)\n?```", re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_programs_of_tora_give_the_recorded_outputs() -> None:
    shared = os.environ.get("MEGASLM_SHARED_DATA")
    if not shared:
        pytest.skip("MEGASLM_SHARED_DATA is not set")
    lines = (Path(shared) / "trajectories" / "tora_34b_gsm8k.jsonl").read_text(encoding="utf-8").splitlines()
    blocks = [block for line in lines for text in json.loads(line)["code"] for block in _BLOCK.findall(text)]
    assert len(blocks) > 1300
    with Sandbox(workers=2) as sandbox:
        results = sandbox.run([program for program, _ in blocks])
    # As ToRA's code recorded it: the last line, of the output or else of the error.
    printed = [(result.stdout.strip() or result.error or "").split("\n")[-1] for result in results]
    wrong = [
        (program, recorded, found)
        for (program, recorded), found in zip(blocks, printed, strict=True)
        if recorded.strip() != found.strip()
    ]
    assert 1 - len(wrong) / len(blocks) >= LEAST_SHARE, wrong[:5]
