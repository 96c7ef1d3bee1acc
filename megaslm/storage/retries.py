"""Requests to object storage: retried after transient faults, given up with the reason after permanent ones."""

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
# One fault or two are normal on a network.
_TELL_AFTER_ATTEMPTS = 3
_TOO_MANY_OR_TOO_SLOW = (408, 409, 425, 429)
_PASSING_CODES = {"BadDigest", "IncompleteBody", "OperationAborted", "RequestTimeout", "XAmzContentSHA256Mismatch"}
"""S3's codes for transient faults, answered with a status that otherwise blames the request."""
_NO_CREDENTIALS = {"DefaultCredentialsError", "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}
_BAD_NAMES = {"ParamValidationError"}
# By name, because the libraries that raise these classes are extras.

_system_random = random.SystemRandom()
"""A generator of its own, independent of the run's seed."""


@dataclass(frozen=True)
class RemoteSettings:
    """Limits of requests to object storage."""

    attempts: int = 8
    """Attempts per request before it is given up."""
    timeout_seconds: float = 60.0
    """Most seconds that a request may take per block of `block_bytes`."""
    block_bytes: int = 8 * 2**20
    """Most bytes that one request reads, and that reading ahead keeps in memory."""
    first_wait_seconds: float = 0.5
    """Pause after the first fault; doubled after each further fault up to 30 seconds, and shortened at random."""


class NotThere(DataError):
    """A remote file, folder or bucket does not exist."""


def with_retries(what: str, action: Callable[[], T], settings: RemoteSettings) -> T:
    """The result of `action`, retried after transient faults; `what` begins the message if no attempt succeeds.

    Raises NotThere where the file does not exist, and DataError where the store refuses the request or after the last
    of `settings.attempts`.
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
    """The exception for `error`; None where another attempt is useful."""
    if _is_absent(error):
        return NotThere(f"{what}: there is no such file, folder or bucket ({_described(error)})")
    refusal = _refusal(error)
    if refusal is not None:
        return DataError(f"{what}: {refusal} ({_described(error)})")
    if attempt < settings.attempts:
        return None
    return DataError(
        f"{what}: failed {attempt} times, at last with {_described(error)}; "
        "check the network and the store, then run it again"
    )


def _wait_seconds(attempt: int, settings: RemoteSettings) -> float:
    """Random, so that processes that failed together do not retry together."""
    longest = min(_LONGEST_WAIT_SECONDS, settings.first_wait_seconds * 2 ** (attempt - 1))
    return _system_random.uniform(longest / 2, longest)


def _comes_from_outside(error: Exception) -> bool:
    """Whether the system or a driver raised `error`, rather than a bug in the code."""
    return isinstance(error, OSError) or type(error).__module__ != "builtins"


def _is_absent(error: Exception) -> bool:
    status = _status(error)
    # Some drivers report any failure as an absent file, with the failure as its cause.
    return status == 404 or (isinstance(error, FileNotFoundError) and status is None and error.__cause__ is None)


def _refusal(error: Exception) -> str | None:
    """Why another attempt cannot help; None where it may."""
    name, status = type(error).__name__, _status(error)
    if isinstance(error, PermissionError) or status in (401, 403):
        return "access was denied; check the credentials and their permissions"
    if name in _NO_CREDENTIALS:
        return "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or your store's variables"
    if name in _BAD_NAMES or (status is not None and 300 <= status < 500 and status not in _TOO_MANY_OR_TOO_SLOW):
        return None if _code(error) in _PASSING_CODES else "the store refused the request"
    return None


def _status(error: Exception) -> int | None:
    """The HTTP status, where a driver has it: aiohttp itself, or botocore behind s3fs's own exceptions."""
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
