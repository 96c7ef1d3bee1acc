"""Completions through a server that is a process: what is sent, faults, refusals, an end at once."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from megaslm.errors import ConfigError, DataError, GenerationFailed, ServerRefused
from megaslm.generation.sampling import Completion, Prompt, Sampling, seed_of
from megaslm.generation.server import ServerGenerator
from megaslm.generation.server_requests import API_KEY, ServerSettings
from tests.completions_server import KEY, MODEL, Server, completions_server
from tests.generating import prompts_of, texts_of
from tests.messages import Says

QUICK = ServerSettings(attempts=4, first_wait_seconds=0.01)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv(API_KEY, raising=False)
    with completions_server() as running:
        yield running


def generator(server: Server, model: str = MODEL, concurrency: int = 4) -> ServerGenerator:
    return ServerGenerator(server.url, model, concurrency=concurrency, settings=QUICK)


def in_order(request: dict[str, Any]) -> str:
    return json.dumps(request, sort_keys=True)


def test_completions_come_in_order_however_many_at_once(server: Server) -> None:
    prompts = prompts_of(*(f"item number {number} of many" for number in range(40)))
    seen: dict[int, Completion] = {}
    found = generator(server, concurrency=8).generate(prompts, Sampling(20), finished=seen.__setitem__)
    assert texts_of(found) == [f" many of {number} number item" for number in range(40)]
    assert generator(server, concurrency=1).generate(prompts, Sampling(20)) == found
    assert dict(sorted(seen.items())) == dict(enumerate(found))


def test_the_end_is_told(server: Server) -> None:
    prompts = prompts_of("one two three")
    samplings = [Sampling(3), Sampling(2), Sampling(9, stop=(" two", "x"))]
    found = [generator(server).generate(prompts, sampling)[0] for sampling in samplings]
    assert found == [
        Completion(" three two one", 3, "eos"),
        Completion(" three two", 2, "length"),
        Completion(" three", 1, "stop"),
    ]


def test_what_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY, KEY)
    greedy, drawn = Sampling(5, stop=("\n",)), Sampling(6, temperature=0.5, top_p=0.9, seed=7)
    for sampling, url in ((greedy, server.url), (drawn, server.url + "/v1/")):
        made = ServerGenerator(url, MODEL, settings=QUICK)
        made.generate([Prompt("protected one", 3), Prompt((4, 5), 2**70)], sampling)
    sent = server.requests()
    assert {(request.pop("path"), request.pop("key")) for request in sent} == {("/v1/completions", f"Bearer {KEY}")}
    shared = {"model": MODEL, "n": 1}
    asked_greedily = {**shared, "max_tokens": 5, "temperature": 0.0, "stop": ["\n"]}
    asked_to_draw = {**shared, "max_tokens": 6, "temperature": 0.5, "top_p": 0.9}
    expected = [
        {**asked_greedily, "prompt": "protected one"},
        {**asked_greedily, "prompt": [4, 5]},
        *(
            {**asked_to_draw, "prompt": prompt, "seed": seed_of(drawn, key) % 2**31}
            for prompt, key in (("protected one", 3), ([4, 5], 2**70))
        ),
    ]
    assert sorted(map(in_order, sent)) == sorted(map(in_order, expected))


def test_transient_faults_are_passed_over(server: Server) -> None:
    found = generator(server).generate(prompts_of("busy one", "breaks two", "three"), Sampling(9))
    assert texts_of(found) == [" one busy", " two breaks", " three"]
    assert len(server.requests()) == 3 + 3 + 1


REFUSALS = {
    "long": ("long one", MODEL),
    "no such model": ("one", "gpt-9"),
    "no key": ("protected one", MODEL),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_ends_at_once_with_the_servers_words(server: Server, name: str, says: Says) -> None:
    prompt, model = REFUSALS[name]
    with pytest.raises(ServerRefused) as refused:
        generator(server, model).generate(prompts_of(prompt), Sampling(5))
    says(str(refused.value), SERVER=server.url)
    assert len(server.requests()) == 1


def test_the_key_is_never_said(server: Server, monkeypatch: pytest.MonkeyPatch, says: Says) -> None:
    monkeypatch.setenv(API_KEY, "wrong-5678")
    with pytest.raises(ServerRefused) as refused:
        generator(server).generate(prompts_of("protected one"), Sampling(5))
    assert "5678" not in str(refused.value)
    says(str(refused.value), SERVER=server.url)
    monkeypatch.setenv(API_KEY, "wrong-5678\nHost: x")
    with pytest.raises(ConfigError) as unusable:
        generator(server)
    assert "5678" not in str(unusable.value)
    says(str(unusable.value), API_KEY)


@pytest.mark.parametrize("prompt", ["down now", "odd one", "prose"])
def test_a_server_that_gives_no_completions_is_given_up(server: Server, prompt: str, says: Says) -> None:
    with pytest.raises(GenerationFailed) as failed:
        generator(server).generate(prompts_of(prompt), Sampling(5))
    says(str(failed.value), SERVER=server.url)


def test_a_server_that_is_not_there_is_given_up(server: Server, says: Says) -> None:
    server.requests()
    with pytest.raises(GenerationFailed) as failed:
        generator(server).generate(prompts_of("one"), Sampling(5))
    says(str(failed.value), SERVER=server.url)


def test_one_refusal_ends_requests_that_wait(server: Server) -> None:
    """The others would wait for ten minutes, for an answer and for a server that is down."""
    patient = ServerSettings(first_wait_seconds=30.0)
    made = ServerGenerator(server.url, MODEL, concurrency=3, settings=patient)
    with pytest.raises(ServerRefused):
        made.generate(prompts_of("hangs", "down", "one", "long"), Sampling(5))


def test_what_is_done_is_handed_over_before_a_failure(server: Server) -> None:
    seen: list[int] = []
    with pytest.raises(ServerRefused):
        generator(server, concurrency=1).generate(
            prompts_of("one", "two", "long"), Sampling(5), finished=lambda place, _: seen.append(place)
        )
    assert seen == [0, 1]


def test_an_empty_prompt_is_refused_before_any_request(server: Server) -> None:
    with pytest.raises(DataError):
        generator(server).generate(prompts_of("one", ""), Sampling(5))
    assert server.requests() == []


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://host", "http://", "http://host:port", "http://user:pass@host", "http://host?key=abc"],
)
def test_an_address_that_is_none_is_refused(url: str, says: Says) -> None:
    with pytest.raises(ConfigError) as refused:
        ServerGenerator(url, MODEL)
    says(str(refused.value))
    assert "pass" not in str(refused.value)
