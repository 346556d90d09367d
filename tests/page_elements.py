"""What a page of ours is made of, for tests that read it."""

from html.parser import HTMLParser


class Elements(HTMLParser):
    """The tags of a page that are left open, and what it would load."""

    VOID = ("meta", "img", "br", "path", "use", "rect", "link")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.sources: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                self.loads.append(value)
            if name == "data-source":
                self.sources.add(value)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag
