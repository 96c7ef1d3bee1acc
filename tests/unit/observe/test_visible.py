"""Nothing in a text is hidden."""

import pytest

from megaslm.observe.display import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 𝄞 中", "plain é 𝄞 中"),
        ("a\nb", "a↵\nb"),
        ("a\tb", "a⇥   b"),
        ("\x00\x1b[31m\r\x7f", "␀␛[31m␍␡"),
        ("\x85\u200b\u202e\ufeff\u2028", "⟨U+0085⟩⟨U+200B⟩⟨U+202E⟩⟨U+FEFF⟩⟨U+2028⟩"),
        ("\ufffd", "\ufffd"),
    ],
)
def test_what_has_no_form_gets_one(text: str, shown: str) -> None:
    assert visible(text) == shown
