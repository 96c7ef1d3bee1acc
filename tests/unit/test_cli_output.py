"""What the verbs write besides their work."""

import gc
import json
from pathlib import Path

import pytest

from megaslm.cli_output import lasting, write_json
from megaslm.errors import ConfigError


def test_a_result_is_written_or_its_file_is_named(tmp_path: Path) -> None:
    write_json(None, {})
    write_json(tmp_path / "a.json", {"a": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    with pytest.raises(ConfigError, match=r"--json .*/absent/a\.json"):
        write_json(tmp_path / "absent" / "a.json", {})


def test_no_collection_looks_through_what_stays() -> None:
    frozen = gc.get_freeze_count()
    with lasting():
        assert not gc.isenabled()
        made = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= frozen + len(made)
