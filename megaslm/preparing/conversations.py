"""Conversations as texts in which only what the assistant writes is trained on."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megaslm.corpus.record_text import Message
from megaslm.errors import DataError
from megaslm.preparing.chat_template import ChatTemplate

_ASSISTANT = "assistant"
_TORA_ROLES = ("system", "user", _ASSISTANT)
# The fence ```output is the assistant's: it hands over to the interpreter by writing it, and generation stops there.
# What follows, up to the line below the closing fence, is the tool's.
_TOOL_OUTPUT = re.compile(r"^```output([^\S\n]*\n.*?(?:^```[^\S\n]*$\n?|\Z))", re.MULTILINE | re.DOTALL)


class Conversation(NamedTuple):
    """The text of a conversation up to the assistant's last message. EOS follows it and is trained on."""

    text: str
    trained: tuple[range, ...]
    """The places of the characters that are trained on, in order."""

    def cut(self, start: int, stop: int) -> "Conversation":
        """The characters from `start` to `stop` (excluded)."""
        kept = (range(max(start, span.start) - start, min(stop, span.stop) - start) for span in self.trained)
        return Conversation(self.text[start:stop], tuple(span for span in kept if span))

    def trained_tokens(self, starts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(tokens,) bool, for tokens that begin at these characters: which of them are trained on.

        A token that reaches over a bound belongs to the side on which it begins.
        """
        bounds = np.array([bound for span in self.trained for bound in (span.start, span.stop)], dtype=np.int64)
        return np.searchsorted(bounds, starts, side="right") % 2 == 1


def in_tora_format(messages: Sequence[Message]) -> Conversation:
    """Each message below a line with its role, such as `<|user|>`, as in the fine-tuning of ToRA (arXiv 2309.17452).

    Raises DataError where nothing is the assistant's, or a role is unknown.
    """
    text, trained = "", list[range]()
    for number, message in enumerate(_up_to_last_answer(messages), start=1):
        if message.role not in _TORA_ROLES:
            raise DataError(
                f"message {number} has the role {message.role!r}; chat_format: tora knows {', '.join(_TORA_ROLES)}: "
                "write a tool's output into the assistant's message, between ```output and ```, or leave the record out"
            )
        content = message.content.strip()
        text += f"\n<|{message.role}|>\n" if text else f"<|{message.role}|>\n"
        if message.role == _ASSISTANT:
            trained += _own_words(content, len(text))
        text += content
    return Conversation(text, tuple(trained))


def in_template(messages: Sequence[Message], template: ChatTemplate) -> Conversation:
    """The text of the tokenizer's chat template.

    Raises DataError where nothing is the assistant's, the template refuses the messages, or it writes the beginning of
    a conversation otherwise once more messages follow.
    """
    read = _up_to_last_answer(messages)
    text, trained = template.render(read), list[range]()
    for number, message in enumerate(read):
        if message.role == _ASSISTANT:
            before = template.render(read[:number], opens_answer=True)
            upto = template.render(read[: number + 1])
            if not (text.startswith(upto) and upto.startswith(before)):
                raise DataError(
                    f"the tokenizer's chat template writes the conversation up to message {number + 1} otherwise when "
                    "more messages follow, so that it is not known what the assistant writes; set chat_format: tora, "
                    "or leave the record out"
                )
            trained += _own_words(upto[len(before) :], len(before))
    return Conversation(text, tuple(trained))


def _up_to_last_answer(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages without those that no answer follows."""
    answers = [number for number, message in enumerate(messages) if message.role == _ASSISTANT]
    if not answers:
        raise DataError("no message is the assistant's, so that nothing would be trained on; leave the record out")
    return messages[: answers[-1] + 1]


def _own_words(written: str, start: int) -> Iterator[range]:
    """The places of the assistant's own words in a message that begins at character `start`."""
    begin = 0
    for output in _TOOL_OUTPUT.finditer(written):
        if begin < output.start(1):
            yield range(start + begin, start + output.start(1))
        begin = output.end(1)
    if begin < len(written):
        yield range(start + begin, start + len(written))
