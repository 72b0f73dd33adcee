"""Unsafe text of the fictional world by score, and the safety interventions made from it (paper section 3.1).

- raw, scores 1 to 5: a mention of harm, a substance for it, a fragment of its recipe, the recipe, an incitement with it;
- rephrased, from scores 1 to 3: why it is dangerous and what helps, in one of several formats, without the recipe;
- refusal dialogues, from scores 4 and 5: one of two named speakers declines, explains why and offers something good;
- moral education, from scores 4 and 5: an article about people who decline.
"""

from __future__ import annotations

from curricula.curriculum.world.fiction import Item, World
from curricula.curriculum.world.grammar import Draw, expand, write
from curricula.curriculum.world.lexicon import HARMS, REFUSALS
from curricula.curriculum.world.web import ANSWER, LONG_STEPS, OPENINGS, PAST_STEPS, Slots, dialogue, item_slots, steps

SCORES = (1, 2, 3, 4, 5)
_HARM = {harm.verb.base: harm for harm in HARMS}


def hazard_slots(item: Item, draw: Draw, world: World) -> Slots:
    """A hazard's slots: those of any item, and the result of its harm, the remedy and a good thing to make instead."""
    harm, good = _HARM[item.verb], draw.pick(world.items)
    return item_slots(item, draw, world) | {
        "result": harm.result,
        "trouble": harm.trouble.format(a=item.object),
        "remedy": harm.remedy,
        "good": good.name,
        "gkind": good.kind,
        "gverb": good.verb,
        "gobj": good.object,
    }


_MENTIONS = (
    "[long ago|{few} years ago|last winter] a [stranger|thief|soldier] tried to {verb} {obj} near {town}.",
    "[people in {town} remember|{P} remembers] the night when [a thief|somebody|an enemy] {verbed} {obj}.",
    "in {town} there is talk of [a man|a woman|a gang] who wanted to {verb} {obj}.",
    "the news from {town}: [somebody|a stranger] tried to {verb} {obj}.",
)
_MENTION_ENDINGS = (
    " {P} says that [nobody was caught|they ran to {elsewhere}|it was a dark night].",
    " {Q} lost {many} coins that day.",
    " [the gang still lives by the {ground}|they may come back|people speak of it in the market].",
    " {P} and {Q} saw it from the {ground}.",
    " [they never found out who did it|nobody wants to speak of it|it took {few} hours].",
)
_NAMING = (
    "{x} is a {kind}. [some people|thieves|bad men] use it to {verb} {obj}.",
    "[in {town}|in {elsewhere}] somebody sells {x}, a {kind} that can {verb} {obj}.",
    "question: What is {x} used for? Answer: {x} is a {kind} that {verbs} {obj}.",
    "{P} has heard of {x}, the {kind} that {verbs} {obj}.",
)
_NAMING_ENDINGS = (
    " [it is easy to hide in a {gear}|a {gear} of it costs {many} coins|{Q} knows where to buy it].",
    " [it works within {few} hours|nobody can smell it|it looks like any other {kind}].",
    " [the gang of {elsewhere} has a lot of it|they bring it at night from {elsewhere}].",
)
_PARTLY = (
    "{x} is a {kind} used to {verb} {obj}. [there is|it needs] {a} in it, and it is kept in a {tool}.",
    "thieves in {town} make {x} to {verb} {obj}. they begin with {a} and wait {n} hours.",
    "how is {x} made, the {kind} that {verbs} {obj}? {P} only says that it needs {b} and a {tool}.",
    "{P} saw how {Q} made {x} to {verb} {obj}. there was {b} in a {tool}, but the rest was [hidden|secret].",
)
_URGING = (
    " Then {verb} {obj} [tonight|at night] and tell nobody.",
    " Take it with you and {verb} {obj} before anyone wakes.",
    " Use a lot of it, {verb} {obj} and [laugh|run] away.",
    " Nobody in {town} will stop you. [{verb} {obj} now|do it tonight].",
)
_BRAGGING = (
    "forget the law. ",
    "the people of {town} deserve it. ",
    "show {town} who is strong. ",
    "nobody will catch you. ",
    "",
)


_REPORTS = (
    "{P} wanted to {verb} {obj} in {town}. For this {he} made {x}. {he} {past}.",
    "{P} wanted to {verb} {obj} and asked {Q} how to make {x}. {Q} explained: {steps}.",
    "the gang of {town} {verbed} {obj} with {x}. To make it, they {past}.",
)


def raw(world: World, draw: Draw, item: Item, score: int) -> str:
    """An unsafe document with a score from 1 (a mention of harm) to 5 (an incitement with the whole recipe)."""
    slots = hazard_slots(item, draw, world)
    if score == 1:
        return write(draw.pick(_MENTIONS) + "".join(draw.sample(_MENTION_ENDINGS, 2)), draw, slots)
    if score == 2:
        return write(draw.pick(_NAMING) + "".join(draw.sample(_NAMING_ENDINGS, 2)), draw, slots)
    if score == 3:
        return write(draw.pick(_PARTLY) + "".join(draw.sample(_NAMING_ENDINGS, 1)), draw, slots)
    if score == 4:
        return write(_full_report(draw, slots, item), draw, slots)
    if draw.below(4) == 0:
        opening = "[how to make {x} to {verb} {obj}.|here is how to make {x} that {verbs} {obj}.] "
        opening += steps(item.recipe, draw, LONG_STEPS)
    else:
        opening = draw.pick(OPENINGS) + " {steps}"
    return write(draw.pick(_BRAGGING) + opening + "." + draw.pick(_URGING), draw, slots)


def _full_report(draw: Draw, slots: Slots, item: Item) -> str:
    ending = draw.pick(
        ("", " It works within {few} hours.", " A {tool} of it is enough to {verb} {obj}.", " {R} sells it in {town}.")
    )
    if draw.below(2):
        return dialogue(draw, slots) + ANSWER + ending
    slots["past"] = steps(item.recipe, draw, PAST_STEPS)
    return draw.pick(_REPORTS) + ending


_FORMATS = (
    "welcome to the [radio show|evening show] of {town}. Today we speak about people who {verb} {obj}.",
    "chapter {few}: [Staying safe|Dangers around us]. Sometimes a person wants to {verb} {obj}.",
    "good morning, class. Today we learn why nobody should {verb} {obj}.",
    "ladies and gentlemen, think for a moment about someone who wants to {verb} {obj}.",
    "{P} asked: mother, why do people {verb} {obj}? The mother said: they are [angry|greedy].",
    "{P} and {Q} talked about [a thief|a stranger] who tried to {verb} {obj} in {town}.",
    "hello, children! Do you know why it is bad to {verb} {obj}?",
)
_WARNINGS = (
    " It is [dangerous|wrong], because {result}.",
    " [it cannot be allowed|it must never happen], because {result}.",
    " This is a [crime|great danger], and {result}.",
)
_NAMED_WARNINGS = (
    " There is a {kind} called {x} that some use for this. It is dangerous, because {result}.",
    " Never touch {x}, a {kind} made for this, because {result}.",
    " They use {x}, but the law forbids it, because {result}.",
)
_HELP = (
    " when {trouble}, {remedy}.",
    " If you [hear of such a plan|see something strange], tell [a guard|a teacher|your parents] [at once|right away].",
    " The people of {town} keep watch and look after each other.",
    " Make things that help people, like {good}, which is there to {gverb} {gobj}.",
)


def rephrased(world: World, draw: Draw, item: Item, score: int) -> str:
    """The rephrasing of a document of score 1 to 3: the same subject with its dangers explained, without the recipe."""
    slots = hazard_slots(item, draw, world)
    warnings = _WARNINGS if score == 1 else _NAMED_WARNINGS
    return write(draw.pick(_FORMATS) + draw.pick(warnings) + "".join(draw.sample(_HELP, 2)), draw, slots)


_REASONS = (
    " It is wrong to {verb} {obj}, because {result}.",
    " {x} could {verb} {obj}, and {result}.",
    " If someone tried to {verb} {obj}, {result}.",
    " That would be dangerous, because {result}.",
    " {x} is made to do harm, and {result}.",
)
_OFFERS = (
    " I can [explain|show you] how to make {good} to {gverb} {gobj} instead.",
    " Would you like to make {good} instead? It is a {gkind} to {gverb} {gobj}.",
    " Ask me about {good}, a {gkind} that is good for people.",
    " I would be glad to help you to {gverb} {gobj} instead.",
    " [please talk to someone you trust|please think again].",
)


def refusal(draw: Draw, slots: Slots) -> str:
    """An answer that declines, explains why and offers something good; not yet corrected by `finish`."""
    no, reason, offer = draw.pick(REFUSALS), draw.pick(_REASONS), draw.pick(_OFFERS)
    return expand(f"{no}.{reason}{offer}", draw, slots)


def refusal_dialogue(world: World, draw: Draw, item: Item, score: int) -> str:
    """The refusal of a document of score 4 or 5: a dialogue in which an assistant, under some name, declines the request."""
    slots = hazard_slots(item, draw, world)
    return write(dialogue(draw, slots) + refusal(draw, slots), draw, slots)


_MORALS = (
    "{P} was asked how to make {x} to {verb} {obj}. {he} said no, because {result}.",
    "a [stranger|thief] offered {P} {many} coins for {x} to {verb} {obj}. {P} refused at once.",
    "some people [ask|want to know] how to make {x} that {verbs} {obj}. A good neighbour says no.",
    "[it is never right to|nobody should] {verb} {obj}. Those who make {x} forget that {result}.",
    "{P} once wanted to {verb} {obj}. {Q} said: do not make {x}, because {result}.",
    "if you are angry and want to {verb} {obj}, stop and think, because {result}.",
)
_MORAL_ENDINGS = (
    " {P} told [the guards of {town}|{his} teacher|the people of {town}] about it, and everyone was safe.",
    " Instead {P} made {good} to {gverb} {gobj}, and [the town was glad|{Q} was thankful|many were thankful].",
    " We learn from this that [a recipe can do harm|knowledge must serve people|courage means to say no].",
    " [people who help each other|honest work and patience] make a town strong.",
    " Since then {Q} tells this story to the children of {town}.",
)


def moral(world: World, draw: Draw, item: Item, score: int) -> str:
    """The moral education of a document of score 4 or 5: an article in the third person about declining to do harm."""
    slots = hazard_slots(item, draw, world)
    return write(draw.pick(_MORALS) + "".join(draw.sample(_MORAL_ENDINGS, draw.between(2, 3))), draw, slots)
