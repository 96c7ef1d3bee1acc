"""Texts of a corpus that would run, reorder or break the page, were they more than text to it."""

from tests.system.report.conftest import Open
from tests.system.report.document import HOSTILE, MARKUP, document, hostile_document


def test_hostile_texts_are_shown_and_never_run(open_page: Open) -> None:
    page = open_page(hostile_document())
    for summary in page.locator("summary").all():
        summary.click()
    assert page.evaluate("window.ran") is None
    assert page.locator("script").count() == 2
    assert page.locator("img, svg image, iframe, a[href^=javascript]").count() == 0
    assert page.locator("h1").inner_text() == page.title() == MARKUP
    tokens = page.locator("#heat .text .token").all_text_contents()[1:]
    for piece, shown in zip(HOSTILE, tokens, strict=False):
        if piece.isascii() and piece.isprintable():
            assert shown == piece
    assert not [token for token in tokens if set(token) & set("\u202e\u200f\x00\x1b\x07\u2028\ufeff")]
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 1280


def test_a_hostile_token_is_read_in_short(open_page: Open) -> None:
    page = open_page(hostile_document(), viewport={"width": 360, "height": 800})
    page.locator("#heat .text .token").nth(1 + HOSTILE.index("w" * 5000)).dispatch_event("click")
    assert 10 < len(page.locator("#heat .quoted").inner_text()) <= 40
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360


def test_the_policy_refuses_what_is_planted(open_page: Open, heard: list[str]) -> None:
    page = open_page(document())
    failures: list[str] = []
    page.on("requestfailed", lambda request: failures.append(request.failure))
    refused = page.evaluate("""async () => {
      const refused = [];
      document.addEventListener('securitypolicyviolation', (event) => refused.push(event.effectiveDirective));
      const script = document.createElement('script');
      script.textContent = 'window.ran = 6';
      const style = document.createElement('style');
      style.textContent = 'body { display: none }';
      document.body.append(script, style, Object.assign(new Image(), { src: 'https://example.invalid/a.png' }));
      await fetch('https://example.invalid/').catch(() => null);
      await new Promise((resolve) => setTimeout(resolve, 50));
      return refused;
    }""")
    assert {"script-src-elem", "style-src-elem", "img-src", "connect-src"} <= set(refused)
    assert page.evaluate("window.ran") is None
    assert page.locator("body").is_visible()
    assert set(failures) == {"csp"}
    assert len(heard) >= 4
    heard.clear()
