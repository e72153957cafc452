"""Every link of the pages that leads into this repository arrives, anchors included."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, pages

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def outside_code(page: Path) -> str:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return re.sub(r"`[^`\n]+`(?!\])", lambda found: found[0].replace("[", "(").replace("#", " "), text)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, no punctuation, blanks to hyphens, repeated ones numbered."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).strip().replace(" ", "-")
        found.add(slug if not seen[slug] else f"{slug}-{seen[slug]}")
        seen[slug] += 1
    return found


def broken(page: Path, link: str) -> str | None:
    """Why it does not arrive."""
    place, _, anchor = link.partition("#")
    target = (page.parent / place).resolve() if place else page
    if not target.exists():
        return f"{link}: there is no {target}"
    if ROOT not in target.parents:
        return f"{link}: leads out of the repository"
    if anchor and anchor not in anchors(target):
        return f"{link}: {target.name} has {', '.join(sorted(anchors(target)))}"
    return None


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_arrive(page: Path) -> None:
    links = [link for link in LINK.findall(outside_code(page)) if not re.match(r"\w+:", link)]
    assert [why for link in links if (why := broken(page, link))] == []


def test_the_checker_sees_what_is_broken(tmp_path: Path) -> None:
    readme = ROOT / "README.md"
    assert broken(readme, "docs/sweeps.md#every-key") is None
    assert "there is no" in str(broken(readme, "docs/lost.md"))
    assert "sweeps.md has" in str(broken(readme, "docs/sweeps.md#lost"))
    assert "out of the repository" in str(broken(readme, "../"))
    page = tmp_path / "page.md"
    page.write_text("# The `search:` block\n## Two, or 3?\n## Two, or 3?\n```\n# code\n```\n", encoding="utf-8")
    assert anchors(page) == {"the-search-block", "two-or-3", "two-or-3-1"}


def test_every_page_is_linked_to_from_the_readme_or_from_a_page_that_is() -> None:
    readme = ROOT / "README.md"
    reached, ahead = {readme}, [readme]
    while ahead:
        page = ahead.pop()
        for link in LINK.findall(outside_code(page)):
            target = (page.parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target.exists() and target not in reached:
                reached.add(target)
                ahead.append(target)
    assert [str(page) for page in pages() if page not in reached] == []


def test_every_trap_says_where_it_is_explained_or_tested() -> None:
    text = (ROOT / "docs" / "footguns.md").read_text(encoding="utf-8")
    traps = re.findall(r"^- (.*?)(?=^- |^## |\Z)", text, re.S | re.M)
    assert len(traps) > 25
    assert [trap for trap in traps if not LINK.search(trap)] == []
    assert [trap for trap in traps if trap.strip().count("\n") > 3] == []
