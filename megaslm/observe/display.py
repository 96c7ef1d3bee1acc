"""Formats numbers with their units, and text so that every character is visible."""

import math
import unicodedata

_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_GIB = 1 << 30
_NEW_LINE = "↵\n"
_TAB = "⇥   "
_FIRST_CONTROL_PICTURE = 0x2400
_DELETE, _DELETE_PICTURE = 0x7F, "\u2421"
_UNSEEN = ("Cc", "Cf", "Co", "Cn", "Cs", "Zl", "Zp")


def size(count_bytes: float) -> str:
    """A number of bytes, or of bytes per second, such as `1.3 GB`."""
    for unit, factor in _UNITS:
        if count_bytes >= factor:
            return f"{count_bytes / factor:,.1f} {unit}"
    return f"{count_bytes:.4g} bytes"


def gib(count_bytes: float, decimals: int = 2) -> str:
    """A number of bytes in GiB, such as `13.02` or `0.0042`, without the unit."""
    return rounded(count_bytes / _GIB, decimals)


def rounded(number: float, decimals: int = 0) -> str:
    """A number with `decimals` decimals, or with more where it would have fewer than two digits: no rate becomes 0."""
    shown = max(decimals, 1 - math.floor(math.log10(abs(number)))) if number else decimals
    return f"{number:,.{shown}f}"


def percent(part: float, decimals: int = 0) -> str:
    """A share of 1 in percent, rounded as `rounded` does, such as `47%` or `0.21%`."""
    return f"{rounded(100 * part, decimals)}%"


def short_count(number: int) -> str:
    """A large number on little room, such as `15.30B`, `6.14M` or `7,680`."""
    if number >= 1e9:
        return f"{number / 1e9:,.2f}B"
    return f"{number / 1e6:.2f}M" if number >= 1e6 else f"{number:,}"


def counted(number: int, noun: str) -> str:
    """A number of things, such as `1 task` or `1,200 tasks`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def operations(count: float) -> str:
    """A number of floating-point operations, such as `2.25 GFLOP`."""
    for unit, factor in (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count / 1e3:.3g} kFLOP"


def duration(seconds: float) -> str:
    """A time, such as `4.2 s`, `3 min 05 s` or `27 h 14 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02} min"


def visible(text: str) -> str:
    """`text` with signs for control characters and code numbers for characters without a glyph. Line ends stay."""
    return "".join(map(_visible_character, text))


def visible_on_one_line(text: str) -> str:
    """As `visible`, with signs for line ends too."""
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
