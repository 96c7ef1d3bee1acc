"""Requests to a completions server: retried after transient faults, given up with the server's reason otherwise."""

import json
import logging
import os
import random
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from socket import SHUT_RDWR
from typing import Any
from urllib.parse import urlsplit

from megaslm.config.section import without_credentials
from megaslm.errors import ConfigError, GenerationFailed, ServerRefused

API_KEY = "MEGASLM_SERVER_KEY"
"""The environment variable of the key that is sent as a bearer token. It is never printed."""

_log = logging.getLogger(__name__)
_LONGEST_WAIT_SECONDS = 30.0
_CONNECTING_SECONDS = 30.0
# One fault or two are normal on a network.
_TELL_AFTER_ATTEMPTS = 3
_TRANSIENT = (408, 409, 425, 429)
_MOST_SHOWN = 500
_system_random = random.SystemRandom()
"""A generator of its own, independent of the run's seed."""


@dataclass(frozen=True)
class ServerSettings:
    """Limits of requests to a completions server."""

    attempts: int = 8
    """Attempts per request before it is given up."""
    timeout_seconds: float = 600.0
    """Most seconds without a byte from the server; it answers when the completion is done."""
    first_wait_seconds: float = 0.5
    """Pause after the first fault; doubled after each further one up to 30 seconds, and shortened at random. A server
    that names a pause (Retry-After) gets it, within the same 30 seconds."""


class _Fault(Exception):
    """An attempt failed, and another one may succeed."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class CompletionsServer:
    """The completions endpoint of an OpenAI-compatible server. May be used by several threads."""

    def __init__(self, url: str, settings: ServerSettings) -> None:
        """`url` is the server's address, with or without /v1. Reads the key from the environment.

        Raises:
            ConfigError: `url` is not one, or the key cannot be sent.
        """
        try:
            parts = urlsplit(url)
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError as error:
            raise ConfigError(f"the server {without_credentials(url)}: {error}; expected http://HOST:PORT") from error
        if parts.scheme not in ("http", "https") or not self._host or parts.query or parts.fragment:
            raise ConfigError(
                f"the server {without_credentials(url)!r}: expected http://HOST:PORT or https://HOST/PATH"
            )
        if parts.username is not None:
            raise ConfigError(f"the server {without_credentials(url)}: set {API_KEY} instead of a key in the address")
        self._is_encrypted = parts.scheme == "https"
        self._path = parts.path.rstrip("/").removesuffix("/completions").removesuffix("/v1") + "/v1/completions"
        self.name = f"{parts.scheme}://{parts.netloc}{self._path}"
        self._settings = settings
        self._key = _key()
        self._given_up = threading.Event()
        self._lock = threading.Lock()
        self._open: set[HTTPConnection] = set()

    def complete(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The server's answer to a request, a JSON object.

        Raises:
            ServerRefused: the server answered that the request is wrong.
            GenerationFailed: no attempt succeeded, or `give_up` was called.
        """
        body = json.dumps(request).encode()
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._attempt(body)
            except _Fault as fault:
                if attempt >= self._settings.attempts:
                    raise GenerationFailed(
                        f"{self.name}: failed {attempt} times, at last with: {fault}; check that the server runs and "
                        "can be reached from here, then run it again: finished items are kept"
                    ) from fault
                wait_seconds = fault.wait_seconds or self._wait_seconds(attempt)
                if attempt >= _TELL_AFTER_ATTEMPTS:
                    _log.warning("%s: failed %d times, again in %.0f s (%s)", self.name, attempt, wait_seconds, fault)
            if self._given_up.wait(min(wait_seconds, _LONGEST_WAIT_SECONDS)):
                raise GenerationFailed(f"{self.name}: another request failed")

    def give_up(self) -> None:
        """Ends all requests, also those that wait for an answer."""
        self._given_up.set()
        with self._lock:
            for connection in self._open:
                # A thread that reads from it then sees its end. One that has just closed it is done anyway.
                with suppress(OSError, AttributeError):
                    connection.sock.shutdown(SHUT_RDWR)

    def _attempt(self, body: bytes) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            with self._connection() as connection:
                connection.request("POST", self._path, body, headers)
                response = connection.getresponse()
                status, answer, pause = response.status, response.read(), response.getheader("Retry-After", "")
        except ssl.SSLCertVerificationError as error:
            raise ServerRefused(
                f"{self.name}: its certificate is not trusted here: {error.verify_message}; set SSL_CERT_FILE to the "
                "certificate of its authority"
            ) from error
        except (OSError, HTTPException) as error:
            raise _Fault(f"{type(error).__name__}: {error}") from error
        if status == 200:
            return self._object(answer)
        reason = f"status {status}: {self._message(answer)}"
        if status >= 500 or status in _TRANSIENT:
            raise _Fault(reason, float(pause) if pause.isdecimal() else None)
        hint = f"; set {API_KEY} to a key of this server" if status in (401, 403) else ""
        raise ServerRefused(f"{self.name} refused the request, {reason}{hint}")

    @contextmanager
    def _connection(self) -> Iterator[HTTPConnection]:
        connection_class = HTTPSConnection if self._is_encrypted else HTTPConnection
        most_seconds = self._settings.timeout_seconds
        connection = connection_class(self._host, self._port, timeout=min(_CONNECTING_SECONDS, most_seconds))
        try:
            connection.connect()
            connection.sock.settimeout(most_seconds)
            with self._lock:
                self._open.add(connection)
            yield connection
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _object(self, answer: bytes) -> dict[str, Any]:
        try:
            content = json.loads(answer)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise _Fault(f"status 200 without a JSON object: {self._message(answer)}")
        return content

    def _message(self, answer: bytes) -> str:
        """The server's own words, without the key."""
        text = answer.decode("utf-8", errors="replace").strip()
        try:
            content = json.loads(text)
        except ValueError:
            content = None
        if isinstance(content, dict):
            error = content.get("error", content)
            stated = error.get("message") or error.get("detail") if isinstance(error, dict) else error
            text = str(stated or text)
        if self._key is not None:
            text = text.replace(self._key, "***")
        return text[:_MOST_SHOWN] or "no reason given"

    def _wait_seconds(self, attempt: int) -> float:
        """Random, so that requests that failed together do not return together."""
        longest = min(_LONGEST_WAIT_SECONDS, self._settings.first_wait_seconds * 2 ** (attempt - 1))
        return _system_random.uniform(longest / 2, longest)


def _key() -> str | None:
    key = os.environ.get(API_KEY, "").strip()
    if not key:
        return None
    # http.client would print it in its own error.
    if not key.isascii() or not key.isprintable():
        raise ConfigError(f"{API_KEY}: holds characters that a header cannot; set it again")
    return key
