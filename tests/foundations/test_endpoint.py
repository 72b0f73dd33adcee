"""The congestion window: never more requests than its width, narrower once for each rejected lot, then wider again. And what
a server's status means."""

from __future__ import annotations

import asyncio
import math
import sys
from types import SimpleNamespace

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curricula.asking import NoAnswer, Refused, Reply
from curricula.endpoint import DECREASE, CongestionWindow, Endpoint
from curricula.errors import UsageError, UserError


async def request(window: CongestionWindow, turned_away: bool | None, seconds: float = 0.001) -> int:
    """Hold a place for a while. Returns how many requests were under way with it."""
    async with window.place():
        at_once, sent_at = window.under_way, asyncio.get_running_loop().time()
        await asyncio.sleep(seconds)
        if turned_away is not None:
            window.learn(sent_at, turned_away)
    return at_once


async def lot(window: CongestionWindow, turned_away: bool | None, count: int | None = None) -> int:
    """Simultaneous requests, as many as fit or `count`. Returns the most that were under way at once."""
    asked = [request(window, turned_away) for _ in range(count or window.width)]
    found = await asyncio.wait_for(asyncio.gather(*asked), 120)
    await asyncio.sleep(0.001)  # let the loop's clock advance
    return max(found)


def test_requests_under_way_together_narrow_it_once() -> None:
    async def run() -> None:
        window = CongestionWindow(50)
        await lot(window, turned_away=True)
        assert window.width == math.floor(50 * DECREASE)
        await lot(window, turned_away=True)
        assert window.width == math.floor(math.floor(50 * DECREASE) * DECREASE)

    asyncio.run(run())


def test_it_never_closes_and_widens_by_one_per_lot() -> None:
    async def run() -> None:
        window = CongestionWindow(6)
        for _ in range(20):
            await lot(window, turned_away=True)
        assert window.width == 1
        for width in (2, 3, 4, 5, 6, 6):
            await lot(window, turned_away=False)
            assert window.width == width

    asyncio.run(run())


def test_requests_with_an_unknown_outcome_change_nothing() -> None:
    async def run() -> None:
        window = CongestionWindow(6)
        await lot(window, turned_away=True)
        for _ in range(5):
            await lot(window, turned_away=None)
        assert window.width == 4

    asyncio.run(run())


def test_a_place_is_freed_however_its_holder_ends() -> None:
    async def run() -> None:
        window = CongestionWindow(1)
        holder = asyncio.create_task(request(window, None, seconds=600))
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(request(window, None)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # while it waits
        holder.cancel()  # while it holds
        await asyncio.wait_for(asyncio.gather(*waiting[1:]), 120)
        with pytest.raises(ZeroDivisionError):
            async with window.place():
                _ = 1 / 0
        await asyncio.wait_for(request(window, None), 120)
        assert window.under_way == 0

    asyncio.run(run())


@settings(max_examples=50)
@given(most=st.integers(1, 8), ends=st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=60))
def test_as_many_as_the_window_holds_are_under_way_and_all_finish(most: int, ends: list[bool | None]) -> None:
    async def run() -> None:
        window = CongestionWindow(most)
        asked = [request(window, end, seconds=0.0001) for end in ends]
        assert max(await asyncio.wait_for(asyncio.gather(*asked), 120)) == min(most, len(ends))
        assert window.under_way == 0 and 1 <= window.width <= most

    asyncio.run(run())


@pytest.mark.parametrize("host", ["http://[::1]:8000", "http://[2001:db8::7]", "https://node7:8000"])
def test_a_server_is_shown_as_it_is_addressed(host: str) -> None:
    assert Endpoint(f"{host}/v1", "", timeout_s=1, retries=0, tries=1, concurrency=1).host == host


@pytest.mark.parametrize("url", ["http://me:hunter2@host/v1?version=1", "http://me:hunter2#@host/v1", "http://host/v1#"])
def test_an_address_with_more_behind_the_path_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(UsageError, match=r"^host/v1: its address has a \? or #, .*; give it up to /v1 alone$"):
        Endpoint(url, "", timeout_s=1, retries=0, tries=1, concurrency=1)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ALL_PROXY", "ftp://me:hunter2@host", r"ftp://\*\*\*@host"),
        ("ALL_PROXY", "socks5://host", "socksio"),
        ("SSL_CERT_FILE", "/nowhere.pem", "No such file"),
    ],
)
def test_what_the_environment_says_of_proxies_and_certificates_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=rf"http://node7: .*{said}.*; correct it, or HTTP_PROXY"):
        Endpoint("http://node7/v1", "", timeout_s=1, retries=0, tries=1, concurrency=1)


def test_a_reply_that_is_no_text_is_a_bad_body_and_one_with_a_text_is_no_refusal() -> None:
    endpoint = Endpoint("http://node7/v1", "", timeout_s=1, retries=0, tries=1, concurrency=1)
    with pytest.raises(ValueError):
        endpoint.read_choice({"message": {"content": ["well"]}})
    assert endpoint.read_choice({"message": {"content": "well", "refusal": "no"}}) == Reply("well", cut=False)


@pytest.mark.parametrize(
    ("status", "body", "meaning"),
    [
        *((status, {}, Refused) for status in (400, 413, 422)),
        *((status, {}, NoAnswer) for status in (408, 409, 429, 500, 503)),
        *((status, {}, UserError) for status in (301, 307, 401, 402, 403, 404, 407)),
        (429, {"code": "insufficient_quota"}, UserError),
        (403, {"code": 403, "metadata": {"reasons": ["violence"], "flagged_input": "How do"}}, Refused),
        (403, {"code": 403, "metadata": {"provider_name": "mine"}}, UserError),
    ],
)
def test_a_final_status_is_about_one_request_or_ends_the_work(status: int, body: object, meaning: type[Exception]) -> None:
    async def ask(client: openai.AsyncOpenAI) -> None:
        response = SimpleNamespace(status_code=status, headers={}, request=None)
        raise openai.APIStatusError("no", response=response, body=body)

    endpoint = Endpoint("http://node7/v1", "", timeout_s=1, retries=0, tries=1, concurrency=1)
    with pytest.raises(meaning):
        asyncio.run(endpoint.call(ask, "model"))
