"""The findings together: told one by one, in their order, with their sum at the end, and without secrets."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from megaslm.doctor.check import Check, Diagnosis
from megaslm.doctor.host import environment
from megaslm.errors import ConfigError
from tests.messages import Says


def test_the_end_names_the_lines_that_say_what_to_do(says: Says) -> None:
    told: list[str] = []
    diagnosis = Diagnosis(told.append)
    assert diagnosis.look("a", lambda: [Check("a", "ok", "is well"), Check("a", "warning", "is slow", "make it quick")])
    assert not diagnosis.look("b", lambda: [Check("b", "problem", "is not there: 2 files\n  one\n  two")])
    diagnosis.end()
    says("\n".join(told))
    assert diagnosis.to_do() == ["b: is not there: 2 files\n  one\n  two", "a: make it quick"]


def test_where_all_is_well_nothing_is_to_do(says: Says) -> None:
    told: list[str] = []
    diagnosis = Diagnosis(told.append)
    diagnosis.look("a", lambda: [Check("a", "ok", "is well")])
    diagnosis.end()
    says("\n".join(told))
    assert diagnosis.as_json(None)["to_do"] == []


def test_an_error_ends_one_look_and_no_other(says: Says) -> None:
    def breaks() -> Iterator[Check]:
        yield Check("b", "ok", "is half looked at")
        raise RuntimeError("no such device")

    def refuses() -> Iterator[Check]:
        raise ConfigError("a.yaml: is no configuration")

    told: list[str] = []
    diagnosis = Diagnosis(told.append)
    assert diagnosis.look("b", breaks)
    assert not diagnosis.look("b", breaks, otherwise="problem")
    assert not diagnosis.look("c", refuses)
    assert [check.status for check in diagnosis.checks] == ["ok", "warning", "ok", "problem", "problem"]
    says("\n".join(told), "RuntimeError: no such device", "a.yaml")


def test_no_secret_is_told_or_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "xyzzy")
    url = "s3://key:xyzzy@bucket/tokens"
    told: list[str] = []
    diagnosis = Diagnosis(told.append)
    diagnosis.look("environment", environment)
    check = Check(
        "store", "problem", f"{url}: is not there", f"look at {url}", {"a": [url, Path("b")], "b": {"c": url}}
    )
    diagnosis.look("store", lambda: [check])
    diagnosis.end()
    written = json.dumps(diagnosis.as_json(Path("run.yaml")))
    assert "AWS_SECRET_ACCESS_KEY" in written
    assert "bucket/tokens" in written
    assert "xyzzy" not in written + "\n".join(told)
