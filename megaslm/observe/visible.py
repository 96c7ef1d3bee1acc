"""Text in which every character can be seen."""

import unicodedata

_NEW_LINE = "↵\n"
_TAB = "⇥   "
_FIRST_CONTROL_PICTURE = 0x2400
_DELETE, _DELETE_PICTURE = 0x7F, "\u2421"
_UNSEEN = ("Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp")


def visible(text: str) -> str:
    """`text` with signs for control characters and numbers for what has no form; a line still ends where it ends."""
    return "".join(map(_visible_character, text))


def visible_on_one_line(text: str) -> str:
    """The same, with signs alone where a line ends."""
    return visible(text).replace("\n", "")


def _visible_character(character: str) -> str:
    code = ord(character)
    if character == "\n":
        return _NEW_LINE
    if character == "\t":
        return _TAB
    if code < ord(" "):
        return chr(_FIRST_CONTROL_PICTURE + code)
    if code == _DELETE:
        return _DELETE_PICTURE
    return f"⟨U+{code:04X}⟩" if unicodedata.category(character) in _UNSEEN else character
