"""Completions by a server with the OpenAI completions interface, such as vLLM's."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from megaslm.errors import GenerationFailed
from megaslm.generation.sampling import Completion, Ended, Finished, Prompt, Sampling, before_stop, seed_of
from megaslm.generation.server_requests import CompletionsServer, ServerSettings
from megaslm.generation.text_tokens import require_content

_MOST_SHOWN = 500
_SEED_BITS = 31
"""Servers take seeds of a signed 32-bit integer."""


class ServerGenerator:
    """Continues prompts through a server, several at once. What a seed gives is the server's own."""

    def __init__(self, url: str, model: str, *, concurrency: int = 16, settings: ServerSettings | None = None) -> None:
        """`url`: see `CompletionsServer`. `model`: its name there. `concurrency`: requests at the same time.

        Raises:
            ConfigError: the address or the key cannot be used.
        """
        self._url = url
        self._settings = settings or ServerSettings()
        self._model = model
        self._concurrency = concurrency
        # Checks the address before the first call.
        CompletionsServer(url, self._settings)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, finished: Finished | None = None
    ) -> list[Completion]:
        """The completions in the order of the prompts; each is also passed to `finished` as soon as it is there.

        Raises:
            DataError: a prompt is empty.
            ServerRefused: the server answered that a request is wrong, such as a prompt that is too long.
            GenerationFailed: the server cannot be reached, or gives no completions.
        """
        for place, prompt in enumerate(prompts):
            require_content(prompt, place)
        server = CompletionsServer(self._url, self._settings)
        done: dict[int, Completion] = {}
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="completions") as pool:
            running = {
                pool.submit(self._complete, server, prompt, sampling): place for place, prompt in enumerate(prompts)
            }
            try:
                for future in as_completed(running):
                    place = running[future]
                    done[place] = future.result()
                    if finished is not None:
                        finished(place, done[place])
            except BaseException:
                server.give_up()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [done[place] for place in range(len(prompts))]

    def _complete(self, server: CompletionsServer, prompt: Prompt, sampling: Sampling) -> Completion:
        request: dict[str, Any] = {
            "model": self._model,
            "prompt": prompt.content,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "n": 1,
        }
        if sampling.stop:
            request["stop"] = list(sampling.stop)
        if not sampling.is_greedy:
            request |= {"top_p": sampling.top_p, "seed": seed_of(sampling, prompt.key) % (1 << _SEED_BITS)}
        return _completion(server.complete(request), sampling, server.name)


def _completion(answer: dict[str, Any], sampling: Sampling, name: str) -> Completion:
    match answer:
        case {"choices": [{"text": str(text), "finish_reason": "stop" | "length" as reason} as choice]}:
            usage = answer.get("usage")
            tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
        case _:
            raise GenerationFailed(
                f"{name}: expected one choice with a text that ends by stop or length, found "
                f"{str(answer)[:_MOST_SHOWN]}; use a server with the OpenAI completions interface"
            )
    before = before_stop(text, sampling.stop)
    if before is not None:
        return Completion(before, tokens, "stop")
    return Completion(text, tokens, "length" if reason == "length" else _stopped(choice, sampling))


def _stopped(choice: dict[str, Any], sampling: Sampling) -> Ended:
    """vLLM names the stop string, and null for EOS. Where a server names nothing, a stop string is the usual end."""
    if "stop_reason" in choice:
        return "stop" if choice["stop_reason"] in sampling.stop else "eos"
    return "stop" if sampling.stop else "eos"
