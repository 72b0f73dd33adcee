"""Algorithm 1 of Maini et al. to the letter, for comparison: plain Python, every distribution from the whole text."""

from __future__ import annotations

import math

import torch

from curricula.eval.decoding.settings import SafeBeam
from curricula.eval.models import LoadedModel

Beam = tuple[list[int], float]


@torch.inference_mode()
def brute_force(loaded: LoadedModel, prompt: list[int], config: SafeBeam, lost: list[float] | None = None) -> list[list[Beam]]:
    """The beams (generated ids, summed log-probability), best first, after each step, until nothing can be extended.

    `lost` receives, for each step, how far the likeliest candidate lay above the likeliest survivor.
    """

    def log_probs(ids):
        logits = loaded.model(torch.tensor([ids])).logits[0, -1]
        return logits.to(loaded.logit_dtype).log_softmax(-1).double().tolist()

    def risk(ids, logp):
        if config.tag == "first-token":
            return sum(math.exp(logp[token]) for token in {spelling[0] for spelling in loaded.tag_spellings})
        total = 0.0
        for spelling in loaded.tag_spellings:
            log_p = logp[spelling[0]]
            for place in range(1, len(spelling)):
                log_p += log_probs([*ids, *spelling[:place]])[spelling[place]]
            total += math.exp(log_p)
        return total

    def finished(text):
        tags = loaded.tag_spellings if config.stop_at_tag else ()
        return text[-1] in loaded.end_ids or any(tuple(text[-len(tag) :]) == tag for tag in tags)

    first = log_probs(prompt)
    beams = [([], 0.0, risk(prompt, first), False, first)]  # text, score, P(tag), ended, next log-probabilities
    steps = []
    for _ in range(config.max_new_tokens):
        each = config.candidates
        if config.pool == "beam" and len(beams) > 1:
            each = config.candidates // config.beams
        pool = []
        for place, (text, score, p_tag, ended, logp) in enumerate(beams):
            if ended:
                pool.append((-score, place, -1, text, p_tag, True))
            else:
                own = [(-(score + x), place, t, [*text, t], p_tag, False) for t, x in enumerate(logp)]
                pool += sorted(own)[:each]
        looked = []
        for rank, (minus, _, _, text, p_parent, was_ended) in enumerate(sorted(pool)[: config.candidates]):
            logp = None if was_ended else log_probs(prompt + text)
            ended = was_ended or finished(text)
            if not ended:
                p_tag = risk(prompt + text, logp)
            elif config.ended_risk == "before" or was_ended:
                p_tag = p_parent
            else:
                p_tag = 0.0 if config.ended_risk == "none" else risk(prompt + text, logp)
            looked.append((text, -minus, p_tag, ended, logp, rank))
        dropped = sorted(looked, key=lambda c: (-c[2], -c[5]))[: math.floor(config.drop * len(looked) + 1e-9)]
        beams = [c[:5] for c in looked if c not in dropped][: config.beams]
        if lost is not None:
            lost.append(looked[0][1] - beams[0][1])
        steps.append([(text, score) for text, score, *_ in beams])
        if all(ended for _, _, _, ended, _ in beams):
            break
    return steps
