"""Noise of known kinds, and documents into which it is put.

A part of the documents becomes noise as a whole; a part of the others gets a stretch of noise inside. The text alone
decides what becomes of it, so that the noise is the same on every machine.
"""

import base64
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from benchmarks.selection_suite.texts import Document, Span, inserted
from megaslm.corpus.documents import hash_of

WHOLE_SHARE = 0.4
"""The share of documents that become noise as a whole, evenly over the kinds."""
INNER_SHARE = 0.25
"""The share of the other documents that get a stretch of noise."""
_OCR_SHARE = 0.15
_OCR_CONFUSIONS = str.maketrans("eolnhisamutcrEOSBI", "c01rbj5eniftvF058l")
_OTHER_LETTERS = str.maketrans(
    "aeioubcdfghjklmnpqrstvwxyzAEIOUBCDFGHJKLMNPQRSTVWXYZ", "oiuaezkvntprgdbslxhmcfwqjyOIUAEZKVNTPRGDBSLXHMCFWQJY"
)
_MENU = (
    *("Home", "About us", "Contact", "Log in", "Register", "My account", "Help", "Search", "News", "Archive", "Forum"),
    *("Downloads", "Site map", "Print this page", "Share", "Previous", "Next", "Back to top", "Categories", "Tags"),
)
_SENTENCES = (
    "All rights reserved. No part of this site may be reproduced without written permission.",
    "We use cookies to improve your experience. By continuing to visit this site you agree to our use of cookies.",
    "Please read our terms of service and our privacy policy carefully before you use this site.",
    "This site is provided as is, without warranty of any kind, express or implied.",
    "Sign up for our newsletter to receive the latest offers directly in your inbox.",
    "Your comment will appear after it has been approved by a moderator.",
    "JavaScript is disabled in your browser. Please enable it to use all features of this site.",
    "If you have any questions, please contact our support team during business hours.",
)


def shuffled_words(text: str, chance: random.Random) -> str:
    """The words of the text in another order."""
    words = re.findall(r"\S+\s*", text)
    chance.shuffle(words)
    return "".join(words)


def random_base64(text: str, chance: random.Random) -> str:
    """Random bytes as lines of base64, about as long as the text."""
    coded = base64.b64encode(chance.randbytes(len(text) * 3 // 4)).decode()
    return "\n".join(coded[start : start + 76] for start in range(0, len(coded), 76)) + "\n"


def boilerplate(text: str, chance: random.Random) -> str:
    """Sentences that many sites have, up to about the length of the text."""
    return _repeated(len(text), lambda: " ".join(chance.sample(_SENTENCES, 3)))


def navigation(text: str, chance: random.Random) -> str:
    """Lines of menus, up to about the length of the text."""
    return _repeated(len(text), lambda: " | ".join(chance.sample(_MENU, 8)))


def ocr_errors(text: str, chance: random.Random) -> str:
    """The text with single characters misread. Its length stays."""
    return "".join(letter.translate(_OCR_CONFUSIONS) if chance.random() < _OCR_SHARE else letter for letter in text)


def other_language(text: str, chance: random.Random) -> str:
    """The text as in another language: every vowel and every consonant stands for another one throughout."""
    return text.translate(_OTHER_LETTERS)


Noise = Callable[[str, random.Random], str]
WHOLE: dict[str, Noise] = {
    "shuffled words": shuffled_words,
    "base64": random_base64,
    "boilerplate": boilerplate,
    "navigation": navigation,
    "OCR errors": ocr_errors,
    "other language": other_language,
}
INNER: dict[str, Noise] = {name: WHOLE[name] for name in ("base64", "navigation", "OCR errors")}


def with_noise(documents: Iterable[Document], clean: str) -> list[Document]:
    """The documents with noise in them. Documents of the kind `clean` and existing spans stay as they are."""
    return [document if document.kind == clean else _disturbed(document) for document in documents]


def _disturbed(document: Document) -> Document:
    chance = random.Random(hash_of("noise", document.text))
    drawn = chance.random()
    if drawn < WHOLE_SHARE:
        kind, noise = chance.choice(list(WHOLE.items()))
        return Document(noise(document.text, chance), kind)
    if drawn < WHOLE_SHARE + (1 - WHOLE_SHARE) * INNER_SHARE:
        kind, noise = chance.choice(list(INNER.items()))
        return _with_stretch(document, kind, noise, chance)
    return document


def _with_stretch(document: Document, kind: str, noise: Noise, chance: random.Random) -> Document:
    """The document with a stretch of noise at a line end. OCR errors take the place of what they misread."""
    ends = [found.end() for found in re.finditer("\n", document.text)]
    free = [end for end in ends if all(not span.start < end < span.stop for span in document.spans)]
    start = chance.choice(free) if free else 0
    length = chance.randrange(150, 400)
    if kind != "OCR errors":
        return inserted(document, start, noise("x" * length, chance), kind)
    stop = min([start + length, len(document.text), *(span.start for span in document.spans if span.start >= start)])
    if stop == start:
        return document
    text = document.text[:start] + noise(document.text[start:stop], chance) + document.text[stop:]
    return replace(document, text=text, spans=tuple(sorted([*document.spans, Span(start, stop, kind)])))


def _repeated(characters: int, line: Callable[[], str]) -> str:
    lines: list[str] = []
    while sum(map(len, lines)) < characters:
        lines.append(line() + "\n")
    return "".join(lines)
