"""What is tried again, how often, and what is said in the end."""

import pytest

from megaslm.errors import ConfigError, DataError
from megaslm.storage import retries
from megaslm.storage.retries import NotThere, RemoteSettings, with_retries
from tests.messages import Says

QUICK = RemoteSettings(attempts=4, first_wait_seconds=0.001)


class Flaky:
    """Raises each of the given errors once, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def store_error(kind: type[Exception], status: int, code: str) -> Exception:
    """As s3fs raises them: its own exception, with botocore's as the cause."""
    cause = Exception("from botocore")
    cause.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}  # type: ignore[attr-defined]
    return caused(kind("told by the store"), cause)


class DriverError(Exception):
    """Of a library."""

    status = 503


class Denied(Exception):
    """Of a library."""

    status = 403


class NoCredentialsError(Exception):
    """Named as botocore names its own."""


@pytest.mark.parametrize(
    "error",
    [
        OSError("network"),
        TimeoutError(),
        ConnectionResetError(),
        DriverError(),
        caused(FileNotFoundError("as fsspec calls whatever a web server does"), DriverError()),
        caused(FileNotFoundError("likewise"), ConnectionResetError()),
        store_error(OSError, 503, "SlowDown"),
        store_error(OSError, 400, "IncompleteBody"),
        store_error(OSError, 429, "TooManyRequests"),
    ],
)
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    action = Flaky(error, error, error)
    assert with_retries("x", action, QUICK) == "answer"
    assert action.calls == 4


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("no key"),
        PermissionError("denied"),
        caused(FileNotFoundError("none"), Denied()),
        store_error(OSError, 400, "InvalidBucketName"),
        store_error(OSError, 301, "PermanentRedirect"),
        NoCredentialsError(),
    ],
    ids=["absent", "denied", "denied below", "a name that cannot be", "elsewhere", "no credentials"],
)
def test_what_stays_is_said_at_once(error: Exception, says: Says) -> None:
    action = Flaky(error)
    with pytest.raises(DataError) as refused:
        with_retries("s3://b/x", action, QUICK)
    says(refused, "s3://b/x: ")
    assert action.calls == 1


def test_what_is_not_there_can_be_told_apart(says: Says) -> None:
    for error in (FileNotFoundError("no key"), store_error(FileNotFoundError, 404, "NoSuchKey")):
        with pytest.raises(NotThere) as refused:
            with_retries("x", Flaky(error), QUICK)
        says(refused, "x: ")


def test_whoever_waits_long_is_told_why(caplog: pytest.LogCaptureFixture, says: Says) -> None:
    with_retries("s3://b/x", Flaky(OSError("one"), OSError("two")), QUICK)
    assert not caplog.messages
    with_retries("s3://b/x", Flaky(OSError("one"), OSError("two"), OSError("three")), QUICK)
    (told,) = caplog.messages
    says(told, "s3://b/x: ", "3", "OSError: three")


def test_in_the_end_the_message_names_attempts_and_last_cause(says: Says) -> None:
    action = Flaky(*[OSError(f"fault {number}") for number in range(1, 9)])
    with pytest.raises(DataError) as refused:
        with_retries("s3://b/x, bytes 0 to 9", action, QUICK)
    says(refused, "s3://b/x, bytes 0 to 9: ", "4", "OSError: fault 4")
    assert action.calls == 4


@pytest.mark.parametrize(
    "error", [TypeError("a slip"), AttributeError("a slip"), DataError("said already"), ConfigError("likewise")]
)
def test_slips_and_finished_messages_pass_through(error: Exception) -> None:
    action = Flaky(error)
    with pytest.raises(type(error)) as raised:
        with_retries("x", action, QUICK)
    assert raised.value is error
    assert action.calls == 1


def test_pauses_double_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", pauses.append)
    with pytest.raises(DataError):
        with_retries("x", Flaky(*[OSError()] * 20), RemoteSettings(attempts=10))
    longest = [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert len(pauses) == len(longest)
    assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, longest, strict=True))
