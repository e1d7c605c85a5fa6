"""Every relative link in the Markdown pages leads to a file of this checkout, and every #fragment to a heading."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.MULTILINE)
ELSEWHERE = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def anchors(text):
    """The fragments that the usual renderers give to a page's headings, repeated ones numbered."""
    seen = {}
    for heading in HEADING.findall(re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        seen[slug] = seen.get(slug, -1) + 1
        yield slug if seen[slug] == 0 else f"{slug}-{seen[slug]}"


def broken_links(root, page):
    text = (root / page).read_text("utf-8")
    for groups in LINK.findall(CODE.sub("", text)):
        link = groups[0] or groups[1]
        if ELSEWHERE.match(link):
            continue
        name, _, fragment = link.partition("#")
        target = (root / page).parent / name if name else root / page
        if not target.exists():
            yield f"{page}: {link}: no such file"
        elif fragment and target.suffix == ".md" and fragment not in anchors(target.read_text("utf-8")):
            yield f"{page}: {link}: no such heading"


def test_links_of_the_checkout():
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    pages = [page for page in listing.stdout.split("\0") if page and (ROOT / page).is_file()]
    assert "README.md" in pages
    assert [broken for page in pages for broken in broken_links(ROOT, page)] == []


def test_it_finds_what_is_broken(tmp_path):
    (tmp_path / "other.md").write_text("# A `b`, c\n# Twice\n# Twice\n```\n# not a heading\n```\n")
    (tmp_path / "page.md").write_text(
        "# Here\n[a](other.md) [b](other.md#a-b-c) [c](other.md#twice-1) [d](#here) [e](https://example.org/x)\n"
        "`[code](nowhere)`\n```\n[code](nowhere)\n```\n[f]: other.md\n"
        "[1](missing.md) [2](other.md#not-a-heading) [3](#there)\n[4]: gone.md\n"
    )
    found = [line.split(": ")[1] for line in broken_links(tmp_path, "page.md")]
    assert found == ["missing.md", "other.md#not-a-heading", "#there", "gone.md"]
