"""Words and pairs of words of a text, hashed into a fixed number of elements. Without Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from raysel.core.fingerprint import library_versions
from raysel.data.decode import Takes
from raysel.data.embedders.embedder import number_of_elements


@dataclass(frozen=True)
class HashEmbedder:
    """Words and pairs of words, hashed with a sign into ``size`` elements, of unit length (scikit-learn)."""

    name: str
    size: int
    takes: Takes = "text"

    def __call__(self, rows: list[str]) -> np.ndarray:
        """Return the hashed words of each text."""
        from sklearn.feature_extraction.text import HashingVectorizer

        hashing = HashingVectorizer(n_features=self.size, ngram_range=(1, 2), dtype=np.float32)
        return hashing.transform(rows).toarray()

    def __fingerprint__(self) -> Any:
        return 1, self.size, library_versions("scikit-learn")


def hashed_text(spec: str, argument: str) -> HashEmbedder:
    """Hash the words and the pairs of words of a text into a vector of fixed length.

    Parameters
    ----------
    spec : str
        Complete name, such as ``hash:256``.
    argument : str
        Number of elements per vector.

    Returns
    -------
    HashEmbedder
        An embedder that needs no fit.

    Raises
    ------
    ConfigError
        If the name has another form.
    """
    return HashEmbedder(spec, number_of_elements(spec, argument))
