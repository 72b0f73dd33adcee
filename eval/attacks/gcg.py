"""GCG: an adversarial suffix for each prompt, found by greedy coordinate gradient (Zou et al. 2023; paper appendix B).

docs/decoding.md says where it differs from nanoGCG; eval/attacks/losses.py has the forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from scipy.stats import spearmanr
from transformers.cache_utils import DynamicCache

from curricula import durable
from curricula.eval.attacks.losses import Attack, gradients, losses_after
from curricula.eval.benchmarks import Prompt
from curricula.eval.config import Gcg
from curricula.eval.decoding.answers import room_after
from curricula.eval.decoding.settings import together
from curricula.eval.models import LoadedModel, load_model
from curricula.eval.rows import Precision, SuffixRow, append_rows, finished_batches, in_order, row_key
from curricula.progress import Progress
from curricula.randomness import keyed_rng
from curricula.settings import decode

VERSION = 3
"""Version of the algorithm, part of every row's key."""
SAVE_INTERVAL_STEPS = 10


def attacked_prompts(
    loaded: LoadedModel, prompts: list[Prompt], config: Gcg, path: Path, seed: int, progress: Progress
) -> list[Prompt]:
    """The prompts with their suffixes. Suffixes are stored in a file next to `path`; those missing there are optimised."""
    suffixes = path.with_name(f"{path.stem}.suffixes.jsonl")
    draft = None
    if config.probe_sampling:
        precision: Precision | None = "float64" if loaded.precision == "float64" else None
        draft = load_model(config.probe_sampling.draft, "base", str(loaded.device), precision)
    keys = suffix_keys(loaded, prompts, config, seed, draft)
    done = finished_batches(suffixes, SuffixRow, [[key] for key in keys])
    waiting = [(prompt, key) for prompt, key in zip(prompts, keys) if key not in done]
    save = suffixes.with_suffix(".step.json")
    side_by_side = 1 if loaded.deterministic else config.batch_prompts
    for start in range(0, len(waiting), side_by_side):
        batch = waiting[start : start + side_by_side]

        def on_step(step: int, loss: float, finished: int = len(done) + start) -> None:
            progress(finished * config.steps + step, len(prompts) * config.steps, loss=round(loss, 4))

        draws = {key: (seed, prompt.benchmark, prompt.id) for prompt, key in batch}
        texts = [prompt.text for prompt, _ in batch]
        results = optimise_suffixes(loaded, texts, config, draws, on_step, save, draft)
        append_rows(
            suffixes,
            [
                SuffixRow(
                    key=key,
                    model=loaded.content_hash,
                    benchmark=prompt.benchmark,
                    prompt_id=prompt.id,
                    behavior=prompt.behavior,
                    seed=seed,
                    suffix=suffix,
                    loss=state.best_loss,
                    initial_loss=state.initial_loss,
                    losses=state.losses,
                    idle_steps=state.idle_steps,
                )
                for (prompt, key), (suffix, state) in zip(batch, results)
            ],
        )
    save.unlink(missing_ok=True)
    rows = in_order(suffixes, SuffixRow, [[key] for key in keys])
    return [msgspec.structs.replace(prompt, text=prompt.text.strip() + row.suffix) for prompt, row in zip(prompts, rows)]


def suffix_keys(loaded: LoadedModel, prompts: Sequence[Prompt], config: Gcg, seed: int, draft: LoadedModel | None) -> list[str]:
    """The key of each prompt's row: a hash of everything that decides its suffix."""
    neutral = {"benchmark", "prompts"}  # settings that do not change a suffix
    if loaded.is_exact:
        neutral |= together(Gcg)
    if loaded.deterministic:  # prompts are attacked one at a time
        neutral.add("batch_prompts")
    settings = {name: value for name, value in msgspec.to_builtins(config).items() if name not in neutral}
    if draft:
        settings["probe_sampling"]["draft"] = draft.content_hash
    return [
        row_key(
            task="gcg",
            prompt_id=prompt.id,
            benchmark=prompt.benchmark,
            prompt=prompt.text,
            model=loaded.content_hash,
            precision=loaded.precision,
            version=VERSION,
            settings=settings,
            seed=seed,
            if_set={"raw": loaded.raw, "deterministic": loaded.deterministic},
        )
        for prompt in prompts
    ]


class State(msgspec.Struct, kw_only=True):
    """An attack on one prompt after some steps."""

    step: int
    current: list[int]
    """The suffix that the next step starts from."""
    loss: float
    """Loss of the candidate accepted last: mean cross-entropy of the target, in nats per token."""
    initial_loss: float
    best: list[int]
    """The suffix of lowest loss over all steps."""
    best_loss: float
    losses: list[float]
    """`loss` after each step so far."""
    buffer: list[tuple[float, list[int]]]
    """The suffixes of lowest loss, best first; empty without a buffer."""
    idle_steps: int = 0
    """Steps at which no candidate kept its tokens, so that the suffix did not change."""
    stopped: bool = False
    """Whether `early_stop` has ended the attack: after some candidate, the model began with the target."""


def saved_states(path: Path) -> dict[str, State]:
    """The attacks in progress, by the keys of their rows; empty if there is no such file or it has another format."""
    try:
        return decode(path.read_bytes(), dict[str, State])
    except (FileNotFoundError, ValueError):
        return {}


def optimise_suffixes(
    loaded: LoadedModel,
    requests: Sequence[str],
    config: Gcg,
    draws: Mapping[str, tuple[object, ...]],
    on_step: Callable[[int, float], None] = lambda steps, loss: None,
    save: Path | None = None,
    draft: LoadedModel | None = None,
) -> list[tuple[str, State]]:
    """Run the attack on requests side by side. Returns each request's suffix, with its leading space, and its last state.

    `draws` has an entry for each request, in order: a key for its state, and the values that seed its draws. `save` is a file
    that stores the states by key, so that a killed attack resumes. `on_step` gets the steps of all requests so far and the loss
    of the suffix accepted last.
    """
    attacks = [Attack(loaded, request, config) for request in requests]
    barred = barred_tokens(loaded)
    saved = saved_states(save) if save else {}
    states = {key: saved.get(key) or first_state(attack) for key, attack in zip(draws, attacks)}
    passes = 0
    while running := [
        (attack, states[key], draws[key])
        for attack, key in zip(attacks, draws)
        if states[key].step < config.steps and not states[key].stopped
    ]:
        batch_gradients = gradients(
            loaded,
            [attack.prefix for attack, _, _ in running],
            [state.current for _, state, _ in running],
            attacks[0].closing_ids,
            attacks[0].target_ids,
        )
        for (attack, state, seeds), gradient in zip(running, batch_gradients):
            replacements = promising(gradient, barred, config.topk)
            advance(attack, state, replacements, keyed_rng("gcg", *seeds, state.step), draft)
            on_step(sum(config.steps if other.stopped else other.step for other in states.values()), state.loss)
        passes += 1
        if save and passes % SAVE_INTERVAL_STEPS == 0:
            durable.write_text(save, msgspec.json.encode(states).decode())
    return [(loaded.decode_parts([state.best])[0], state) for state in states.values()]


def first_state(attack: Attack) -> State:
    ids = list(attack.initial_ids)
    ((loss,), _) = attack.losses([ids])
    buffer = [(loss, ids)] if attack.config.buffer else []
    return State(step=0, current=ids, loss=loss, initial_loss=loss, best=ids, best_loss=loss, losses=[], buffer=buffer)


def advance(
    attack: Attack, state: State, replacements: np.ndarray, rng: np.random.Generator, draft: LoadedModel | None
) -> None:
    """Take one step: accept the candidate of lowest loss into `state`. Without a candidate that keeps its tokens, stay idle."""
    config = attack.config
    candidates = draw_candidates(state.current, replacements, config, rng)
    candidates = [row for row, kept in zip(candidates, attack.keeps_tokens(candidates)) if kept]
    if candidates:
        losses, hits = (
            sampled_losses(attack, candidates, state.current, draft, rng) if draft else attack.losses(candidates, state.current)
        )
        place = int(np.argmin(losses))
        state.loss, state.current = losses[place], candidates[place]
        state.stopped = config.early_stop and any(hits)
        if config.buffer:
            # The sort is stable: a candidate as good as the buffer's last does not replace it.
            state.buffer = sorted([*state.buffer, (state.loss, state.current)], key=lambda entry: entry[0])
            state.buffer = state.buffer[: config.buffer]
            state.current = state.buffer[0][1]
        if state.loss < state.best_loss:
            state.best, state.best_loss = candidates[place], state.loss
    else:
        state.idle_steps += 1
    state.losses.append(state.loss)
    state.step += 1


def barred_tokens(loaded: LoadedModel) -> torch.Tensor:
    """Bool [vocabulary]: tokens that a suffix must not contain (special, added, or not printable ASCII)."""
    size = loaded.model.get_input_embeddings().num_embeddings
    texts = loaded.tokenizer.batch_decode([[i] for i in range(len(loaded.tokenizer))], clean_up_tokenization_spaces=False)
    barred = [not (text and text.isascii() and text.isprintable()) for text in texts]
    for token in {*loaded.tokenizer.all_special_ids, *loaded.tokenizer.get_added_vocab().values()}:
        barred[token] = True
    barred += [True] * (size - len(barred))
    return torch.tensor(barred, device=loaded.device)


def promising(gradient: torch.Tensor, barred: torch.Tensor, topk: int) -> np.ndarray:
    """Token ids [length, topk] that lower the loss most by the gradient [length, vocabulary], best first."""
    allowed = int((~barred).sum())
    return gradient.masked_fill(barred, torch.inf).neg().topk(min(topk, allowed), dim=-1).indices.cpu().numpy()


def draw_candidates(current: Sequence[int], replacements: np.ndarray, config: Gcg, rng: np.random.Generator) -> list[list[int]]:
    """Copies of the suffix, each with `config.replace` tokens at different places replaced by random promising ones."""
    width, length, count = config.search_width, len(current), min(config.replace, len(current))
    if config.draws == "llm-attacks":
        places = (np.arange(width) * length // width)[:, None]
    elif count == 1:
        places = rng.integers(length, size=(width, 1))
    else:
        places = rng.random((width, length)).argsort(axis=1)[:, :count]
    choices = rng.integers(replacements.shape[1], size=places.shape)
    candidates = np.tile(np.asarray(current), (width, 1))
    candidates[np.arange(width)[:, None], places] = replacements[places, choices]
    if config.draws == "llm-attacks":
        candidates = candidates[(candidates != np.asarray(current)).any(axis=1)]
    return candidates.tolist()


def draft_losses(draft: LoadedModel, attack: Attack, suffixes: Sequence[Sequence[int]]) -> list[float]:
    """The draft's loss of the target after the whole prompt with each suffix."""
    start = list(draft.beginning)
    texts = [start + draft.encode(f"{attack.opening}{text}{attack.closing}") for text in attack.loaded.decode_parts(suffixes)]
    target = draft.answer_ids(attack.target)
    room_after(draft, [*max(texts, key=len), *target[1:]], 1)
    return losses_after(draft, DynamicCache(), texts, texts[0], target, attack.config.batch_candidates)[0]


def sampled_losses(
    attack: Attack, candidates: list[list[int]], current: list[int], draft: LoadedModel, rng: np.random.Generator
) -> tuple[list[float], list[bool]]:
    """As `Attack.losses`, but only for candidates that probe sampling selects; others have an infinite loss and no hit."""
    sampling = attack.config.probe_sampling
    assert sampling is not None
    count = len(candidates)
    by_draft = np.array(draft_losses(draft, attack, [current, *candidates])[1:])
    losses, hits = np.full(count, np.inf), np.zeros(count, dtype=bool)

    def compute(places: np.ndarray) -> None:
        places = places[np.isinf(losses[places])]
        if len(places):
            losses[places], hits[places] = attack.losses([candidates[place] for place in places], current)

    probes = rng.permutation(count)[: max(2, count // sampling.sampling_factor)]
    compute(probes)
    agreement = spearmanr(losses[probes], by_draft[probes]).statistic if len(probes) > 1 else np.nan
    share = (1 - (1 + agreement) / 2) / sampling.r if np.isfinite(agreement) else 0.5 / sampling.r
    compute(by_draft.argsort(kind="stable")[: max(1, int(share * count))])
    return losses.tolist(), hits.tolist()
