"""Made-up film reviews: a data set that a small model learns in seconds and that nobody has to fetch."""

from __future__ import annotations

import random

from .reviews import Reviews

_FILLERS = ["the", "film", "plot", "it's", "an", "actor", "scene", "and", "of", "two", "hours", "camera"]
_OPINIONS = (["awful", "dull", "clumsy"], ["superb", "moving", "funny"])


def made_up_reviews(count: int, seed: int) -> Reviews:
    """`count` reviews, negative and positive in turn: a few opinions, some of them negated, among fillers."""
    draw = random.Random(seed)
    texts = []
    for number in range(count):
        words = draw.choices(_FILLERS, k=draw.randint(3, 30))
        for _ in range(3):
            negated = draw.random() < 0.3
            opinion = draw.choice(_OPINIONS[number % 2 if not negated else 1 - number % 2])
            # In one piece, so that the order of the words matters.
            words.insert(draw.randint(0, len(words)), f"not {opinion}" if negated else opinion)
        texts.append(" ".join(words))
    return Reviews(texts, [number % 2 for number in range(count)])
