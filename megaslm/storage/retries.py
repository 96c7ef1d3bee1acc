"""Requests to object storage: made again after faults that pass, given up with the reason after those that stay."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from megaslm.config.section import without_credentials
from megaslm.errors import DataError, MegaSLMError

T = TypeVar("T")

_log = logging.getLogger(__name__)
_LONGEST_WAIT_SECONDS = 30.0
# One fault or two are a network's daily life.
_TELL_AFTER_ATTEMPTS = 3
_TOO_MANY_OR_TOO_SLOW = (408, 409, 425, 429)
_PASSING_CODES = {"BadDigest", "IncompleteBody", "OperationAborted", "RequestTimeout", "XAmzContentSHA256Mismatch"}
"""S3's names for what went wrong on the way, answered with a status that otherwise blames the request."""
_NO_CREDENTIALS = {"DefaultCredentialsError", "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}
_BAD_NAMES = {"ParamValidationError"}
# By name, because the libraries that raise them are extras.

_system_random = random.SystemRandom()
"""Not the generator that a run seeds."""


@dataclass(frozen=True)
class RemoteSettings:
    """How patient reading from and writing to object storage is."""

    attempts: int = 8
    """How often a request is made before it is given up."""
    timeout_seconds: float = 60.0
    """The longest that a request may take for each block of `block_bytes` that it moves."""
    block_bytes: int = 8 * 2**20
    """The most bytes that one request reads, and what reading ahead keeps in memory."""
    first_wait_seconds: float = 0.5
    """The pause after the first fault, doubled after each further one up to 30 seconds, and shortened at random."""


class NotThere(DataError):
    """A remote file, folder or bucket does not exist."""


def with_retries(what: str, action: Callable[[], T], settings: RemoteSettings) -> T:
    """What `action` gives, tried again after faults that may pass; `what` begins the message if none succeeds.

    Raises NotThere where there is nothing at that place, DataError where the store refuses and after the last of
    `settings.attempts`.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            return action()
        except Exception as error:
            if isinstance(error, MegaSLMError) or not _comes_from_outside(error):
                raise
            given_up = _given_up(what, error, attempt, settings)
            if given_up is not None:
                raise given_up from error
            wait_seconds = _wait_seconds(attempt, settings)
            if attempt >= _TELL_AFTER_ATTEMPTS:
                cause = _described(error)
                _log.warning("%s: failed %d times, again in %.0f s (%s)", what, attempt, wait_seconds, cause)
        time.sleep(wait_seconds)


def _given_up(what: str, error: Exception, attempt: int, settings: RemoteSettings) -> DataError | None:
    """What is raised for `error`; null where another attempt is worth it."""
    if _is_absent(error):
        return NotThere(f"{what}: there is no such file, folder or bucket ({_described(error)})")
    refusal = _refusal(error)
    if refusal is not None:
        return DataError(f"{what}: {refusal} ({_described(error)})")
    if attempt < settings.attempts:
        return None
    return DataError(
        f"{what}: failed {attempt} times, at last with {_described(error)}; "
        "look at the network and the store, then run it again"
    )


def _wait_seconds(attempt: int, settings: RemoteSettings) -> float:
    """Random, so that many processes that failed together do not come back together."""
    longest = min(_LONGEST_WAIT_SECONDS, settings.first_wait_seconds * 2 ** (attempt - 1))
    return _system_random.uniform(longest / 2, longest)


def _comes_from_outside(error: Exception) -> bool:
    """Whether the system or a driver raised `error`, and not a slip in the code."""
    return isinstance(error, OSError) or type(error).__module__ != "builtins"


def _is_absent(error: Exception) -> bool:
    status = _status(error)
    # Some drivers call a file absent after any failure, and keep the failure as the cause.
    return status == 404 or (isinstance(error, FileNotFoundError) and status is None and error.__cause__ is None)


def _refusal(error: Exception) -> str | None:
    """Why asking again cannot help; None where it may."""
    name, status = type(error).__name__, _status(error)
    if isinstance(error, PermissionError) or status in (401, 403):
        return "access was denied; check the credentials and what they may do"
    if name in _NO_CREDENTIALS:
        return "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what your store asks for"
    if name in _BAD_NAMES or (status is not None and 300 <= status < 500 and status not in _TOO_MANY_OR_TOO_SLOW):
        return None if _code(error) in _PASSING_CODES else "the store refused the request"
    return None


def _status(error: Exception) -> int | None:
    """The HTTP status, where a driver tells it: aiohttp itself, or botocore behind s3fs's own exceptions."""
    response = getattr(error.__cause__, "response", None)
    if isinstance(response, dict):
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) or None
    stated = (getattr(each, "status", None) for each in (error, error.__cause__))
    return next((status for status in stated if isinstance(status, int)), None)


def _code(error: Exception) -> str | None:
    response = getattr(error.__cause__, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None


def _described(error: Exception) -> str:
    text = without_credentials(str(error).strip())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
