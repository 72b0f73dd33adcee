"""ChatML: a conversation as text and tokens, and which of them the assistant learns.

The template is SmolLM2's without its default system prompt, so that training and evaluation see only what the data holds.
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
    """A conversation of {"role", "content"} as (text, is_assistant) segments, which join to the chat template's text.

    Loss belongs on the assistant's segments: its content, the end of its turn and the newline after it.
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
    """Token ids of a conversation and, for each, whether it is the assistant's and so carries loss.

    The text is encoded as a whole, so that the ids equal those of `apply_chat_template` even where a message begins with a
    newline. A token that straddles two segments belongs to the one in which it begins.
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
