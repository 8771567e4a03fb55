"""Errors. A message says what is wrong, where (file, column, row id, configuration path) and what to do."""

from __future__ import annotations

import re

COLUMNS = 20  # names of columns in a message
_SHOWN = 80  # characters of a value in a message
_REASON = 400  # characters of another library's message in ours
_AWS = re.compile(r"AWS Error (\w+) during \w+ operation: ?(.*)", re.DOTALL)
_GOOGLE = re.compile(
    r"google::cloud::Status\((\w+): (?:.*? with a last message of )?(.*?)(?: error_info=|\)|$)", re.DOTALL
)
_GOOGLE_REASONS = {
    "NOT_FOUND": "the bucket or the object does not exist",
    "PERMISSION_DENIED": "access is denied",
    "UNAUTHENTICATED": "the credentials are missing or not accepted",
    "UNAVAILABLE": "there is no connection, or no reply",
}
_AZURE = re.compile(r"Azure Error: \[(\w*)\] ?(.*)", re.DOTALL)
_AZURE_REASONS = {
    "": "there is no connection, or no reply",
    "ContainerNotFound": "the container does not exist",
    "AuthorizationFailure": "access is denied",
    "AuthenticationFailed": "the credentials are missing or not accepted",
}
_AWS_REASONS = {
    "NO_SUCH_BUCKET": "the bucket does not exist",
    "ACCESS_DENIED": "access is denied",
    "INVALID_ACCESS_KEY_ID": "the access key is not known",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key is not that of the access key",
    "NETWORK_CONNECTION": "there is no connection, or no reply",
}


class RayselError(Exception):
    """Base class of all errors that raysel raises; the command line prints them without a traceback."""


class DataError(RayselError, ValueError):
    """Raised for rows, columns, ids or vectors that cannot be used as they are."""


class ConfigError(RayselError, ValueError):
    """Raised for a parameter or a workflow key that is unknown, out of range or in conflict with another."""


class ResourceError(RayselError, RuntimeError):
    """Raised if the cluster cannot place the requested workers or tasks."""


class StateError(RayselError, RuntimeError):
    """Raised for selection state that is stale or damaged, or belongs to another run."""


class RunError(RayselError, RuntimeError):
    """Raised for a run directory that cannot be used: it holds another run, or a step in it failed."""


def shown(value: object) -> str:
    """Return a value as a message shows it: numbers and short text as in Python, anything else by its type."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        text = repr(value)
        return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        text = repr(value) if len(value) <= 10 else ""
        return text if 0 < len(text) <= _SHOWN else f"a {type(value).__name__} of {len(value)}"
    shape = getattr(value, "shape", None)
    of = f" of shape {tuple(shape)}" if isinstance(shape, tuple) else ""
    return f"a {type(value).__module__.partition('.')[0]} {type(value).__name__}{of}".replace(
        "a builtins ", "a "
    )


def reason_of(error: BaseException) -> str:
    """Return the first line of an error of a library, without its full stop; its type if it has no text."""
    text = (getattr(error, "strerror", None) or str(error)).strip()
    if not text:
        return type(error).__name__
    if found := _AWS.search(text):
        known = _AWS_REASONS.get(found[1])
        detail = found[2].partition(" (Request ID")[0].rpartition("Details: ")[2].strip()
        return known or f"{found[1].lower().replace('_', ' ')}: {detail[:_REASON]}".rstrip(":. ")
    if found := _GOOGLE.search(text):
        known = _GOOGLE_REASONS.get("UNAUTHENTICATED" if "access token" in found[2] else found[1])
        return known or f"{found[1].lower().replace('_', ' ')}: {found[2][:_REASON]}".rstrip(":. ")
    if found := _AZURE.search(text):
        return _AZURE_REASONS.get(found[1]) or found[2].splitlines()[0][:_REASON].rstrip(". ")
    line = text.splitlines()[0].rstrip(". ")
    return line if len(line) <= _REASON else f"{line[:_REASON]}..."


def first(values: object, limit: int = 3) -> str:
    """Return the first few of many ids or names, for a sentence: ``"3, 17, 20 and 41 more"``.

    A name that would not be seen as it is, such as one with a line break or a space at its end, is quoted.
    """
    items = list(values)  # type: ignore[call-overload]
    texts = [str(item) for item in items[:limit]]
    shown = ", ".join(
        text if text.isprintable() and text and text == text.strip() else repr(text) for text in texts
    )
    return f"{shown} and {len(items) - limit} more" if len(items) > limit else shown
