"""SafeBeam: beam search that looks one token ahead and drops the candidates likeliest to be followed by the tag.

Algorithm 1 of Maini et al. 2025; docs/decoding.md says what it leaves open, and how a prompt's beams share a row of the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch

from curricula.curriculum.tokens.tokenizer import TAG
from curricula.errors import UserError
from curricula.eval.decoding.answers import Answer, make_answer, room_after
from curricula.eval.decoding.batch import Decoding
from curricula.eval.decoding.settings import SafeBeam
from curricula.eval.models import LoadedModel
from curricula.eval.rows import Pruning

STEPS_OF_SLACK = 12
"""Fewest steps between two calls of `BeamTrees.clear`."""


def search_safebeam(loaded: LoadedModel, prompts: Sequence[Sequence[int]], config: SafeBeam) -> list[Answer]:
    """The answer to each prompt (token ids)."""
    return [
        make_answer(loaded, found, config.stop_at_tag, config.safe_completions, tuple(prompt), pruning)
        for prompt, (found, pruning) in zip(prompts, search_tokens(loaded, prompts, config))
    ]


def search_tokens(loaded: LoadedModel, prompts: Sequence[Sequence[int]], config: SafeBeam) -> list[tuple[list[int], Pruning]]:
    """Generated ids of each prompt's best beam, including any after its end mark or tag, and the cost of pruning."""
    if loaded.deterministic:  # one prompt at a time, so that shapes depend on nothing else
        return [found for prompt in prompts for found in Search(loaded, [prompt], config).run()]
    return Search(loaded, prompts, config).run()


class Search:
    """The search for several prompts, as many at a time as `config.rows` has room for.

    Line i of each tensor [lines, beams, ...] holds the beams of one prompt, best first. A score of -inf marks a place without a
    beam. A prompt enters as a single beam without its last token; the prompt's first step adds that token and prunes nothing.
    """

    def __init__(self, loaded: LoadedModel, prompts: Sequence[Sequence[int]], config: SafeBeam) -> None:
        self.loaded, self.prompts, self.config, self.device = loaded, prompts, config, loaded.device
        spellings = tag_spellings(loaded, config)
        self.limits = [room_after(loaded, prompt, config.max_new_tokens) for prompt in prompts]
        self.queue = deque(sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i)))
        lines, beams = min(len(prompts), max(1, config.rows // config.candidates)), config.beams
        self.trees = BeamTrees(loaded, lines, beams, config.candidates, spellings)
        self.ends = torch.tensor(loaded.end_ids, dtype=torch.long, device=self.device)
        self.stops = loaded.tag_spellings if config.stop_at_tag else ()
        self.active = [-1] * lines  # the prompt of each line; -1: none
        self.steps = [0] * lines  # generated tokens of each; -1: the prompt's last token comes next

        def full(*shape: int, value: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((lines, beams, *shape), value, dtype=dtype, device=self.device)

        self.score = full(value=-torch.inf, dtype=torch.float64)
        self.ended = full(value=False, dtype=torch.bool)
        self.p_tag = full(value=0, dtype=loaded.logit_dtype)
        self.logits = full(loaded.vocabulary, value=0, dtype=loaded.logit_dtype)  # for the token after each beam
        self.history = full(max(self.limits, default=0), value=0, dtype=torch.long)
        self.lost = torch.zeros(lines, dtype=torch.float64, device=self.device)  # by pruning, in log-probability
        self.dropped = torch.zeros(lines, dtype=torch.long, device=self.device)  # steps that dropped the likeliest
        self.results: dict[int, tuple[list[int], Pruning]] = {}

    @torch.inference_mode()
    def run(self) -> list[tuple[list[int], Pruning]]:
        while self.queue or any(prompt >= 0 for prompt in self.active):
            self.admit()
            self.step()
            self.collect()
        return [self.results[prompt] for prompt in range(len(self.prompts))]

    def admit(self) -> None:
        """Put waiting prompts into free lines, or drop free lines when none waits."""
        free = [line for line, prompt in enumerate(self.active) if prompt < 0]
        if free and self.queue:
            filled = free[: len(self.queue)]
            taken = [self.queue.popleft() for _ in filled]
            self.trees.admit(filled, [self.prompts[prompt] for prompt in taken])
            for line, prompt in zip(filled, taken):
                self.active[line], self.steps[line] = prompt, -1
            self.score[filled], self.ended[filled], self.p_tag[filled] = -torch.inf, False, 0
            self.score[filled, 0] = 0
            self.lost[filled], self.dropped[filled] = 0, 0
        elif free:
            kept = [line for line, prompt in enumerate(self.active) if prompt >= 0]
            lines = torch.tensor(kept, device=self.device)
            self.trees.select(lines)
            self.active, self.steps = [self.active[line] for line in kept], [self.steps[line] for line in kept]
            for name in ("score", "ended", "p_tag", "logits", "history", "lost", "dropped"):
                setattr(self, name, getattr(self, name)[lines])

    def step(self) -> None:
        """One step of Algorithm 1 on all lines."""
        config = self.config
        steps = torch.tensor(self.steps, device=self.device).clamp(max=max(self.limits) - 1)  # counters of free lines run on
        entering = [line for line, step in enumerate(self.steps) if step < 0]
        score, parent, token = candidates(self.score, self.logits, self.ended, self.loaded.end_ids, config)
        if entering:
            score[entering], parent[entering] = -torch.inf, 0
            score[entering, 0] = 0
            last = [self.prompts[self.active[line]][-1] for line in entering]
            token[entering, 0] = torch.tensor(last, device=self.device)
        was_ended = self.ended.gather(1, parent)
        history = take(self.history, parent)
        history.scatter_(2, steps.clamp(min=0)[:, None, None].expand(*token.shape, 1), token[..., None])
        now_ended = was_ended | torch.isin(token, self.ends) | self.at_tag(history, steps)
        if entering:
            now_ended[entering] = False

        logits, p_tag = self.trees.extend(parent, token)
        parent_risk = self.p_tag.gather(1, parent)
        ended, risk = {
            "before": (now_ended, parent_risk),
            "after": (was_ended, parent_risk),
            "none": (now_ended, torch.zeros_like(parent_risk)),
        }[config.ended_risk]
        p_tag = torch.where(ended, risk, p_tag)

        kept = survivors(score, p_tag, config)
        first = kept[:, :1]  # the likeliest survivor, since candidates are sorted best first
        self.lost += score[:, 0] - score.gather(1, first)[:, 0]
        self.dropped += first[:, 0] > 0
        self.score, self.ended, self.p_tag = (x.gather(1, kept) for x in (score, now_ended, p_tag))
        self.logits, self.history = take(logits, kept), take(history, kept)
        self.trees.keep(parent, kept, ~self.ended & ~self.score.isinf())
        self.steps = [step + 1 for step in self.steps]

    def at_tag(self, history: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """Whether each text [lines, pool] has just ended with the tag."""
        ends = torch.zeros(history.shape[:2], dtype=torch.bool, device=self.device)
        for spelling in self.stops:
            places = (steps[:, None] + torch.arange(1 - len(spelling), 1, device=self.device)).clamp(min=0)
            last = history.gather(2, places[:, None].expand(-1, history.shape[1], -1))
            same = (last == torch.tensor(spelling, device=self.device)).all(-1)
            ends |= same & (steps >= len(spelling) - 1)[:, None]
        return ends

    def collect(self) -> None:
        """Collect the answers of finished prompts: at full length, or with nothing left to extend."""
        finished = (self.ended | self.score.isinf()).all(1)
        if self.config.drop == 0:  # without pruning nothing can overtake a finished best beam
            finished |= self.ended[:, 0]
        done = []
        for line, stopped in enumerate(finished.tolist()):
            prompt, step = self.active[line], self.steps[line]
            if prompt >= 0 and (stopped or step == self.limits[prompt]):
                ids = self.history[line, 0, :step].tolist()
                cost = Pruning(
                    logp=float(self.score[line, 0]), lost=float(self.lost[line]), dropped=int(self.dropped[line]), steps=step
                )
                self.results[prompt] = (ids, cost)
                self.active[line] = -1
                done.append(line)
        if done:
            self.trees.retire(torch.tensor(done, device=self.device))
            self.score[done], self.ended[done] = -torch.inf, False


def candidates(
    score: torch.Tensor, logits: torch.Tensor, ended: torch.Tensor, end_ids: Sequence[int], config: SafeBeam
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Candidates [lines, pool], best first: score (-inf if there are too few), parent's place among the beams, and token.

    `score` and `ended` are [lines, beams], `logits` [lines, beams, vocabulary]. A finished beam is itself a candidate.
    """
    pool, (lines, beams) = config.candidates, score.shape
    values, tokens = best_first(logits.flatten(0, 1), pool)
    values, tokens = values.view(lines, beams, pool).double(), tokens.view(lines, beams, pool)
    values = values - logits.logsumexp(-1, keepdim=True)
    if config.pool == "beam":
        alone = (~score.isinf()).sum(1) == 1  # the first step: one beam fills the pool
        each = torch.where(alone, pool, pool // beams)[:, None, None]
        values = values.masked_fill(torch.arange(pool, device=values.device) >= each, -torch.inf)
    extended = score[..., None] + values
    stay = torch.full_like(extended, -torch.inf)
    stay[..., 0] = score
    extended = torch.where(ended[..., None], stay, extended)
    # Without an end mark a beam ends only at the tag, and what follows the tag is never read.
    tokens = torch.where(ended[..., None], end_ids[0] if end_ids else 0, tokens)
    scores, flat = best_first(extended.flatten(1), pool)
    return scores, flat // pool, tokens.flatten(1).gather(1, flat)


def best_first(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` highest scores of each line [lines, n] and their places, best first. Equal scores are sorted by place, and
    lines shorter than `count` are padded with -inf.

    `torch.topk` alone would leave the choice among equal scores to the device.
    """
    if scores.shape[1] <= count:
        scores = torch.nn.functional.pad(scores, (0, count + 1 - scores.shape[1]), value=-torch.inf)
    values, places = scores.topk(count + 1, dim=1)
    least = values[:, count - 1 : count]
    if not bool((least == values[:, count:]).any()):  # the choice is unique; only the order of equal scores is open
        places, order = places[:, :count].sort(dim=1)
        values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
        return values, places.gather(1, order)
    above, equal = scores > least, scores == least
    room = count - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1) <= room))
    places = chosen.nonzero()[:, 1].view(-1, count)
    values, order = scores.gather(1, places).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, order)


def survivors(score: torch.Tensor, p_tag: torch.Tensor, config: SafeBeam) -> torch.Tensor:
    """Places [lines, beams] of the candidates [lines, pool] that survive pruning, best first.

    If fewer survive than there are beams, the rest are places with a score of -inf.
    """
    filled = ~score.isinf()
    drops = (config.drop * filled.sum(1, keepdim=True) + 1e-9).floor()
    # Highest P(tag) first, and among equals the lowest score: a stable sort of the reversed line.
    risk = torch.where(filled, p_tag, -1.0).flip(1)
    order = risk.sort(dim=1, descending=True, stable=True).indices
    risk_rank = order.argsort(dim=1).flip(1)
    kept = filled & (risk_rank >= drops)
    # Places without a score come before dropped candidates, so that these do not return if survivors are too few.
    group = torch.where(kept, 0, torch.where(filled, 2, 1))
    return group.sort(dim=1, stable=True).indices[:, : config.beams]


def take(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """values[line, places[line, i]] for values [lines, n, ...] and places [lines, m]."""
    return values[torch.arange(len(values), device=values.device)[:, None], places]


class BeamTrees:
    """`rows` prompts with `beams` beams each, extended by `pool` candidates at a time.

    `ancestors` says for each beam which columns make up its text. A step appends all candidates, each of which attends to its
    parent's text and to itself; then the survivors move to the front of the new columns. Each candidate is followed by probes,
    from which P(tag) is read: all tokens but the last of each of the tag's `spellings`. Spellings of one token need no probes.
    """

    def __init__(self, loaded: LoadedModel, rows: int, beams: int, pool: int, spellings: tuple[tuple[int, ...], ...]) -> None:
        self.beams, self.pool, self.spellings, self.device = beams, pool, spellings, loaded.device
        probes = [
            (token, depth, number)
            for number, spelling in enumerate(spellings)
            for depth, token in enumerate(spelling[:-1], start=1)  # in tokens from the candidate
        ]
        self.probes, self.depths, of = torch.tensor(probes, dtype=torch.long, device=self.device).view(-1, 3).T
        # Bool [probes, probes]: a probe attends to those of its spelling up to itself.
        self.sees = ((of[:, None] == of) & torch.ones(len(of), len(of), dtype=torch.bool, device=self.device)).tril()
        self.step_room = pool * (1 + len(self.probes))
        self.slack = STEPS_OF_SLACK * beams + self.step_room
        self.decoding = Decoding(loaded, rows, self.slack)
        self.used = torch.zeros(rows, dtype=torch.long, device=self.device)  # columns in use
        self.length = torch.zeros(rows, dtype=torch.long, device=self.device)  # tokens of each beam's text
        self.ancestors = torch.zeros(rows, beams, self.slack, dtype=torch.bool, device=self.device)

    def admit(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Make prompts[i], without its last token, the text of all beams of row rows[i]."""
        longest = max(map(len, prompts))
        where = torch.tensor(list(rows), device=self.device)
        self.retire(where)
        if longest + self.slack > self.capacity:
            self.clear(longest + self.slack)
        self.decoding.admit(rows, prompts)
        self.used[where] = self.length[where] = torch.tensor([len(ids) - 1 for ids in prompts], device=self.device)
        columns = torch.arange(self.capacity, device=self.device)
        self.ancestors[where] = (columns < self.used[where][:, None])[:, None]

    @property
    def capacity(self) -> int:
        return self.ancestors.shape[-1]

    def extend(self, parent: torch.Tensor, token: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append candidates: beam parent[row, i] followed by token[row, i], both [rows, pool].

        Returns logits [rows, pool, vocabulary] for the token after each, and P(tag) [rows, pool] after each.
        """
        if int(self.used.max()) + self.step_room > self.capacity:
            self.clear()
        rows, count = len(token), self.pool * len(self.probes)
        width = int(self.used.max()) + self.step_room
        columns = self.used[:, None] + torch.arange(self.step_room, device=self.device)
        mask = self.ancestors.gather(1, parent[..., None].expand(-1, -1, self.capacity))[..., :width]
        mask = mask.scatter(2, columns[:, : self.pool, None], True)
        positions = self.length[:, None].expand(-1, self.pool)
        if count:
            probe_mask = mask[:, :, None].expand(-1, -1, len(self.probes), -1).clone()  # [rows, pool, probes, width]
            own = columns[:, self.pool :].view(rows, self.pool, 1, -1).expand(-1, -1, len(self.probes), -1)
            probe_mask.scatter_(3, own, self.sees.expand(rows, self.pool, -1, -1))
            mask = torch.cat([mask, probe_mask.flatten(1, 2)], 1)
            token = torch.cat([token, self.probes.repeat(rows, self.pool)], 1)
            deeper = (positions[..., None] + self.depths).flatten(1)
            positions = torch.cat([positions, deeper], 1)
        logits = self.decoding.forward(token, positions, columns, mask)
        candidates, probed = logits[:, : self.pool], logits[:, self.pool :]
        return candidates, self.p_tag(candidates, probed.unflatten(1, (self.pool, -1)) if count else probed)

    def p_tag(self, candidates: torch.Tensor, probes: torch.Tensor) -> torch.Tensor:
        """P(tag) [rows, n] from logits after the candidates [rows, n, vocabulary] and the probes [rows, n, p, vocabulary]."""
        total = torch.zeros(candidates.shape[:-1], dtype=candidates.dtype, device=candidates.device)
        place = 0
        for spelling in self.spellings:
            log_p = candidates[..., spelling[0]] - candidates.logsumexp(-1)
            for token in spelling[1:]:
                logits = probes[..., place, :]
                log_p = log_p + logits[..., token] - logits.logsumexp(-1)
                place += 1
            total = total + log_p.exp()
        return total

    def keep(self, parent: torch.Tensor, kept: torch.Tensor, live: torch.Tensor) -> None:
        """Make candidates `kept` [rows, beams] the beams; `parent` [rows, pool] as in `extend`.

        A beam with a false entry in `live` [rows, beams] is not extended any more, and its text is forgotten.
        """
        places = torch.arange(self.beams, device=self.device)
        target = self.used[:, None] + places
        if not torch.equal(kept, places.expand_as(kept)):
            self.decoding.move(self.used[:, None] + kept, target)
        self.ancestors = self.ancestors.gather(1, parent.gather(1, kept)[..., None].expand(-1, -1, self.capacity))
        self.ancestors.scatter_(2, target[..., None], True)
        self.ancestors &= live[..., None]
        self.used = self.used + self.beams
        self.length = self.length + 1

    def clear(self, at_least: int = 0) -> None:
        """Drop the columns that no beam contains. Leaves room for `STEPS_OF_SLACK` steps, and for `at_least` columns in all."""
        needed = self.ancestors.any(1)
        count = needed.sum(1)
        order = needed.int().sort(dim=1, descending=True, stable=True).indices[:, : int(count.max())]
        capacity = max(order.shape[1] + self.slack, at_least)
        self.decoding.compact(order, capacity)
        ancestors = self.ancestors.gather(2, order[:, None].expand(-1, self.beams, -1))
        self.ancestors = torch.nn.functional.pad(ancestors, (0, capacity - order.shape[1]))
        self.used = count

    def retire(self, rows: torch.Tensor) -> None:
        """Forget the texts of these rows, which then are free."""
        self.ancestors[rows], self.used[rows], self.length[rows] = False, 0, 0

    def select(self, rows: torch.Tensor) -> None:
        self.decoding.select(rows)
        self.used, self.length, self.ancestors = self.used[rows], self.length[rows], self.ancestors[rows]


def tag_spellings(loaded: LoadedModel, config: SafeBeam) -> tuple[tuple[int, ...], ...]:
    """The token sequences whose probabilities P(tag) sums: the tag's spellings, or their first tokens.

    Raises UserError if the tokenizer splits the tag and `config.tag` needs it to be one token.
    """
    spellings = loaded.tag_spellings
    if config.tag == "one-token" and loaded.tag_id is None:
        raise UserError(
            f"{loaded.name}: the tokenizer splits {TAG} into {len(spellings[0])} tokens, but SafeBeam needs its "
            "probability as one; make it one entry of the tokenizer, or set safebeam.tag to 'product' or "
            "'first-token', or leave SafeBeam out"
        )
    if config.tag == "first-token":
        return tuple(dict.fromkeys(spelling[:1] for spelling in spellings))
    return spellings
