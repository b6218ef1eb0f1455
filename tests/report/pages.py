"""Reads a page as a browser and a screen reader would, as far as tests need it."""

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "img", "br", "rect", "path", "circle"}


class Page(HTMLParser):
    """The elements of a page.

    Attributes:
        elements: Tag and attributes of every element.
        text: The text.
        faults: What is not closed, or has a name or target that is missing.
    """

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.faults, self._open = [], "", [], []
        self.feed(html)
        self.faults += [f"<{tag}> is open" for tag in self._open]
        ids = [a["id"] for _, a in self.elements if "id" in a]
        self.faults += [f"id {i} twice" for i in {*ids} if ids.count(i) > 1]
        for tag, attributes in self.elements:
            for key in ("aria-labelledby", "href"):
                target = attributes.get(key, "")
                if (key != "href" or target[:1] == "#") and target.strip("#"):
                    if target.strip("#") not in ids:
                        self.faults.append(f"{key}={target} leads nowhere")
            if tag == "img" and not attributes.get("alt"):
                self.faults.append("an image without a description")
            if tag == "svg" and not {"aria-hidden", "role"} & {*attributes}:
                self.faults.append("a figure without a role")
            if tag == "th" and attributes.get("scope") not in ("row", "col"):
                self.faults.append("a heading of a table without scope")
            if attributes.get("class") == "scroll":
                if not {"tabindex", "role", "aria-label"} <= {*attributes}:
                    self.faults.append("scrolls, but not by keyboard")
        if self.count("table") != self.count("caption"):
            self.faults.append("a table without caption")
        levels = [int(tag[1]) for tag, _ in self.elements if re.match("h[1-6]$", tag)]
        if levels[:1] != [1] or levels.count(1) != 1:
            self.faults.append(f"headings {levels}")
        self.faults += [
            f"h{b} after h{a}" for a, b in zip(levels, levels[1:]) if b > a + 1
        ]

    def count(self, tag, **attributes):
        """Counts elements with given attributes."""
        wanted = attributes.items()
        return sum(t == tag and wanted <= a.items() for t, a in self.elements)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self._open or self._open[-1] != tag:
            self.faults.append(f"</{tag}> in {self._open[-1:]}")
        else:
            self._open.pop()

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.text += data


def check_page(html):
    """Asserts that a page loads nothing, runs nothing, and is well marked up."""
    page = Page(html)
    assert not page.faults
    assert not page.count("script") and not page.count("iframe")
    for tag, attributes in page.elements:
        for key in ("src", "href", "srcset", "data", "poster"):
            link = attributes.get(key, "#")
            assert link.startswith(("#", "data:")), (tag, link)
    assert not re.search(r"url\(|@import|https?://", html)
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html
    assert page.count("html", lang="en") == page.count("main") == 1
    return page
