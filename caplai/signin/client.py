"""What somebody signs in with, coarsely: the family of the program and of the system, and nothing else of the header.

Kept are two words of ours (`chrome/android`), never what a stranger wrote: they suffice to know one's own phone again,
and not to follow a person.
"""

from django.utils.translation import gettext as _

APP = "app"
_UNKNOWN = "other"

# The first that is found counts: most programs also claim to be those below them.
_PROGRAMS = (
    ("zalo", "Zalo", "Zalo"),
    ("facebook", "FBAN", "Facebook"),
    ("coccoc", "coc_coc_browser", "Cốc Cốc"),
    ("edge", "Edg", "Edge"),
    ("samsung", "SamsungBrowser", "Samsung Internet"),
    ("opera", "OPR", "Opera"),
    ("uc", "UCBrowser", "UC Browser"),
    ("firefox", "FxiOS", "Firefox"),
    ("firefox", "Firefox", "Firefox"),
    ("chrome", "CriOS", "Chrome"),
    ("chrome", "Chrome", "Chrome"),
    ("safari", "Safari", "Safari"),
)
_SYSTEMS = (
    ("iphone", "iPhone", "iPhone"),
    ("ipad", "iPad", "iPad"),
    ("kaios", "KAIOS", "KaiOS"),
    ("android", "Android", "Android"),
    ("android", "okhttp", "Android"),
    ("iphone", "CFNetwork", "iPhone"),
    ("windows", "Windows", "Windows"),
    ("mac", "Macintosh", "Mac"),
    ("chromeos", "CrOS", "ChromeOS"),
    ("linux", "Linux", "Linux"),
)
_LONGEST = 512
"""Characters of a User-Agent that are looked at."""


def client_of(user_agent: str, *, app: bool = False) -> str:
    """The two words for a User-Agent: `chrome/android`. `app`: who asks by the app API is no browser."""
    said = user_agent[:_LONGEST]
    return f"{APP if app else _first(_PROGRAMS, said)}/{_first(_SYSTEMS, said)}"


def name_of(client: str) -> str:
    """How a person would call it: "Chrome on Android"."""
    program, _slash, system = client.partition("/")
    names = {word: name for word, _mark, name in _PROGRAMS}
    shown = _("The app") if program == APP else names.get(program) or _("A browser")
    on = {word: name for word, _mark, name in _SYSTEMS}.get(system)
    return _("%(program)s on %(system)s") % {"program": shown, "system": on} if on else shown


def _first(families: tuple[tuple[str, str, str], ...], said: str) -> str:
    return next((word for word, mark, _name in families if mark in said), _UNKNOWN)
