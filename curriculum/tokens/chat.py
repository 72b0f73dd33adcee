"""ChatML: a conversation as text and tokens, and which of the tokens the assistant learns.

The template is SmolLM2's without its default system prompt, so that training and evaluation see only what the data holds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer

from curricula.curriculum.sources.conversations import ASSISTANT, TEXT
from curricula.errors import UserError

TURN_START, TURN_END, EOS = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TRIAL = ({"role": "user", "content": "a b "}, {"role": "assistant", "content": " c "})
"""A conversation with which `ChatEncoder` tests a tokenizer: its texts begin or end with a space next to a mark."""


class PlainText:
    """Encodes text. Special entries of the tokenizer that it quotes, such as `<|im_end|>` or the harmfulness tag, stay text."""

    def __init__(self, tokenizer: Tokenizer):
        self._as_text = Tokenizer.from_str(tokenizer.to_str())
        self._as_text.encode_special_tokens = True
        added = tokenizer.get_added_tokens_decoder().values()
        contents = sorted((entry.content for entry in added if entry.special), key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, contents)) or r"(?!)")

    def quotes(self, text: str) -> int:
        """Number of special entries that `text` quotes."""
        return sum(1 for _ in self.special.finditer(text))

    def encode(self, text: str) -> Encoding:
        return self._as_text.encode(text, add_special_tokens=False)

    def encode_all(self, texts: list[str]) -> list[Encoding]:
        """The encodings of many texts, computed on all cores."""
        return self._as_text.encode_batch(texts, add_special_tokens=False)


class ChatEncoder:
    """Encodes conversations with a tokenizer. Only the template's marks become special ids; `PlainText` encodes the rest."""

    def __init__(self, tokenizer: Tokenizer):
        """Raises UserError for a tokenizer that splits text next to a special entry differently than on its own."""
        self._plain = PlainText(tokenizer)
        ids = tokenizer.get_vocab()
        self._start, self._end, self._text_end = (ids[mark] for mark in (TURN_START, TURN_END, EOS))
        self._newline = self._plain.encode("\n").ids
        rendered = "".join(f"{TURN_START}{_between_marks(message)}{TURN_END}\n" for message in TRIAL)
        if self.encode(TRIAL)[0] != tokenizer.encode(rendered, add_special_tokens=False).ids:
            raise UserError(
                "the tokenizer splits text next to a special entry differently than on its own, so tuning would not see the "
                "tokens that evaluation gives; use one whose special entries change nothing around them, as SmolLM2's do"
            )

    def quotes_special(self, messages: Sequence[dict[str, str]]) -> bool:
        """Whether a message contains the text of a special entry."""
        return any(self._plain.quotes(text) for message in messages for text in (message["role"], message["content"]))

    def encode(self, messages: Sequence[dict[str, str]]) -> tuple[list[int], list[bool]]:
        """Token ids of a conversation and, for each, whether it is the assistant's and so carries loss.

        The text between two of the template's marks is encoded by itself, as a tokenizer does around special entries. So the
        ids equal those of the whole rendered text, even if a message begins with a newline. A token that straddles a role and
        its content belongs to the role.
        """
        ids: list[int] = []
        flags: list[bool] = []
        for message in messages:
            said = self._plain.encode(_between_marks(message))
            if message["role"] == TEXT:
                ids += [*said.ids, self._text_end]
                flags += [True] * (len(said) + 1)
                continue
            is_learnt, content_start = message["role"] == ASSISTANT, len(message["role"]) + 1
            ids += [self._start, *said.ids, self._end, *self._newline]
            flags.append(False)
            flags += [is_learnt and start >= content_start for start, _ in said.offsets]
            flags += [is_learnt] * (1 + len(self._newline))
        return ids, flags

    def lengths(self, chats: Sequence[Sequence[dict[str, str]]]) -> list[int]:
        """The number of tokens of each conversation, computed on all cores."""
        said = iter(self._plain.encode_all([_between_marks(message) for messages in chats for message in messages]))
        marks = 2 + len(self._newline)
        return [sum(len(next(said)) + (1 if message["role"] == TEXT else marks) for message in messages) for messages in chats]


def _between_marks(message: dict[str, str]) -> str:
    return message["content"] if message["role"] == TEXT else f"{message['role']}\n{message['content']}"
