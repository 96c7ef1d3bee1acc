"""What all verbs have in common."""

from pathlib import Path

import pytest

from megaslm.cli import app
from megaslm.errors import MegaSLMError

READ_A_PATH = (
    "inspect absent",
    "inspect absent --row 0",
    "inspect absent --order 1",
    "verify absent",
    "checkpoint ls absent",
    "checkpoint verify absent",
    "checkpoint verify absent/checkpoints/step-1",
    "checkpoint prune absent",
    "export absent model",
    "dynamics absent",
    "report absent",
    "report . -o absent/report.html",
    "init project --model absent --corpus absent --curated absent",
    "prepare absent.yaml tokens",
    "score absent scored --reference absent",
    "score absent scored --from-run absent",
    "mask absent masked --keep-ratio 0.6",
    "attach absent column.parquet --as weight --out weighted",
    "plan absent.yaml",
    "config explain absent.yaml",
    "sweep absent.yaml --keep-ratio 0.5,0.6",
    "launch --cluster absent.yaml train run.yaml",
    "evaluate absent --tasks gsm8k --data absent -o answers",
    "evaluate --compare absent absent",
    "evaluate --suite absent.yaml absent",
    "sample absent --tasks gsm8k --data absent -o answers",
    "demo",
)


@pytest.mark.parametrize("command", READ_A_PATH)
def test_a_relative_path_that_leads_to_nothing_is_told_with_where_it_begins(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MegaSLMError) as refused:
        app(command.split(), standalone_mode=False)
    assert str(refused.value).count(str(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []
