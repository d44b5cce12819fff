"""The page a browser shows of a server: files beside this module, which ask the server's own endpoints.

    /  page.css  page.js  page.svg         served by ``http.App(server, files=page.files())``

Nothing of it comes from elsewhere and nothing is inline, which its Content-Security-Policy has browsers hold to.
"""

from __future__ import annotations

from importlib.resources import files as files_of

from embstore.serving.asgi import File

HEADERS = (
    (b"content-security-policy", b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)
_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.svg": ("page.svg", "image/svg+xml"),
}


def files() -> dict[str, File]:
    """The page's files by the path they are asked for."""
    folder = files_of("embstore.serving")
    return {path: File((folder / name).read_bytes(), kind, HEADERS) for path, (name, kind) in _FILES.items()}
