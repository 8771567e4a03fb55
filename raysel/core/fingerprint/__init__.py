"""What decides a result, as keys: fingerprints of code and values, digests of files, versions of libraries."""

from raysel.core.fingerprint.files import file_digest, file_digests, folder_digest, stored_digest
from raysel.core.fingerprint.objects import fingerprint
from raysel.core.fingerprint.origin import library_versions

__all__ = [
    "file_digest",
    "file_digests",
    "fingerprint",
    "folder_digest",
    "library_versions",
    "stored_digest",
]
