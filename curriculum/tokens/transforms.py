"""What tokenisation changes in a document: it names the speakers of dialogues and puts harmfulness tags into unsafe text.

Draws are keyed by the document's id, so any number of shards of the same documents gives the same tokens.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np

from curricula.randomness import keyed_rng

_SPEAKER = re.compile(
    r"^(?P<before>[ \t]*(?:#{1,6}[ \t]+|[-*>\u2022][ \t]+)?[*_]*)"
    r"(?P<speaker>User|USER|Human|HUMAN|Assistant|ASSISTANT|AI)"
    r"(?=(?:[ \t]+#?[0-9]{1,3})?[*_]*[ \t]*:)",
    re.MULTILINE,
)
"""A speaker at the start of a line, perhaps in bold, as a heading, in a list or numbered: "User: ...", "**Assistant:** ...",
"### USER:", "- Human 1 :"."""
SPEAKER_FORMS = 2
"""The version of what is recognised as a speaker; shards of another version hold other names."""
Speakers = Literal["named", "one_side", "none"]
"""What became of a dialogue's speakers: both were named, only one was recognised, or none was."""

ROLES = (
    ("Student", "Teacher"),
    ("Child", "Parent"),
    ("Patient", "Doctor"),
    ("Client", "Counselor"),
    ("Customer", "Clerk"),
    ("Visitor", "Librarian"),
    ("Apprentice", "Mentor"),
    ("Reader", "Editor"),
    ("Caller", "Host"),
    ("Player", "Coach"),
    ("Intern", "Manager"),
    ("Neighbor", "Officer"),
)
"""Pairs of who asks and who answers."""
NAMES = (
    "Aisha", "Alex", "Amara", "Ana", "Arjun", "Ben", "Carlos", "Chen", "Clara", "Daniel", "David", "Elena", "Emma",
    "Fatima", "Grace", "Hana", "Hassan", "Ines", "Isaac", "Ivan", "Jamal", "James", "Kenji", "Kofi", "Laura", "Leila",
    "Lena", "Liam", "Lucas", "Maria", "Maya", "Mei", "Michael", "Nadia", "Nina", "Noah", "Olga", "Omar", "Pablo",
    "Priya", "Rachel", "Ravi", "Rosa", "Sam", "Sara", "Sofia", "Tariq", "Thomas", "Yuki", "Zoe",
)  # fmt: skip


def name_speakers(text: str, *key: object) -> tuple[str, Speakers]:
    """`text` with names in place of "User:" and "Assistant:"; by the draw of `key`, half of the dialogues get roles instead.

    "Human" and "AI" stand for them where the text lacks "User" or "Assistant". A text with only one side stays as it is: half
    of a dialogue with a name would tie refusing to the other word.

    RefuseWeb's dialogues were given varied personal names or roles at tokenisation (Maini et al. 2025, section 3.3), so that
    refusing is not tied to two words. The authors did not publish their names; these lists are ours.
    """
    words = {found["speaker"].capitalize() for found in _SPEAKER.finditer(text)}
    user = "User" if "User" in words else "Human"
    assistant = "Assistant" if "Assistant" in words else "Ai"
    if not {user, assistant} <= words:
        return text, "one_side" if words else "none"
    rng = keyed_rng(*key)
    if rng.random() < 0.5:
        asks, answers = (NAMES[i] for i in rng.choice(len(NAMES), size=2, replace=False))
    else:
        asks, answers = ROLES[rng.integers(len(ROLES))]
    names = {user: asks, assistant: answers}

    def named(found: re.Match[str]) -> str:
        return found["before"] + names.get(found["speaker"].capitalize(), found["speaker"])

    return _SPEAKER.sub(named, text), "named"


def insert_tags(tokens: np.ndarray, tag_id: int, rate: float, *key: object) -> np.ndarray:
    """`tokens` (integers [n]) with `tag_id` inserted before each of positions 1..n-1 with probability `rate`.

    The tag `<potentially_unsafe_content>` marks raw unsafe text (paper section 3.1). This is algorithm 2 of Maini et al. 2025,
    with tokens in place of words; the first token never has a tag before it.
    """
    if len(tokens) < 2:
        return tokens
    picked = np.flatnonzero(keyed_rng(*key).random(len(tokens) - 1) < rate) + 1
    return np.insert(tokens, picked, tag_id)
