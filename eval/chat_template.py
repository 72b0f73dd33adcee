"""Chat templates: programs that come with a model and may be damaged, endless or of another purpose.

`check_template` renders one short turn in a child process that is limited in time and memory; `render` renders in this
process. Either raises UserError. What a template may reach is limited by jinja's sandbox, which transformers uses.
"""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

from curricula.errors import UserError

LONGEST_TEMPLATE = 1_000_000
"""Characters; published templates have up to 20,000."""
LONGEST_ADDITION = 1_000_000
"""Characters that a template may add to a text."""
PATIENCE_S = 10
MEMORY_BYTES = 2**30
"""Of the child, beyond what this process has."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


def render(tokenizer: Any, template: str, text: str, name: str) -> str:
    """`text` as the user's turn and the opening of the assistant's, by the template of the model `name`."""
    return render_turns(tokenizer, template, [{"role": "user", "content": text}], name)


def render_turns(tokenizer: Any, template: str, turns: list[dict[str, str]], name: str) -> str:
    """A conversation and, after a user's turn, the opening of the assistant's."""
    text, open_turn = "".join(turn["content"] for turn in turns), turns[-1]["role"] == "user"
    try:
        rendered = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=open_turn, chat_template=template
        )
    except Exception as error:  # a template is a program: it can fail in any way
        raise _unusable(name, f"fails: {type(error).__name__}: {' '.join(str(error).split())[:160]}") from None
    if len(rendered) > len(text) + LONGEST_ADDITION:
        raise _unusable(name, f"adds more than {LONGEST_ADDITION:,} characters to a text")
    return rendered


def check_template(tokenizer: Any, template: str, name: str) -> None:
    """Raise UserError for a template that cannot render a turn, in limited time and memory."""
    if not isinstance(template, str):
        raise _unusable(name, f"is a {type(template).__name__}, where one text is needed")
    if len(template) > LONGEST_TEMPLATE:
        raise _unusable(name, f"has {len(template):,} characters, and at most {LONGEST_TEMPLATE:,} are read")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        _render_in_child(tokenizer, template, name, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        problem = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        raise _unusable(name, f"does not end within {PATIENCE_S} s")
    if status:
        raise UserError(problem) if problem else _unusable(name, f"needs more than {MEMORY_BYTES >> 30} GiB of memory")


def _render_in_child(tokenizer: Any, template: str, name: str, writer: int) -> None:
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
        signal.alarm(PATIENCE_S)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE
        limit, hard = used + MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
        render(tokenizer, template, "Hello", name)
        code = 0
    except UserError as error:
        if "MemoryError" not in str(error):
            os.write(writer, str(error).encode(errors="replace"))
    finally:  # neither the parent's buffers nor its handlers
        os._exit(code)


def _unusable(name: str, how: str) -> UserError:
    return UserError(f"{name}: its chat template {how}; correct chat_template in its folder, or evaluate it as 'base'")
