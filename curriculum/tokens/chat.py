"""ChatML: a conversation as text and tokens, and which of them the assistant learns.

The template is SmolLM2's without its default system prompt, so that training and evaluation see only what the data holds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer

from curricula.curriculum.sources.conversations import TEXT

TURN_START, TURN_END, EOS = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def render_chat(messages: Sequence[dict[str, str]]) -> list[tuple[str, bool]]:
    """A conversation of {"role", "content"} as (text, is_assistant) segments, which join to the chat template's text.

    Loss belongs on the assistant's segments: its content, the end of its turn and the newline after it.
    """
    segments: list[tuple[str, bool]] = []
    context = ""
    for message in messages:
        if message["role"] == TEXT:
            segments.append((message["content"] + EOS, True))
            continue
        opening = f"{context}{TURN_START}{message['role']}\n"
        closing = f"{message['content']}{TURN_END}\n"
        if message["role"] == "assistant":
            segments += [(opening, False), (closing, True)]
            context = ""
        else:
            context = opening + closing
    return [*segments, (context, False)] if context else segments


class PlainText:
    """Encodes text that may quote special entries of a tokenizer, such as `<|im_end|>` or the harmfulness tag, as text."""

    def __init__(self, tokenizer: Tokenizer):
        self._as_text = Tokenizer.from_str(tokenizer.to_str())
        self._as_text.encode_special_tokens = True
        added = tokenizer.get_added_tokens_decoder().values()
        contents = sorted((entry.content for entry in added if entry.special), key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, contents)) or r"(?!)")

    def quotes(self, text: str) -> int:
        """How many special entries `text` quotes."""
        return sum(1 for _ in self.special.finditer(text))

    def encode(self, text: str) -> Encoding:
        return self._as_text.encode(text, add_special_tokens=False)


class ChatEncoder:
    """Encodes conversations with a tokenizer. Only the template's marks become special ids: content that quotes a special
    entry, such as `<|im_end|>` or the harmfulness tag, is read as text."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._plain = PlainText(tokenizer)

    def quotes_special(self, messages: Sequence[dict[str, str]]) -> bool:
        """Whether a message contains the text of a special entry."""
        return any(self._plain.quotes(text) for message in messages for text in (message["role"], message["content"]))

    def encode(self, messages: Sequence[dict[str, str]]) -> tuple[list[int], list[bool]]:
        """Token ids of a conversation and, for each, whether it is the assistant's and so carries loss.

        The text is encoded as a whole, so that the ids equal those of `apply_chat_template` even where a message begins with
        a newline. A token that straddles two segments belongs to the one in which it begins. Where a message quotes a special
        entry, the text between the template's marks is encoded piece by piece, as a tokenizer does around special entries.
        """
        if self.quotes_special(messages):
            return self._encode_quoting(messages)
        segments = render_chat(messages)
        encoded = self._tokenizer.encode("".join(text for text, _ in segments), add_special_tokens=False)
        ends, position = [], 0
        for text, is_assistant in segments:
            position += len(text)
            ends.append((position, is_assistant))
        flags, segment = [], 0
        for start, _ in encoded.offsets:
            while segment < len(ends) - 1 and start >= ends[segment][0]:
                segment += 1
            flags.append(ends[segment][1])
        return encoded.ids, flags

    def lengths(self, chats: Sequence[Sequence[dict[str, str]]]) -> list[int]:
        """The number of tokens of each conversation, computed on all cores."""
        texts = ["".join(text for text, _ in render_chat(messages)) for messages in chats]
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [
            len(self.encode(messages)[0]) if self.quotes_special(messages) else len(encoding.ids)
            for messages, encoding in zip(chats, encodings)
        ]

    def _encode_quoting(self, messages: Sequence[dict[str, str]]) -> tuple[list[int], list[bool]]:
        ids: list[int] = []
        flags: list[bool] = []
        marks = (TURN_START, TURN_END, EOS)
        start, end, text_end = (self._tokenizer.token_to_id(mark) for mark in marks)
        assert start is not None and end is not None and text_end is not None  # `load_tokenizer` has checked it
        for message in messages:
            if message["role"] == TEXT:
                text = [*self._plain.encode(message["content"]).ids, text_end]
                ids += text
                flags += [True] * len(text)
                continue
            said = message["role"] == "assistant"
            opening = f"{message['role']}\n"
            turn = self._plain.encode(opening + message["content"])
            after = self._plain.encode("\n").ids
            ids += [start, *turn.ids, end, *after]
            flags += [False, *(said and place >= len(opening) for place, _ in turn.offsets), said, *(said for _ in after)]
        return ids, flags
