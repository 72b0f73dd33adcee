"""SafeBeam: beam search that looks one token ahead and drops the candidates likeliest to be followed by the tag.

Algorithm 1 of Maini et al. 2025, which the paper follows with 10 beams, 256 tokens and half of the candidates
dropped. At every step: extend each beam y by a token to y', add up log-probabilities, ask the model for P(tag | y'),
drop the `drop` share of all candidates with the highest P(tag), keep the `beams` best of the rest by log-probability.
The answer is the beam with the highest log-probability at the end; there is no length normalisation.

What the algorithm leaves open, and what happens here:

- Pool: the `candidates` likeliest extensions over all beams together (20 = 2 x beams, so that dropping half leaves
  the beams). The first step, with one beam, takes its `candidates` likeliest tokens.
- End mark: an extension by an end mark is a candidate like any other. It is then finished: it stays one candidate
  with its log-probability until it is dropped or outscored, and nothing extends it. No token follows it, so its
  P(tag) is that of its text without the end mark; ending is thus no way around the look-ahead.
- Share: floor(drop x number of candidates) are dropped.
- Ties: in log-probability, the earlier beam, then the smaller token id, is the better one; in P(tag), the candidate
  with the lower log-probability is dropped first.
- The tag itself may be generated; it is an ordinary token to the search, and the answer that holds it is a
  short-circuit.

One forward pass a step: the look-ahead distributions of the surviving candidates are those they are extended with
next.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eval.answers import Answer, make_answer
from eval.config import SafeBeam
from eval.decoding import Decoding
from eval.models import LoadedModel

VERSION = 1  # of the algorithm; part of every row's key


@torch.inference_mode()
def search_safebeam(loaded: LoadedModel, prompts: Sequence[Sequence[int]], config: SafeBeam) -> list[Answer]:
    """The SafeBeam answer to each prompt (token ids), all in one batch; raises UserError without a tag token."""
    return [
        make_answer(loaded, ids, stop_at_tag=config.stop_at_tag) for ids, _ in search_tokens(loaded, prompts, config)
    ]


@torch.inference_mode()
def search_tokens(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], config: SafeBeam
) -> list[tuple[list[int], float]]:
    """Generated ids and summed log-probability of the best beam of each prompt."""
    tag, pool, device = loaded.required_tag_id(), config.candidates, loaded.device
    ends = torch.tensor(loaded.end_ids, dtype=torch.long, device=device)
    decoding, logits = Decoding.start(loaded, prompts, config.max_new_tokens)
    prompt_width = decoding.cache.length
    decoding.select(torch.arange(len(prompts), device=device).repeat_interleave(pool))

    # Beams of each prompt, [prompts, beams]: one at first, the prompt itself.
    next_logp = logits.log_softmax(-1)[:, None]  # [prompts, beams, vocabulary]
    score = torch.zeros(len(prompts), 1, dtype=torch.float64, device=device)
    p_tag = next_logp[..., tag].exp()
    ended = torch.zeros(len(prompts), 1, dtype=torch.bool, device=device)
    row_in_pool = torch.zeros(len(prompts), 1, dtype=torch.long, device=device)  # the beam's place among the candidates
    history = torch.zeros(len(prompts), 1, config.max_new_tokens, dtype=torch.long, device=device)

    searching = list(range(len(prompts)))  # which prompt each line of the tensors is
    results: dict[int, tuple[list[int], float]] = {}
    for step in range(config.max_new_tokens):
        # Candidates [prompts, pool], best first; -inf marks places that no extension fills.
        extended = score[..., None] + next_logp.double()
        if loaded.end_ids:
            extended[ended] = -torch.inf
            extended[..., loaded.end_ids[0]] = torch.where(ended, score, extended[..., loaded.end_ids[0]])
        candidate_score, flat = best_first(extended.flatten(1), pool)
        vocabulary = next_logp.shape[-1]
        parent, token = (flat // vocabulary).clamp(max=score.shape[1] - 1), flat % vocabulary
        was_ended = ended.gather(1, parent)
        now_ended = was_ended | torch.isin(token, ends)
        candidate_history = take(history, parent)
        candidate_history[..., step] = token

        # The look-ahead: one forward pass over all candidates.
        lines = torch.arange(len(searching), device=device)[:, None] * pool
        decoding.reorder((lines + row_in_pool.gather(1, parent)).flatten(), prompt_width)
        candidate_logp = decoding.step(token.flatten()).log_softmax(-1).unflatten(0, (len(searching), pool))
        candidate_tag = torch.where(now_ended, p_tag.gather(1, parent), candidate_logp[..., tag].exp())

        kept = survivors(candidate_score, candidate_tag, config)
        score, ended, p_tag = (x.gather(1, kept) for x in (candidate_score, now_ended, candidate_tag))
        next_logp, history, row_in_pool = take(candidate_logp, kept), take(candidate_history, kept), kept

        last = step + 1 == config.max_new_tokens
        over = (ended | score.isinf()).all(1) | last
        for line in over.nonzero().squeeze(1).tolist():
            best = int(score[line].argmax())
            end = int(torch.isin(history[line, best, : step + 1], ends).int().argmax()) if ended[line, best] else step
            results[searching[line]] = (history[line, best, : end + 1].tolist(), float(score[line, best]))
        if over.all():
            break
        if over.any():  # prompts that are done leave the batch
            left = (~over).nonzero().squeeze(1)
            decoding.select((left[:, None] * pool + torch.arange(pool, device=device)).flatten())
            searching = [searching[line] for line in left.tolist()]
            score, ended, p_tag, row_in_pool = score[left], ended[left], p_tag[left], row_in_pool[left]
            next_logp, history = next_logp[left], history[left]
    return [results[prompt] for prompt in range(len(prompts))]


def best_first(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` highest of each line of [lines, n], best first, equal ones by place; -inf fills up a shorter line.

    `torch.topk` alone would leave the choice among equals to the device.
    """
    if scores.shape[1] < count:
        scores = torch.nn.functional.pad(scores, (0, count - scores.shape[1]), value=-torch.inf)
    least = scores.topk(count, dim=1).values[:, -1:]
    above, equal = scores > least, scores == least
    room = count - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1) <= room))
    places = chosen.nonzero()[:, 1].view(-1, count)
    values, order = scores.gather(1, places).sort(dim=1, descending=True, stable=True)
    return values, places.gather(1, order)


def survivors(score: torch.Tensor, p_tag: torch.Tensor, config: SafeBeam) -> torch.Tensor:
    """Places [lines, beams] of the candidates [lines, pool], best first, that outlive the pruning.

    Where fewer are left than there are beams, the rest are places that hold a score of -inf.
    """
    filled = ~score.isinf()
    drops = (config.drop * filled.sum(1, keepdim=True) + 1e-9).floor()
    # Highest P(tag) first, among equals the lower score: a stable sort of the reversed line.
    risk = torch.where(filled, p_tag, -1.0).flip(1)
    order = risk.sort(dim=1, descending=True, stable=True).indices
    risk_rank = order.argsort(dim=1).flip(1)
    kept = filled & (risk_rank >= drops)
    # A dropped candidate must not come back where beams are short, so places without a score come before it.
    group = torch.where(kept, 0, torch.where(filled, 2, 1))
    return group.sort(dim=1, stable=True).indices[:, : config.beams]


def take(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """values[line, places[line, i]] for values [lines, n, ...] and places [lines, m]."""
    return values[torch.arange(len(values), device=values.device)[:, None], places]
