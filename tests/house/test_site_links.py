"""The link checker of the built site sees a lost page and a lost anchor."""

from pathlib import Path

from support.documents.site_links import broken


def test_lost_pages_anchors_and_forms_are_seen(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    links = (
        "../",
        "../b.png",
        "#x",
        "../#top",
        "https://x.y/z",
        "../gone/",
        "../#gone",
        "#gone",
        "../../out",
        "http:",
        "foo:x",
    )
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "index.html").write_text('<h1 id="top">t</h1><a href="a/">a</a>')
    body = "".join(f'<a href="{link}">l</a>' for link in links)
    (tmp_path / "a" / "index.html").write_text(f'<p id="x">{body}</p>')
    assert list(broken(tmp_path)) == [f"a/index.html: {link}" for link in links[5:]]
