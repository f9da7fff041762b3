"""What every page must keep to, for the tests of the report."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
NAMESPACES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.names.append(tag)
        self.attributes += [name for name, _ in attrs]


def assert_self_contained(text: str, images: int = 0) -> None:
    assert set(re.findall(r'https?://[^"\s<)]+', text)) <= NAMESPACES
    tags = Tags(text)
    assert not {"script", "link", "iframe", "object", "base", "a", "form"} & set(tags.names)
    assert tags.names.count("img") == tags.attributes.count("src") == tags.attributes.count("alt") == images
    assert len(re.findall(r'<img src="data:image/png;base64,[A-Za-z0-9+/=]+" alt="[^"]+">', text)) == images
    assert not [name for name in tags.attributes if name.startswith("on")]
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in text
    assert "@import" not in text
    assert "nan" not in re.findall(r"\b[a-z]+\b", text)
