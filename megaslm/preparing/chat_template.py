"""A tokenizer's chat template: the text that it makes of a conversation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from megaslm.corpus.record_text import Message
from megaslm.errors import DataError
from megaslm.tokenizer.folder_tokens import named_tokens, read_object

_FILE, _CONFIG = "chat_template.jinja", "tokenizer_config.json"
TEMPLATE_FILES = (_FILE, _CONFIG)
"""The files of a tokenizer's folder that may hold its template. The first one that does counts."""
_TODAY = "strftime_now"
_DEFAULT = "default"


class ChatTemplate:
    """The template of a tokenizer's folder. transformers renders it, in jinja's sandbox for untrusted templates."""

    def __init__(self, template: str, special_names: Mapping[str, str]) -> None:
        """`special_names` are the names of special tokens by role, such as `eos_token`."""
        self._template = template
        self._special_names = dict(special_names)

    @classmethod
    def of(cls, folder: Path) -> "ChatTemplate":
        """Raises DataError where the folder has no template, or one that writes the date of the day."""
        template = _template_in(folder)
        if _TODAY in template:
            raise DataError(
                f"chat_format: tokenizer: the chat template of the recipe's tokenizer writes today's date ({_TODAY}), "
                "so that a dataset would differ from day to day; write a fixed date into the template"
            )
        return cls(template, named_tokens(folder))

    def render(self, messages: Sequence[Message], *, opens_answer: bool = False) -> str:
        """The text of messages. With `opens_answer`, up to the place where the assistant's next message begins.

        Raises DataError where the template refuses them.
        """
        # Importing it takes seconds, and few recipes need it.
        from jinja2 import TemplateError, TemplateSyntaxError
        from transformers.utils.chat_template_utils import render_jinja_template

        conversation = [message._asdict() for message in messages]
        try:
            (text,), _ = cast(
                tuple[list[str], object],
                render_jinja_template(
                    [conversation],
                    chat_template=self._template,
                    add_generation_prompt=opens_answer,
                    **self._special_names,
                ),
            )
        except TemplateSyntaxError as error:
            raise DataError(
                f"the tokenizer's chat template is not valid jinja: {error}; correct the template"
            ) from error
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise DataError(f"the tokenizer's chat template refuses it: {error}; leave the record out") from error
        return text


def _template_in(folder: Path) -> str:
    path = folder / _FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = read_object(folder / _CONFIG).get("chat_template")
    if isinstance(found, list):
        found = next((each.get("template") for each in found if each.get("name") == _DEFAULT), None)
    if not isinstance(found, str):
        raise DataError(
            f"chat_format: tokenizer: the recipe's tokenizer has no chat template, neither {_FILE} nor chat_template "
            f"in its {_CONFIG}; set chat_format: tora, or use the tokenizer of a chat model"
        )
    return found
