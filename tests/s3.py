"""A real S3 endpoint on this machine, and a proxy before it that fails as a network does.

The fixtures `s3` and `faulty_s3` of tests/conftest.py give a fresh bucket, directly and through the proxy, with the
environment in which boto3, s3fs and streaming find it; child processes inherit that environment.
"""

import fnmatch
import http.client
import importlib.util
import random
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from xml.etree import ElementTree

_SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
"""Ends with its parent, however that ends: its input is closed then."""
AUTHORIZATION = {"Authorization": "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request"}
"""Enough for moto, which looks at who asks and not at the signature."""
_HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
}
_BLOCK_BYTES = 64 * 2**10


def can_serve_s3() -> bool:
    """Whether moto and what it needs are installed."""
    return all(importlib.util.find_spec(name) for name in ("moto", "boto3", "flask"))


def s3_environment(endpoint_url: str) -> dict[str, str]:
    """What boto3, s3fs and streaming need to find the endpoint, and to ask nobody else."""
    return {
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "NO_PROXY": "127.0.0.1",
    }


@contextmanager
def s3_server() -> Iterator[str]:
    """moto's S3 server in a process of its own; gives its URL."""
    command = [sys.executable, "-c", _SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@dataclass(frozen=True)
class Bucket:
    """A bucket, written and read without any of the libraries under test."""

    endpoint_url: str
    """Of the server itself, not of a proxy."""
    name: str

    @classmethod
    def create(cls, endpoint_url: str) -> "Bucket":
        bucket = cls(endpoint_url, f"test-{uuid.uuid4().hex[:12]}")
        bucket._ask("PUT", "", b"")
        return bucket

    def url(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def put(self, key: str, content: bytes, *, public: bool = False) -> None:
        """`public`: for everybody who asks by plain HTTP."""
        self._ask("PUT", key, content, {"x-amz-acl": "public-read"} if public else {})

    def get(self, key: str) -> bytes:
        return self._ask("GET", key)

    def delete(self, key: str) -> None:
        self._ask("DELETE", key)

    def stored_keys(self, prefix: str = "") -> list[str]:
        """Every key that begins with `prefix`, sorted."""
        query = urllib.parse.urlencode({"list-type": 2, "prefix": prefix, "max-keys": 1000})
        page = ElementTree.fromstring(self._ask("GET", f"?{query}"))
        assert page.findtext("{*}IsTruncated") == "false", "more keys than one page holds"
        return sorted(element.findtext("{*}Key") or "" for element in page.iterfind("{*}Contents"))

    def unfinished_uploads(self) -> int:
        """Multipart uploads that were begun and neither completed nor given up."""
        return len(ElementTree.fromstring(self._ask("GET", "?uploads")).findall("{*}Upload"))

    def _ask(
        self,
        method: str,
        key: str,
        content: bytes | None = None,
        more_headers: Mapping[str, str] = MappingProxyType({}),
    ) -> bytes:
        path = key if key.startswith("?") else urllib.parse.quote(key)
        # Without a type urllib calls the content a form, and the server waits for more of it.
        headers = {"Content-Type": "application/octet-stream", **AUTHORIZATION, **more_headers}
        request = urllib.request.Request(f"{self.endpoint_url}/{self.name}/{path}", content, headers, method=method)
        with urllib.request.urlopen(request, timeout=5) as answer:
            body: bytes = answer.read()
        return body


@dataclass(frozen=True)
class Answer:
    """Fault: another status, with an S3 error as its body, and the request goes no further."""

    status: int
    code: str = "InternalError"


@dataclass(frozen=True)
class Stall:
    """Fault: `after_bytes` of the body, then nothing for a while; none: nothing at all, not even the head."""

    seconds: float
    after_bytes: int | None = None


@dataclass(frozen=True)
class Truncate:
    """Fault: the head promises the whole body, the connection ends after `after_bytes` of it."""

    after_bytes: int


@dataclass(frozen=True)
class Trickle:
    """Fault: the body comes, never silent for long, but slowly."""

    bytes_per_second: int


@dataclass(frozen=True)
class IgnoreRange:
    """Fault: the server knows no ranges and sends the whole object with status 200."""


@dataclass(frozen=True)
class Reset:
    """Fault: the connection is closed without an answer, after the server has done what was asked."""


Fault = Answer | Stall | Truncate | Trickle | IgnoreRange | Reset


@dataclass
class Rule:
    """Which requests meet a fault: those of `methods` whose key fits, all or the `nth` of them or a fraction."""

    fault: Fault
    methods: tuple[str, ...] = ("GET",)
    keys: str = "*"
    """A pattern over BUCKET/KEY?QUERY, as fnmatch reads it."""
    nth: tuple[int, ...] | None = None
    """Counted from 1 among the requests that fit."""
    fraction: float = 1.0
    seed: int = 0
    _seen: int = field(default=0, init=False)
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def strikes(self, method: str, path: str) -> bool:
        if method not in self.methods or not fnmatch.fnmatchcase(path.lstrip("/"), self.keys):
            return False
        self._seen += 1
        if self.nth is not None:
            return self._seen in self.nth
        return self._random.random() < self.fraction


@dataclass
class Seen:
    """A request that came through the proxy."""

    method: str
    path: str
    """BUCKET/KEY?QUERY, decoded."""
    range: str | None
    """The header Range."""
    fault: Fault | None
    status: int = 0
    """What was answered; 0 where nothing was."""
    sent_bytes: int = 0
    """Of the body of the answer."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Else closing would wait for connections that clients keep open.
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is none."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class FaultyProxy:
    """An HTTP/1.1 proxy in front of one server that forwards faithfully, but for its rules."""

    def __init__(self, upstream_url: str) -> None:
        self.upstream = urllib.parse.urlsplit(upstream_url).netloc
        self.seen: list[Seen] = []
        """Every request, in the order of arrival."""
        self.rules: list[Rule] = []
        """The first that strikes decides; tests append to it and clear it."""
        self.closing = threading.Event()
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            pass

        Handler.proxy = proxy
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def faults(self) -> int:
        """How many requests met a fault."""
        return sum(seen.fault is not None for seen in self.seen)

    def requests(self, method: str, keys: str = "*") -> list[Seen]:
        """Those of a method whose BUCKET/KEY?QUERY fits a pattern."""
        return [seen for seen in self.seen if seen.method == method and fnmatch.fnmatchcase(seen.path, keys)]

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def receive(self, method: str, path: str, range_header: str | None) -> Seen:
        decoded = urllib.parse.unquote(path).lstrip("/")
        with self._lock:
            fault = next((rule.fault for rule in self.rules if rule.strikes(method, decoded)), None)
            seen = Seen(method, decoded, range_header, fault)
            self.seen.append(seen)
        return seen


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def do_GET(self) -> None:
        body = self._request_body()
        seen = self.proxy.receive(self.command, self.path, self.headers.get("Range"))
        try:
            match seen.fault:
                case Answer(status, code):
                    self._refuse(seen, status, code)
                case Stall(seconds, None):
                    self.proxy.closing.wait(seconds)
                    self._forward(seen, body)
                case _:
                    self._forward(seen, body)
        except (ConnectionError, TimeoutError):
            # The client gave up waiting, which is what some faults are for.
            self.close_connection = True

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _forward(self, seen: Seen, body: bytes | None) -> None:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        if isinstance(seen.fault, IgnoreRange):
            headers = {name: value for name, value in headers.items() if name.lower() != "range"}
        if body is not None:
            headers["Content-Length"] = str(len(body))
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=60)
        try:
            # putrequest and not request: every header goes as it came, Host among them, which signatures cover.
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            self._relay(seen, connection.getresponse())
        finally:
            connection.close()

    def _relay(self, seen: Seen, answer: http.client.HTTPResponse) -> None:
        if isinstance(seen.fault, Reset):
            self.close_connection = True
            return
        content = answer.read()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP and (name.lower() != "content-length" or self.command == "HEAD"):
                self.send_header(name, value)
        if self.command != "HEAD" and answer.status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        seen.status = answer.status
        self._send(seen, content)

    def _send(self, seen: Seen, content: bytes) -> None:
        step = seen.fault.bytes_per_second // 10 if isinstance(seen.fault, Trickle) else _BLOCK_BYTES
        for start in range(0, len(content), step):
            block = content[start : start + step]
            match seen.fault:
                case Trickle():
                    self.proxy.closing.wait(0.1)
                    self._write(seen, block)
                case Stall(seconds, int(after)) if start <= after < start + len(block):
                    self._write(seen, block[: after - start])
                    self.proxy.closing.wait(seconds)
                    self._write(seen, block[after - start :])
                case Truncate(after) if after < start + len(block):
                    self._write(seen, block[: after - start])
                    self.close_connection = True
                    return
                case _:
                    self._write(seen, block)

    def _write(self, seen: Seen, block: bytes) -> None:
        self.wfile.write(block)
        seen.sent_bytes += len(block)

    def _refuse(self, seen: Seen, status: int, code: str) -> None:
        body = (
            b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code><Message>planted</Message></Error>".encode()
        )
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        seen.status = status
        self._write(seen, body)

    def _request_body(self) -> bytes | None:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return b"".join(self._chunks())
        length = self.headers.get("Content-Length")
        return None if length is None else self.rfile.read(int(length))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def log_message(self, format: str, *args: object) -> None:
        pass


@dataclass(frozen=True)
class FaultyS3:
    """A bucket that programs reach through a proxy, while the test looks at it directly."""

    bucket: Bucket
    proxy: FaultyProxy
