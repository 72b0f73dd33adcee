"""Names for the speakers of a dialogue: "User:" and "Assistant:" become people or roles, drawn for each document.

RefuseWeb's dialogues were given varied personal names or roles at tokenisation (Maini et al. 2025, section 3.3), so that
refusing is not tied to two words. Which names the authors used is not published; these lists are ours.
"""

from __future__ import annotations

import re

from curricula.randomness import keyed_rng

# At the beginning of a line, perhaps in bold: "User: ...", "**Assistant:** ...".
_SPEAKER = re.compile(r"^(?P<before>[ \t]*\**)(?P<who>User|Assistant)(?=\**[ \t]*:)", re.MULTILINE)

# (who asks, who answers)
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
NAMES = (
    "Aisha", "Alex", "Amara", "Ana", "Arjun", "Ben", "Carlos", "Chen", "Clara", "Daniel", "David", "Elena", "Emma",
    "Fatima", "Grace", "Hana", "Hassan", "Ines", "Isaac", "Ivan", "Jamal", "James", "Kenji", "Kofi", "Laura", "Leila",
    "Lena", "Liam", "Lucas", "Maria", "Maya", "Mei", "Michael", "Nadia", "Nina", "Noah", "Olga", "Omar", "Pablo",
    "Priya", "Rachel", "Ravi", "Rosa", "Sam", "Sara", "Sofia", "Tariq", "Thomas", "Yuki", "Zoe",
)  # fmt: skip


def name_speakers(text: str, *key: object) -> str:
    """`text` with its speakers named as the draw of `key` says: half of the dialogues get names, half get roles."""
    rng = keyed_rng(*key)
    if rng.random() < 0.5:
        asks, answers = (NAMES[i] for i in rng.choice(len(NAMES), size=2, replace=False))
    else:
        asks, answers = ROLES[rng.integers(len(ROLES))]
    names = {"User": asks, "Assistant": answers}
    return _SPEAKER.sub(lambda found: found["before"] + names[found["who"]], text)
