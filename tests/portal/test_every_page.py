"""No page escapes the looks of tests/browser/test_pages_look.py."""

from django.urls import URLPattern, get_resolver

from tests.browser.pages import NO_PAGES, PAGES


def names() -> set[str]:
    """Of all URLs of the site but the app's, which are JSON and have none."""
    found, left = set(), [("", one) for one in get_resolver().url_patterns]
    while left:
        space, one = left.pop()
        if str(one.pattern).startswith("_allauth/"):
            continue
        if isinstance(one, URLPattern):
            found.add(space + (one.name or str(one.pattern)))
        else:
            inner = f"{space}{one.namespace}:" if one.namespace else space
            left += [(inner, each) for each in one.url_patterns]
    return found


def test_every_url_is_a_page_that_is_looked_at_or_says_why_not():
    looked_at = {page.url for page in PAGES if isinstance(page.url, str) and not page.url.startswith("/")}
    looked_at |= {name for page in PAGES for name in page.also}
    assert looked_at.isdisjoint(NO_PAGES)
    assert names() == looked_at | set(NO_PAGES)
