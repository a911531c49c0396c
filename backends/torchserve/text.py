"""Texts as TorchServe's text_classifier prepares them."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterator

_TAGS = re.compile("<.*?>|&([a-z0-9]+|#[0-9]{1,6}|#x[0-9a-f]{1,6});")
_PUNCTUATION = str.maketrans("", "", string.punctuation)

_STEMS = {
    "not": "n't: are could did does do had has have is may might must need ought should was were "
    "would",
    "have": "'ve: could i might must should so they to we what when where who why will would you",
    "would": "'d: he i it she that there they we you",
    "will": "'ll: he how i it she they we what who you",
    "is": "'s: he how it she that there what when where who why",
    "am": "'m: i",
    "are": "'re: they we what you",
}
"""The words that each ending is expanded after; TorchServe leaves out the others."""

_WHOLE = {
    "ain't": "is not", "can't": "cannot", "won't": "will not", "shan't": "shall not",
    "sha'n't": "shall not", "'cause": "because", "let's": "let us", "ma'am": "madam",
    "o'clock": "of the clock", "so's": "so as", "y'all": "you all", "how'd": "how did",
    "where'd": "where did",
}  # fmt: skip
"""Contractions that follow no rule."""


def _contractions() -> dict[str, str]:
    found = dict(_WHOLE)
    for word, line in _STEMS.items():
        ending, _, stems = line.partition(": ")
        found |= {f"{stem}{ending}": f"{stem} {word}" for stem in stems.split()}
    return found


_EXPANDED = _contractions()
_CONTRACTION = re.compile("|".join(_EXPANDED))


def cleaned(text: str) -> str:
    """Return a text without tags, in lower case, contractions expanded, accents and punctuation
    removed.
    """
    text = expanded(_TAGS.sub("", text).lower())
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return text.translate(_PUNCTUATION)


def expanded(text: str) -> str:
    """Expand the contractions of a text in lower case, and drop its other apostrophes.

    The first letter stays, as in TorchServe, whose vocabularies were built so: ain't is "as not".
    """
    return _CONTRACTION.sub(lambda found: found[0][0] + _EXPANDED[found[0]][1:], text).replace(
        "'", ""
    )


def tokens(text: str) -> list[str]:
    """Split a text into words and signs, as torchtext's basic_english does."""
    text = re.sub(r'"|<br />', lambda found: "" if found[0] == '"' else " ", text.lower())
    return re.sub(r"[.,()!?']", r" \g<0> ", text.replace(";", " ").replace(":", " ")).split()


def ngrams(words: list[str], most: int) -> Iterator[str]:
    """Yield the words, then each two neighbours, and so on up to `most`."""
    for count in range(1, most + 1):
        for start in range(len(words) - count + 1):
            yield " ".join(words[start : start + count])
