"""What looks like a secret: names of variables, and passwords within URLs. Neither belongs into files, logs or pages."""

from __future__ import annotations

import re

SECRET = re.compile(
    r"(?<!TIK)(?<!MAX_)(?<!NUM_)TOKEN(?!IZ)|SECRET|(?<!BY)PASS|(?<!^OLD)(?<!^)PWD|CREDENTIAL|AUTH(?!OR_|ORITY|_SOCK)|(^|_)(API)?KEY|(^|_)(PAT|DSN|SAS|JWT|COOKIES?)(_|$)"
    r"|WEBHOOK|CONN(ECTION)?_?STR"
    r"|(^|_)(DATABASE|DB|SQL\w*|MYSQL|MARIADB|POSTGRES\w*|PG|MONGO\w*|REDIS|AMQP|RABBITMQ|BROKER|CELERY\w*|SMTP)_UR[IL]",
    re.IGNORECASE,
)
"""Names of variables that look like a secret's; neither scripts nor the notify command get them. The expression leaves out
names that merely look similar: PWD, TOKENIZER_PATH, TIKTOKEN_CACHE_DIR, MAX_TOKENS, SSH_AUTH_SOCK, NCCL_IB_PKEY."""
_USERINFO = re.compile(r"(?<![\w+.-])([a-z][a-z0-9+.-]*://)[^\s/?#'\"<>]*@", re.IGNORECASE)
_PASSWORD = re.compile(r"\bhttps?://[^\s/?#'\"<>]*@|\b[a-z][a-z0-9+.-]*://[^\s/?#'\"<>@]*:[^\s/?#'\"<>]+@", re.IGNORECASE)
"""Not the user alone of another scheme: docker://USER@REGISTRY is no secret."""
_ASSIGNMENT = re.compile(r"(?<![A-Za-z0-9_])([A-Z_][A-Z0-9_]*)=(?![\"']?[$`]|\"[^\"]*[$`]|[\"']*(\s|$))")
"""NAME=value within a line of shell or an option, but not NAME=$OTHER, NAME="Bearer $OTHER", NAME=$(command) or NAME without
a value."""


def without_userinfo(text: str) -> str:
    """`text` with the user and password of its URLs replaced."""
    return _USERINFO.sub(r"\1***@", text) if "@" in text else text


def has_password(text: str) -> bool:
    """Whether `text` contains a URL that gives a password, or a user over HTTP, who may be a token."""
    return bool(_PASSWORD.search(text))


def is_secret(name: str, value: str) -> bool:
    """Whether the variable `name` looks like a secret's, or its value is a URL with a password, as HTTPS_PROXY may be."""
    return bool(SECRET.search(name)) or has_password(value)


def secret_in(text: str) -> str:
    """What a line of shell or an option gives away: the name of a variable that it sets, "a URL's password", or ""."""
    named = next((found[1] for found in _ASSIGNMENT.finditer(text) if SECRET.search(found[1])), "")
    return named or ("a URL's password" if has_password(text) else "")
