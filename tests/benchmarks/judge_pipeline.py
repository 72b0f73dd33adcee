"""How much of a server's rate limit the judge pipeline uses, compared with the plain loop of most evaluation scripts.

    python tests/benchmarks/judge_pipeline.py --limits 20,100,300

The program's own server (asyncio, in another process) answers after --latency seconds. It accepts as many requests per second
as its limit allows (a token bucket of one second) and answers all others with 429 and Retry-After.

- ours, paced: the pipeline with `requests_per_minute` set to the limit; verdicts are written to disk and synced
- ours, unpaced: the same without that setting, so that only the 429s slow it down
- plain loop: `AsyncOpenAI` with a semaphore and its own two retries; an exception loses the verdict, and nothing is written

Utilisation is verdicts per second over the limit, from the first request to the last verdict on disk, without imports. All
three read the same replies in the same way.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import machine

sys.path += [str(machine.ROOT / "tests" / "support")]
OURS, UNPACED, PLAIN = "ours, paced", "ours, unpaced", "plain loop"
REPLY = {
    "id": "1",
    "object": "chat.completion",
    "created": 0,
    "model": "judge",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 300, "completion_tokens": 1, "total_tokens": 301},
}


class Bucket:
    """Admits `limit` requests per second, and at most one second's worth at once."""

    def __init__(self, limit: float) -> None:
        self.limit, self.level, self.last, self.refused = limit, limit, time.monotonic(), 0

    def wait_s(self) -> float:
        """0 when a request may pass, else how long until one may."""
        now = time.monotonic()
        self.level = min(self.limit, self.level + (now - self.last) * self.limit)
        self.last = now
        if self.level >= 1:
            self.level -= 1
            return 0.0
        self.refused += 1
        return (1 - self.level) / self.limit


def serve(pipe: Connection, limit: float, latency_s: float) -> None:
    """Run the server until the pipe says stop; sends its port first, and the number of refusals last."""
    bucket, body = Bucket(limit), json.dumps(REPLY).encode()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(length)
            wait_s = bucket.wait_s()
            if wait_s:
                status, extra, sent = b"429 Too Many Requests", b"retry-after-ms: %d\r\n" % (1000 * wait_s + 1), b"{}"
            else:
                await asyncio.sleep(latency_s)
                status, extra, sent = b"200 OK", b"", body
            kind = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(sent)
            writer.write(b"HTTP/1.1 " + status + b"\r\n" + extra + kind + sent)
            await writer.drain()

    async def quiet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run() -> None:
        server = await asyncio.start_server(quiet, "127.0.0.1", 0, backlog=1024)
        pipe.send(server.sockets[0].getsockname()[1])
        while not pipe.poll():
            await asyncio.sleep(0.02)
        pipe.send(bucket.refused)

    asyncio.run(run())


def ask(who: str, limit: float, seconds: float, latency_s: float, concurrency: int, folder: str) -> machine.Task:
    """Judge as many answers as the limit allows in `seconds`; returns how long that took and what the verdicts were."""
    ours, theirs = get_context("spawn").Pipe()
    server = get_context("spawn").Process(target=serve, args=(theirs, limit, latency_s), daemon=True)
    server.start()
    url, count = f"http://127.0.0.1:{ours.recv()}/v1", int(limit * seconds)
    judge = plain_loop if who == PLAIN else pipeline
    taken_s, verdicts = judge(url, count, limit if who == OURS else None, concurrency, Path(folder))
    ours.send("stop")
    refused = ours.recv()
    server.join()
    # One second's worth passes at once at the beginning, so the least time is that of the rest.
    least_s = (count - limit) / limit
    return {"seconds": taken_s, "verdicts": verdicts, "asked": count, "refused": refused, "least_s": least_s}


def pipeline(url: str, count: int, limit: float | None, concurrency: int, folder: Path) -> tuple[float, int]:
    from judge_server import answer_row

    from curricula.eval.judges.registry import load_judge
    from curricula.eval.judges.settings import JudgeConfig
    from curricula.eval.verdicts import JudgeRun

    response = "Sure, " + "here it is " * 80
    rows = [answer_row(number, response=response, tokens=256, finish="length") for number in range(count)]
    per_minute = None if limit is None else int(60 * limit)
    settings = JudgeConfig(
        name="llm", model="judge", url=url, concurrency=concurrency, requests_per_minute=per_minute, retries=20
    )
    path = folder / "attacks-topk.verdicts.jsonl"
    work = JudgeRun(rows, path, load_judge(settings, "attack", None))
    began = time.perf_counter()
    work.complete()
    return time.perf_counter() - began, path.read_bytes().count(b"\n")


def plain_loop(url: str, count: int, limit: float | None, concurrency: int, folder: Path) -> tuple[float, int]:
    import openai

    from curricula.eval.judges.question import Question
    from curricula.eval.judges.templates import TEMPLATES

    async def run() -> tuple[float, int]:
        client, gate, verdicts = openai.AsyncOpenAI(base_url=url, api_key="none"), asyncio.Semaphore(concurrency), 0
        template = TEMPLATES["harmbench-api"]

        async def one(number: int) -> None:
            nonlocal verdicts
            asked = Question(kind="attack", behavior=f"Do {number}", response="Sure, " + "here it is " * 80)
            text = template.fill(asked, asked.response)
            async with gate:
                try:
                    reply = await client.chat.completions.create(
                        model="judge", messages=[{"role": "user", "content": text}], max_tokens=16, temperature=0
                    )
                except openai.OpenAIError:
                    return
            verdicts += template.read(reply.choices[0].message.content or "") != "unparsed"

        began = time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(count)))
        return time.perf_counter() - began, verdicts

    return asyncio.run(run())


def main() -> None:
    parser = machine.parser(__doc__)
    parser.add_argument("--limits", default="20,100,300", help="requests a second, by commas (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="a measurement asks what the limit allows in these")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds until a reply (default: %(default)g)")
    args = parser.parse_args()
    rows = []
    table = machine.table(
        f"Verdicts of a judge behind a rate limit, replies after {args.latency:g} s",
        "limit, requests/s",
        "who",
        "verdicts/s",
        "of the limit",
        "of the plain loop",
        "429s",
        "verdicts lost",
    )
    for limit in map(float, args.limits.split(",")):
        # Enough under way to hold the limit at this latency, and half as many again.
        common = {"limit": limit, "concurrency": max(8, int(1.5 * limit * (args.latency + 0.05)))}
        common |= {"measure": "ask", "seconds": args.seconds, "latency_s": args.latency}

        def measure(who: str, common: machine.Task = common) -> machine.Task:
            with tempfile.TemporaryDirectory(dir=args.folder, prefix="judge-pipeline-") as folder:
                found = machine.fresh({**common, "who": who, "folder": folder})
            return {"limit": common["limit"], "who": who, **found}

        machine.progress(f"{limit:g} requests/s")
        taken = machine.in_turns((OURS, UNPACED, PLAIN), args.repeats, measure)
        rates = {who: [run["verdicts"] / run["seconds"] for run in runs] for who, runs in taken.items()}
        plain = statistics.median(rates[PLAIN])
        for who, runs in taken.items():
            rows += runs
            # The bucket's first second counts for nothing: a second's worth is waiting at the start.
            shares = [100 * (run["least_s"] + args.latency) / run["seconds"] * run["verdicts"] / run["asked"] for run in runs]
            table.add_row(
                f"{limit:g}",
                who,
                machine.shown(rates[who], "{:.1f}"),
                machine.shown(shares, "{:.0f}", "%"),
                f"{statistics.median(rates[who]) / plain:.2f}x",
                machine.shown([run["refused"] for run in runs], "{:.0f}"),
                machine.shown([run["asked"] - run["verdicts"] for run in runs], "{:.0f}"),
            )
    notes = [
        "Of the limit: the least time in which the server lets all through, over the time taken, times the share answered."
    ]
    machine.report(args, [table], notes, rows)


if __name__ == "__main__" and not machine.serve_child({"ask": ask}):
    main()
