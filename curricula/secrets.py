"""Recognises secrets by the names of variables and by passwords in URLs. They must not reach files, logs or pages."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from curricula.errors import UsageError

SECRET = re.compile(
    r"(?<!TIK)(?<!MAX_)(?<!NUM_)TOKEN(?!IZ)|SECRET|(?<!BY)PASS|(?<!^OLD)(?<!^)PWD|CREDENTIAL|AUTH(?!OR_|ORITY|_SOCK)|(^|_)(API)?KEY|(^|_)(PAT|DSN|SAS|JWT|COOKIES?)(_|$)"
    r"|WEBHOOK|CONN(ECTION)?_?STR"
    r"|(^|_)(DATABASE|DB|SQL\w*|MYSQL|MARIADB|POSTGRES\w*|PG|MONGO\w*|REDIS|AMQP|RABBITMQ|BROKER|CELERY\w*|SMTP)_UR[IL]",
    re.IGNORECASE,
)
"""Matches names of variables that look like a secret's; neither scripts nor the notify command get such variables. It does not
match names that merely look similar: PWD, TOKENIZER_PATH, TIKTOKEN_CACHE_DIR, MAX_TOKENS, SSH_AUTH_SOCK, NCCL_IB_PKEY."""
_USERINFO = re.compile(r"(?<![\w+.-])([a-z][a-z0-9+.-]*://)[^\s/?#'\"<>]*@", re.IGNORECASE)
_PASSWORD = re.compile(r"\bhttps?://[^\s/?#'\"<>]*@|\b[a-z][a-z0-9+.-]*://[^\s/?#'\"<>@]*:[^\s/?#'\"<>]+@", re.IGNORECASE)
"""Matches the user and password of a URL. A user without a password counts only over HTTP: docker://USER@REGISTRY is no
secret."""
_ASSIGNMENT = re.compile(r"(?<![A-Za-z0-9_])([A-Z_][A-Z0-9_]*)=(?![\"']?[$`]|\"[^\"]*[$`]|[\"']*(\s|$))")
"""Matches NAME=value in a line of shell or an option, but not NAME=$OTHER, NAME="Bearer $OTHER", NAME=$(command) or NAME
without a value."""


def without_userinfo(text: str) -> str:
    """`text` with the user and password of its URLs replaced."""
    return _USERINFO.sub(r"\1***@", text) if "@" in text else text


def host_of(url: str) -> str:
    """`http://host:port` of a URL, without its user and password. Raises UsageError if it is not a server's address."""
    if set("?#") & set(url):
        shown = re.split("[?#]", url.rpartition("//")[2].rpartition("@")[2])[0]  # a password may hold them, too
        raise UsageError(f"{shown}: its address has a ? or #, after which no path can follow; give it up to /v1 alone")
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname:
            host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname  # IPv6
            return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")
    except ValueError:
        pass
    raise UsageError(f"{without_userinfo(url)!r}: not the address of a server; give one such as http://node7:8000/v1")


def has_password(text: str) -> bool:
    """Whether `text` contains a URL with a password, or an HTTP URL with a user, which can be a token."""
    return bool(_PASSWORD.search(text))


def is_secret(name: str, value: str) -> bool:
    """Whether the variable's name looks like a secret's, or its value is a URL with a password, as in HTTPS_PROXY."""
    return bool(SECRET.search(name)) or has_password(value)


def secret_in(text: str) -> str:
    """The secret that a line of shell or an option reveals: the name of a variable that it sets, "a URL's password", or ""."""
    variables = (assignment[1] for assignment in _ASSIGNMENT.finditer(text))
    secret = next(filter(SECRET.search, variables), "")
    return secret or ("a URL's password" if has_password(text) else "")
