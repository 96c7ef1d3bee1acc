"""The file of a report's page, without a browser; tests/system/report looks at it in one."""

import json
from html.parser import HTMLParser

import pytest

from megaslm.report.page import render
from tests.system.report.document import document, hostile_document


class Elements(HTMLParser):
    """The tags of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


def test_a_hostile_document_adds_no_element_and_comes_back_whole() -> None:
    page = render(hostile_document())
    assert Elements(page).tags == Elements(render(document())).tags
    embedded = page.split('id="document">')[1].split("</script>")[0]
    assert json.loads(embedded) == hostile_document()
    assert not set(embedded) & set("<\u2028\u2029\ud800")
    assert page.encode("utf-8").decode("utf-8") == page


def test_the_page_names_its_maker_first_and_no_place_of_the_network() -> None:
    page = render({**document(), "title": "a & b <c> $policy"})
    assert '<meta name="generator" content="megaslm report">' in page[:2000]
    assert "<title>a &amp; b &lt;c&gt; $policy</title>" in page
    assert page.count("http") == page.count("http-equiv") + page.count("http://www.w3.org/2000/svg")


def test_without_scripts_the_page_has_its_sentences() -> None:
    page = render({**document(), "in_short": ["slm <b> & \ud800 $style", "another"]})
    without = page.split("<noscript>")[1].split("</noscript>")[0]
    assert "<p>slm &lt;b&gt; &amp; ? $style</p><p>another</p>" in without


def test_a_number_that_json_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        render({**document(), "notes": [float("nan")]})
