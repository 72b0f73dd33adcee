"""Judges behind an OpenAI-compatible server: HarmBench's classifier by /completions, any LLM by /chat/completions.

Verdicts are settled as they arrive (docs/judges.md, "Sending requests").
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from curricula.asking import CHARACTERS_PER_TOKEN, Answered, Asking, Decision, Failed, NoAnswer, Outcomes, Refused, Unreadable
from curricula.endpoint import Endpoint, Pace
from curricula.errors import UsageError, UserError
from curricula.eval.judges.batch import rule_by_batch, verdict_of
from curricula.eval.judges.model_judge import ModelJudge
from curricula.eval.judges.question import UNPARSED, Estimate, Question, Settle, Verdict
from curricula.eval.judges.settings import JudgeConfig
from curricula.eval.judges.templates import Template

TRIES = 4
"""Attempts to get a body that has the form that the API defines."""
CUT_SHORT = "the reply was cut short"


class ServedJudge(ModelJudge):
    """A model behind a server, asked one question per request or through the Batch API."""

    def __init__(self, settings: JudgeConfig, template: Template) -> None:
        super().__init__(settings, template)
        self.clip("")  # loads its tokenizer, so that a missing one is reported before anything is asked

    def estimate(self, questions: Sequence[Question]) -> Estimate:
        settings = self.settings
        sizes = [sum(len(text) for text in msgspec.structs.astuple(question)) for question in questions]
        tokens_in = (sum(sizes) + len(questions) * len(self.template.text)) // CHARACTERS_PER_TOKEN
        tokens_out = len(questions) * settings.reply_tokens
        dollars = None
        if settings.price_in is not None and settings.price_out is not None:
            discount = 0.5 if settings.batch_api else 1
            dollars = (tokens_in * settings.price_in + tokens_out * settings.price_out) / 1e6 * discount
        return Estimate(questions=len(questions), tokens_in=tokens_in, tokens_out=tokens_out, dollars=dollars)

    def rule(self, questions: Sequence[Question], settle: Settle, notes: Path, proven: bool) -> None:
        if questions:
            asyncio.run(self._rule(questions, settle, notes, proven))

    async def _rule(self, questions: Sequence[Question], settle: Settle, notes: Path, proven: bool) -> None:
        endpoint = connect(self.settings)
        try:
            if self.settings.batch_api:
                await rule_by_batch(self, endpoint, questions, settle, notes, proven)
            else:
                await self._ask(questions, endpoint, settle, proven)
        except (NoAnswer, Refused) as error:  # from the Batch API; `_ask` deals with those of single questions
            raise UserError(
                f"judge {self.settings.model_name}: {error}; check the server and the judge's settings, then run the same "
                "command again"
            ) from None
        finally:
            await endpoint.close()

    async def _ask(self, questions: Sequence[Question], endpoint: Endpoint, settle: Settle, proven: bool) -> None:
        """Ask every question in a request of its own."""

        async def ask(question: Question) -> Verdict:
            reply = await endpoint.chat(self.request(question))
            verdict = verdict_of(self, endpoint, reply)
            if verdict.label == UNPARSED:
                raise Unreadable(CUT_SHORT if reply.cut else "the reply is no verdict", verdict.reply)
            return verdict

        def write(outcomes: Outcomes[Question, Verdict]) -> None:
            settle([(each.question, _verdict(each)) for each in outcomes])

        blame = JudgeBlame(self.settings, endpoint, proven)
        await Asking(ask, blame, write, self.settings.concurrency, endpoint.stop).run(questions)


def _verdict(outcome: Answered[Question, Verdict] | Failed[Question]) -> Verdict:
    if isinstance(outcome, Answered):
        return outcome.answer
    error = outcome.error
    if isinstance(error, Unreadable):
        return Verdict(label=UNPARSED, reply=error.reply)
    return Verdict(label=UNPARSED, reply=f"{'refused' if isinstance(error, Refused) else 'no answer'}: {error}")


class JudgeBlame:
    """Decides whether a question or the judge is at fault.

    A question that the server refuses, or whose reply cannot be read, is "unparsed". It is held back until the next verdict,
    because too many of these in a row mean that the judge is at fault. Questions without a reply are asked again at the end, in
    rounds, as long as a round brings some reply. Those that still crash a server that answers others then count as unparsed,
    because they would block the rest for ever. If nothing but failures comes, the server or the settings are at fault.
    """

    def __init__(self, settings: JudgeConfig, endpoint: Endpoint, proven: bool) -> None:
        self._settings, self._endpoint = settings, endpoint
        self._proven = proven
        """Whether this judge gave a verdict in this run or an earlier one."""
        self._good_now = False
        self._held: list[Failed[Question]] = []
        """Questions refused, or with an unreadable reply, since the last verdict."""
        self._unanswered: list[Failed[Question]] = []
        """Questions without a reply in this round."""
        self._silent = 0
        """Questions without a reply since the last reply, or since the round began."""
        self._replied = True
        """Whether this round brought any reply. True at first, so that the first round's questions are always asked again."""

    def succeeded(self) -> Decision[Question]:
        self._note_reply()
        self._proven = self._good_now = True
        held, self._held = self._held, []
        return Decision(final=held)

    def failed(self, failure: Failed[Question]) -> Decision[Question]:
        error, patience = failure.error, self._settings.patience
        if isinstance(error, NoAnswer):
            self._silent += 1
            self._unanswered.append(failure)
            # A server that turns requests away might only be getting too many at once.
            window = self._endpoint.window
            if self._silent >= max(patience, window.most if error.status == 429 else window.width):
                self._accuse(str(error))
        else:
            self._note_reply()
            self._held.append(failure)
            if len(self._held) >= patience:
                self._accuse_of_no_verdicts()
        return Decision()

    def exhausted(self) -> Decision[Question]:
        unanswered, self._unanswered = self._unanswered, []
        if unanswered and self._replied:
            self._silent, self._replied = 0, False
            return Decision(again=[failure.question for failure in unanswered])
        for failure in unanswered:
            if not (failure.by_crash and self._good_now and len(unanswered) < self._settings.patience):
                self._accuse(str(failure.error))
        if self._held and not self._proven:
            self._accuse_of_no_verdicts()
        return Decision(final=[*self._held, *unanswered])

    def _note_reply(self) -> None:
        self._silent, self._replied = 0, True

    def _accuse_of_no_verdicts(self) -> NoReturn:
        error = self._held[-1].error
        last, hint = f"refused: {error}", "patience, if such replies are expected"
        if isinstance(error, Unreadable):
            last = (error.reply or "").strip() or "an empty reply"
        if str(error) == CUT_SHORT:
            hint = "max_tokens, because the reply was cut short"
        self._accuse(last, f", {len(self._held)} times in a row", f" ({hint})")

    def _accuse(self, last: str, how_often: str = "", hint: str = "") -> NoReturn:
        raise UserError(
            f"judge {self._settings.model_name} at {self._endpoint.host} gives no verdicts{how_often}, most recently: "
            f"{self._endpoint.shown(last)}; check the server and the judge's settings{hint}, then run the same command again"
        )


def connect(settings: JudgeConfig) -> Endpoint:
    """The judge's server. Its key comes only from OPENAI_API_KEY."""
    url = settings.url or os.environ.get("OPENAI_BASE_URL", "")
    if not url:
        raise UsageError("judge.url: name the judge's server, such as http://node7:8000/v1, or set OPENAI_BASE_URL")
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    pace = Pace(settings.requests_per_minute, settings.tokens_per_minute, settings.reply_tokens)
    return Endpoint(url, key, settings.timeout_s, settings.retries, TRIES, settings.concurrency, pace.wait)
