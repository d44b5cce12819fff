"""What a failed request to a bucket says, in a line, and what to do about it."""

from __future__ import annotations

import re

from embstore.errors import StoreError

CREDENTIALS = {
    "S3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "GCS": "GOOGLE_APPLICATION_CREDENTIALS",
    "MicrosoftAzure": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_SERVICE = re.compile(rf"Generic ({'|'.join(CREDENTIALS)}) error")
# obstore looks for a role of the machine at these addresses when the environment has no credentials.
_NO_CREDENTIALS = re.compile(
    r"://169\.254\.|://metadata\.|/latest/api/token|\bMissing \w*Key|Account must be specified"
)
_NO_ANSWER = re.compile(r"(https?://[^/?\s]+).* - HTTP error")
_BODY = re.compile(r"<\?xml.*|<Error>.*|<html.*", re.IGNORECASE)


def request_failed(what: str, error: Exception) -> StoreError:
    """The store's error for one of obstore's: its message is whole, but for what only a developer of obstore reads."""
    text = " ".join(str(error).partition("\n\nDebug source")[0].split())
    return StoreError(what, found=_BODY.sub(_answer, text), do=_advice(text))


def _answer(body: re.Match[str]) -> str:
    """Of an answer in XML the code and the message."""
    said = [found[1] for tag in ("Code", "Message") if (found := re.search(f"<{tag}>(.*?)</{tag}>", body[0]))]
    return ": ".join(said) or body[0][:200]


def _advice(text: str) -> str:
    service = _SERVICE.search(text)
    if service and _NO_CREDENTIALS.search(text):
        return f"there are no credentials: set {CREDENTIALS[service[1]]}; docs/object-stores.md"
    if found := _NO_ANSWER.search(text):
        return f"{found[1]} does not answer: see the endpoint, the region and the network; docs/object-stores.md"
    return (
        "see the bucket's name, the network and the credentials; docs/object-stores.md"
        if service or "http" in text
        else ""
    )
