"""Checks the links of the built site: each leads to a file of it and to an anchor that is there.

`python -m support.documents.site_links FOLDER`. It imports the standard library alone, because the site's tools have an
environment of their own. Of links that lead elsewhere only the form is checked: a build asks no other server.
"""

import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Made by the theme of every page: the folder that its search and scripts start from.
_OWN = {"."}


class _Page(HTMLParser):
    """What a page links to, and the anchors that it has."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name in ("href", "src"):
                self.links.append(value)
            elif value and (name == "id" or (name == "name" and tag == "a")):
                self.anchors.add(value)


@cache
def _read(file: Path) -> _Page:
    page = _Page()
    page.feed(file.read_text())
    return page


def broken(site: Path) -> Iterator[str]:
    """Yield `page: link` for each link of the site in the folder `site` that leads nowhere."""
    for file in sorted(site.rglob("*.html")):
        # The page of unknown addresses is shown at any depth, so its links begin at the server's root.
        if file.name == "404.html":
            continue
        for link in _read(file).links:
            if link not in _OWN and not _leads(site, file, link):
                yield f"{file.relative_to(site)}: {link}"


def _leads(site: Path, file: Path, link: str) -> bool:
    parts = urlsplit(link)
    if parts.scheme:
        return parts.scheme in ("http", "https", "mailto", "data") and bool(parts.netloc or parts.path)
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if target.is_dir():
        target /= "index.html"
    if not target.is_relative_to(site.resolve()) or not target.is_file():
        return False
    return not parts.fragment or target.suffix != ".html" or unquote(parts.fragment) in _read(target).anchors


def main() -> int:
    """Print what is broken; exit with 1 if anything is."""
    site = Path(sys.argv[1]).resolve()
    pages = len(list(site.rglob("*.html")))
    found = list(broken(site))
    sys.stdout.write("".join(f"{line}\n" for line in found) + f"{pages} pages, {len(found)} broken links\n")
    return 1 if found or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
