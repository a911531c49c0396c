"""The words of a text, as the model takes them."""

from __future__ import annotations

import re

import numpy as np
from pydantic import Field

from penstock import Backend, Context, Item, Params

WORD = re.compile(r"\b[a-z]\w+")


class WordsParams(Params):
    words: str = Field(description="The file of the words that the model knows, one a line.")


class Words(Backend):
    """Counts words. `data`: str. `result`: how often each known word is in it, 1×words, float32.

    Also sets `tokens`, the number of all words.
    """

    parameters = WordsParams

    def init(self, params: WordsParams, context: Context) -> None:
        words = context.resolve_input(params.words).read_text().split()
        self.places = {word: place for place, word in enumerate(words)}

    def forward(self, batch: list[Item]) -> None:
        for item in batch:
            words = WORD.findall(item["data"].lower())
            counts = np.zeros((1, len(self.places)), np.float32)
            for word in words:
                if word in self.places:
                    counts[0, self.places[word]] += 1
            item["result"], item["tokens"] = counts, len(words)
