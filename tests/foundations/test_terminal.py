"""What reaches a terminal or a log: nothing that a terminal obeys, and no password of a URL."""

import io
import json
import math
import sys

import pytest
from rich.console import Console

from curricula.secrets import is_secret, secret_in, without_userinfo
from curricula.terminal import fixed, folded, guarded_output, json_text, one_line, printable, say

OBEYED = ["\x1b]0;title\x07", "\x9b2J", "\x85", "\x7f", "\u202e", "\u2066", "\u200f", "\u061c"]


@pytest.mark.parametrize("text", OBEYED)
def test_nothing_that_a_terminal_obeys_reaches_it_whoever_prints(text, capsys):
    with guarded_output():
        print(f"\x1b[31mred\x1b[0m {text} \u00e9\u4e2d")
        sys.stderr.writelines([text, "\n"])
    shown = capsys.readouterr()
    assert shown.out.startswith("\x1b[31mred\x1b[0m ") and shown.out.endswith(" \u00e9\u4e2d\n")
    for stream in (shown.out[12:], shown.err, printable(text), one_line(text)):
        assert not set(stream.strip("\n")) & set("\x1b\x07\x9b\x85\x7f\u202e\u2066\u200f\u061c")


def test_any_text_can_be_written_in_any_encoding(monkeypatch):
    latin = io.TextIOWrapper(io.BytesIO(), "latin-1", write_through=True)
    monkeypatch.setattr(sys, "stdout", latin)
    with guarded_output():
        print("ring\x07 \u2013 \u00e9 \ud800")
    assert latin.buffer.getvalue() == b"ring? ? \xe9 ?\n"


def test_json_is_ascii_without_controls_and_means_the_same():
    value = {"error": "".join(OBEYED) + "\u4e2d"}
    text = json_text(value)
    assert json.loads(text) == value and all(" " <= char <= "~" or char == "\n" for char in text)


def test_a_failures_text_is_cut():
    assert len(one_line("x" * 10_000)) == 500 and one_line("x" * 500) == "x" * 500


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://user:pw@host/v1 failed", "GET https://***@host/v1 failed"),
        ("(http://ghp_abc@host:80)", "(http://***@host:80)"),
        ("postgresql+psycopg://u:p@w@db/x", "postgresql+psycopg://***@db/x"),
        ("https://host/user@example.org, me@example.org", "https://host/user@example.org, me@example.org"),
    ],
)
def test_users_and_passwords_of_urls_reach_no_output(text, shown, capsys):
    assert without_userinfo(text) == shown == one_line(text)
    with guarded_output():
        print(text)
    assert capsys.readouterr().out == shown + "\n"


@pytest.mark.parametrize(
    "name",
    [
        "GH_PAT", "DATABASE_URL", "REDIS_URL", "MONGODB_URI", "SLACK_WEBHOOK_URL", "SENTRY_DSN", "AZURE_CONNECTION_STRING",
        "HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "MYSQL_PWD", "GOOGLE_CREDENTIALS", "OAUTH", "KEY",
    ],
)  # fmt: skip
def test_names_of_secrets(name):
    assert is_secret(name, "x") and secret_in(f"export {name}=x") == secret_in(f"{name}='x y'") == name
    assert secret_in(f'{name}="x" OTHER="$y"') == name
    assert not any(
        secret_in(f"export {name}{end}")
        for end in ("", "=", "=''", "=$OTHER", '="$(cat file)"', '="Bearer $OTHER"', "=`cat file`")
    )


@pytest.mark.parametrize(
    "name",
    [
        "PATH", "PYTHONPATH", "HTTPS_PROXY", "HF_HOME", "DISPATCH", "BASE_URL", "LSF_PATCH", "PWD", "OLDPWD", "TOKENIZER_PATH",
        "TIKTOKEN_CACHE_DIR", "MAX_TOKENS", "NUM_TOKENS", "SSH_AUTH_SOCK", "XAUTHORITY", "GIT_AUTHOR_NAME", "NCCL_IB_PKEY",
    ],
)  # fmt: skip
def test_names_of_no_secrets(name):
    assert not is_secret(name, "http://proxy:3128") and not secret_in(f"export {name}=x")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pull docker://me:pw@registry/image", "a URL's password"),
        ("git clone https://ghp_abc@host/x", "a URL's password"),
        ("pull docker://me@registry/image", ""),
        ("ssh me@host:22", ""),
    ],
)
def test_what_a_line_gives_away(line, said):
    assert secret_in(line) == said


def test_a_proxy_with_a_password_is_a_secret():
    assert is_secret("HTTPS_PROXY", "http://me:pw@proxy:3128")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_an_error_breaks_between_words_on_a_terminal_and_stays_whole_elsewhere(monkeypatch, is_terminal):
    monkeypatch.setenv("COLUMNS", "30")
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: is_terminal)
    said = "curricula: nowhere/at/all: not a run folder; `curricula submit STUDY` makes one"
    lines = folded(said, screen).split("\n")
    assert " ".join(lines) == said
    assert (max(map(len, lines)) <= 30) is is_terminal
    say(Console(file=screen), said)
    assert screen.getvalue().splitlines() == lines


@pytest.mark.parametrize(
    ("value", "written", "said"),
    [
        (6.25, (1,), "6.3"),
        (12.5, (0,), "13"),
        (-0.0625, (3, "+"), "-0.063"),
        (0.2, (1, "+"), "+0.2"),
        (math.nan, (1,), "nan"),
        (0.4124999999999999, (1, "", 100), "41.3"),
        (2.0**100, (1,), f"{2**100}.0"),
    ],
)
def test_ties_are_rounded_as_the_scripts_of_the_page_round_them(value, written, said):
    assert fixed(value, *written) == said
