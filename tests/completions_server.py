"""A small completions server for tests, as a process: it answers as vLLM does, and fails where a prompt asks for it.

It prints its port, then each request as a line of JSON.
"""

import json
import re
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from subprocess import PIPE, Popen
from typing import IO, Any, ClassVar

from tests.launched import ROOT

MODEL = "toy"
KEY = "sesame-1234"
FAULTS = {"busy": [429, 503], "breaks": [0, 500], "down": [503] * 100}
"""First words of prompts: the answers to the first requests; 0 closes the connection without one."""


_SUM = re.compile(r".*What is (\d+) plus (\d+)\?", re.DOTALL)


def continuation(prompt: str, seed: int = 0) -> str:
    """What the model says, then EOS: its prompt's words, backwards. To a sum it writes one of three programs."""
    asked = _SUM.match(prompt)
    if asked is None:
        return " " + " ".join(reversed(prompt.split()))
    first, second = asked.groups()
    so_far = prompt[asked.end() :]
    if "```output" in so_far:
        return f"It is $\\boxed{{{so_far.split()[-2]}}}$."
    program = (f"{first} + {second}", f"{second} + {first}", f"{first} - {second} - 1")[seed % 3]
    return f"A program adds them.\n```python\nprint({program})\n```\n```output\n"


class _Handler(BaseHTTPRequestHandler):
    seen: ClassVar[Counter[str]] = Counter()
    lock = threading.Lock()

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = request["prompt"] if isinstance(request["prompt"], str) else "ids"
        with self.lock:
            print(json.dumps({"path": self.path, "key": self.headers["Authorization"], **request}), flush=True)
            number = self.seen[prompt]
            self.seen[prompt] += 1
        first = prompt.split()[0]
        if number < len(FAULTS.get(first, [])):
            self._fail(FAULTS[first][number])
        elif first == "hangs":
            time.sleep(600)
        elif first == "odd":
            self._answer(200, {"object": "text_completion", "choices": []})
        elif first == "prose":
            self._send(200, b"<html>a proxy's page</html>")
        elif first == "protected" and self.headers["Authorization"] != f"Bearer {KEY}":
            self._answer(401, {"error": {"message": f"wrong key: {self.headers['Authorization']}"}})
        elif request["model"] != MODEL:
            message = f"The model `{request['model']}` does not exist."
            self._answer(404, {"error": {"message": message, "type": "NotFoundError", "code": 404}})
        elif first == "long":
            self._answer(400, {"object": "error", "message": "This model's maximum context length is 64 tokens."})
        else:
            self._answer(200, self._completion(request, prompt))

    def _completion(self, request: dict[str, Any], prompt: str) -> dict[str, Any]:
        text, reason, stop_reason = continuation(prompt, request.get("seed") or 0), "stop", None
        words = text.split()
        if len(words) > request["max_tokens"]:
            text, reason = " " + " ".join(words[: request["max_tokens"]]), "length"
        for stop in request.get("stop", []):
            if stop in text:
                text, reason, stop_reason = text.partition(stop)[0], "stop", stop
        if request["temperature"] != 0 and _SUM.match(prompt) is None:
            text += f" {request['seed']}"
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason, "stop_reason": stop_reason}
        usage = {"prompt_tokens": 1, "completion_tokens": len(text.split()), "total_tokens": 1 + len(text.split())}
        return {"object": "text_completion", "model": MODEL, "choices": [choice], "usage": usage}

    def _fail(self, status: int) -> None:
        if status == 0:
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self._answer(status, {"error": {"message": "too much to do"}}, {"Retry-After": "0"})

    def _answer(self, status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(content).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Server:
    """A running server."""

    def __init__(self, process: "Popen[str]") -> None:
        self._process = process
        self.url = f"http://127.0.0.1:{int(self._output.readline())}"

    @property
    def _output(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout

    def requests(self) -> list[dict[str, Any]]:
        """Ends the server; gives all requests that it got."""
        self._process.kill()
        return [json.loads(line) for line in self._output]


@contextmanager
def completions_server() -> Iterator[Server]:
    """A server on a free port of this host."""
    with Popen([sys.executable, "-m", "tests.completions_server"], cwd=ROOT, stdout=PIPE, text=True) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
