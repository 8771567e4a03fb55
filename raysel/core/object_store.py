"""Object stores: their file systems, with limits on time-outs and attempts, and places on them that are written to.

Retries and time-outs of S3 can only be set when its file system is constructed, so it is constructed here and not from a
URI. Reads are tried three times. A write is one attempt, which :func:`raysel.core.storage.write_bytes` repeats, since the
attempts of a large write would take minutes together.
"""

from __future__ import annotations

import functools
import os
import re
import threading
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote

import pyarrow.fs as pafs

from raysel.errors import ConfigError

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")
_CONNECT_S = 5
_MAKING = threading.Lock()
_REPLY_S = {1: 4, 3: 8}  # by number of attempts; for a large write, curl waits half a minute more
_REGION_S = 20.0  # for the region of a bucket of AWS
_GCS_S = 6  # of Google's client, which otherwise tries for 15 minutes to reach a server
_OPTIONS = {"region", "scheme", "endpoint_override"}  # of a URI of S3, as Arrow names them
_TRANSIENT = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|UNKNOWN)"
)


@dataclass(frozen=True)
class StorePath(os.PathLike[str]):
    """A place on an object store; :mod:`raysel.core.storage` takes it like a local ``Path``.

    Attributes
    ----------
    uri : str
        Without a slash at the end.
    """

    uri: str

    def __fspath__(self) -> str:
        return self.uri

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> StorePath:
        return StorePath(f"{self.uri}/{name}")

    @property
    def name(self) -> str:
        """The part after the last slash."""
        return self.uri.rpartition("/")[2]

    @property
    def parent(self) -> StorePath:
        """The folder that the place is in."""
        return StorePath(self.uri.rpartition("/")[0])

    def resolve(self) -> StorePath:
        """Return the place itself, which is absolute."""
        return self


def writable(uri: str) -> StorePath:
    """Return the place of a URI that is to be written to. Raises ConfigError if it cannot be."""
    scheme, _, rest = uri.partition("://")
    if scheme.lower() not in SCHEMES:
        raise ConfigError(
            f"{uri} cannot be written to, because raysel writes only to local and mounted folders and to s3://, gs:// and "
            "abfs://. Give such a place, and copy the result yourself."
        )
    if "?" in rest or "#" in rest:
        raise ConfigError(
            f"{uri} contains options (the part after ? or #), which raysel supports only for reading. Set environment variables "
            "such as AWS_ENDPOINT_URL instead. If ? or # is part of a name, write %3F or %23."
        )
    _refuse_secrets(scheme.lower(), rest)
    parts = [part for part in rest.split("/") if part]
    if not parts or rest.startswith("/") or any(part in (".", "..") for part in parts):
        raise ConfigError(f"{uri} does not name a bucket and a place in it; write {scheme}://BUCKET/FOLDER.")
    return StorePath(f"{scheme.lower()}://{'/'.join(parts)}")


def _refuse_secrets(scheme: str, rest: str) -> None:
    """Raise ConfigError, without repeating them, for keys in a URI: they would be printed and stored with it."""
    if scheme in ("s3", "gs", "gcs") and ":" in rest.partition("/")[0].rpartition("@")[0]:
        raise ConfigError(
            f"A URI that begins with {scheme}:// contains credentials; set them as environment variables, such as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or in the configuration file of the store."
        )


def open_store(uri: str, attempts: int = 3) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a URI with one of ``SCHEMES``, and the path on it.

    Parameters
    ----------
    uri : str
        It may be percent-encoded, and may end in options, as in ``s3://bucket/data?region=eu-west-1``.
    attempts : {1, 3}
        Attempts of each operation.

    Raises
    ------
    ConfigError
        If the URI holds credentials.
    OSError, ValueError
        If there is no such store.
    """
    scheme, _, rest = uri.partition("://")
    scheme = scheme.lower()
    _refuse_secrets(scheme, rest)
    if scheme != "s3":
        if scheme in ("gs", "gcs") and "retry_limit_seconds=" not in rest:
            rest += f"{'&' if '?' in rest else '?'}retry_limit_seconds={_GCS_S}"
        return pafs.FileSystem.from_uri(f"{scheme}://{rest.replace(' ', '%20')}")
    path, options = _options(rest)
    path = unquote(path, errors="strict")
    endpoint = (
        options.get("endpoint_override")
        or os.environ.get("AWS_ENDPOINT_URL_S3")
        or os.environ.get("AWS_ENDPOINT_URL")
        or None
    )
    region = options.get("region")
    if region is None:
        region = _region(path.partition("/")[0]) if endpoint is None else _own_region()
    return _s3(endpoint, region, options.get("scheme", "https"), attempts), path.strip("/")


def _options(rest: str) -> tuple[str, dict[str, str]]:
    """Split options from a path, in which a question mark can also be a wildcard."""
    path, _, query = rest.rpartition("?")
    options = dict(parse_qsl(query))
    return (path, options) if path and options and options.keys() <= _OPTIONS else (rest, {})


def _own_region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def _s3(endpoint: str | None, region: str, scheme: str, attempts: int) -> pafs.S3FileSystem:
    # Arrow makes no client while another one waits for a reply, so all are made before the first request.
    with _MAKING:
        return _clients(endpoint, region, scheme)[attempts]


@functools.lru_cache(maxsize=64)
def _clients(endpoint: str | None, region: str, scheme: str) -> dict[int, pafs.S3FileSystem]:
    """Return the file system of a store for each number of attempts."""
    found = {}
    for attempts, reply in _REPLY_S.items():
        options: dict[str, Any] = {
            "region": region,
            "scheme": scheme,
            "endpoint_override": endpoint,
            "connect_timeout": _CONNECT_S,
            "request_timeout": reply,
            "retry_strategy": pafs.AwsStandardS3RetryStrategy(max_attempts=attempts),
        }
        try:  # one request per small object and not three
            found[attempts] = pafs.S3FileSystem(**options, allow_delayed_open=True)
        except TypeError:  # of an older pyarrow
            found[attempts] = pafs.S3FileSystem(**options)
    return found


@functools.lru_cache(maxsize=64)
def _region(bucket: str) -> str:
    """Return the region of a bucket of AWS. Raises OSError if it is not found in time."""
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(pafs.resolve_s3_region(bucket))
        except Exception as error:  # raised below
            found.append(error)

    thread = threading.Thread(target=ask, daemon=True)  # Arrow itself would try for longer
    thread.start()
    thread.join(_REGION_S)
    if not found:
        raise OSError(f"AWS did not reply within {_REGION_S:g} s")
    if isinstance(found[0], Exception):
        raise found[0]
    return str(found[0])


def is_transient(error: OSError) -> bool:
    """Return whether the same write may succeed when it is tried again."""
    return _TRANSIENT.search(str(error)) is not None


def has_folders(filesystem: pafs.FileSystem) -> bool:
    """Return whether folders must be made before files are written into them; object stores have none."""
    return filesystem.type_name not in ("s3", "gcs", "abfs")
