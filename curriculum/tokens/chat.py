"""ChatML: how a conversation becomes text, and which of it is the assistant's to learn.

The template is SmolLM2's without its default system prompt, so that training and evaluation see what the data says.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def render_chat(messages: Sequence[dict[str, str]]) -> list[tuple[str, bool]]:
    """A conversation of {"role", "content"} as (text, is_assistant) segments; joined they are the chat template's text.

    Loss belongs on the assistant's segments: its content, the end of its turn and the newline after that.
    """
    segments: list[tuple[str, bool]] = []
    context = ""
    for message in messages:
        opening = f"{context}{TURN_START}{message['role']}\n"
        closing = f"{message['content']}{TURN_END}\n"
        if message["role"] == "assistant":
            segments += [(opening, False), (closing, True)]
            context = ""
        else:
            context = opening + closing
    return [*segments, (context, False)] if context else segments


def encode_chat(tokenizer: Tokenizer, messages: Sequence[dict[str, str]]) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation and, for each, whether it is the assistant's (so that loss belongs on it).

    The text is encoded whole, so that the ids are `apply_chat_template`'s even where a content begins with a newline; a
    token that straddles a border belongs to the side on which it begins.
    """
    segments = render_chat(messages)
    encoded = tokenizer.encode("".join(text for text, _ in segments), add_special_tokens=False)
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
