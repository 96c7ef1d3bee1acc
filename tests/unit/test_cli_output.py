"""What the verbs write besides their work."""

import json
from pathlib import Path

import pytest

from megaslm.cli_output import write_json
from megaslm.errors import ConfigError


def test_a_result_is_written_or_its_file_is_named(tmp_path: Path) -> None:
    write_json(None, {})
    write_json(tmp_path / "a.json", {"a": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    with pytest.raises(ConfigError, match=r"--json .*/absent/a\.json"):
        write_json(tmp_path / "absent" / "a.json", {})
