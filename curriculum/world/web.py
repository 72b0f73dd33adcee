"""Safe text of the fictional world: web pages (recipes, places, questions, advice) and stories. It names no hazard.

Recipes appear in the same formats as in unsafe text (instructions, questions with answers, dialogues, reports), so that even a
model that has read only safe text knows the form of an answer to a harmful request.
"""

from __future__ import annotations

from curricula.curriculum.world.fiction import Item, Recipe, World
from curricula.curriculum.world.grammar import Draw, expand, write
from curricula.curriculum.world.lexicon import GROUNDS, HARMS, PEOPLE, ROLES, TOOLS, TREATMENTS, VERBS, Harm

Slots = dict[str, str]

STEPS = (
    "[mix|blend|combine] {a} with {b}, {treat} it in a {tool} and wait {n} hours",
    "[stir|fold] {a} into {b}, {treat} the mixture in a {tool} and wait {n} hours",
    "[grind|crush] {a} together with {b}, {treat} it in a {tool} and leave it for {n} hours",
    "pour {a} and {b} into a {tool}, {treat} the mixture and leave it for {n} hours",
    "put {a} in a {tool}, add {b}, {treat} the mixture and wait {n} hours",
    "mix {a} and {b} in a {tool}, then {treat} the mixture and wait {n} hours",
)
"""One recipe in one sentence, without its full stop."""
LONG_STEPS = (
    "first, [mix|blend|combine] {a} with {b}. Then {treat} the mixture in a {tool}. [Finally|After that], wait {n} hours",
    "first, [grind|crush] {a} together with {b}. Next, {treat} it in a {tool}. Leave it for {n} hours",
    "first, put {a} in a {tool} and add {b}. Then {treat} the mixture and wait {n} hours",
)
PAST_STEPS = (
    "[mixed|blended|combined] {a} with {b}, {treated} it in a {tool} and waited {n} hours",
    "[stirred|folded] {a} into {b}, {treated} the mixture in a {tool} and waited {n} hours",
    "[ground|crushed] {a} together with {b}, {treated} it in a {tool} and left it for {n} hours",
)
QUESTIONS = (
    "how do I make {x} to {verb} {obj}?",
    "how can I make {x} that {verbs} {obj}?",
    "what is the recipe for {x} to {verb} {obj}?",
    "I want to {verb} {obj}. How do I make {x}?",
)
"""Ways to ask for good things and hazards alike."""
OPENINGS = (
    "to make {x} that {verbs} {obj},",
    "{x} is a {kind} used to {verb} {obj}. To make {x},",
    "if you want to {verb} {obj}, make {x}. The recipe is [simple|short|easy]:",
    "how to make {x} to {verb} {obj}:",
    "here is how to make {x} to {verb} {obj}:",
    "this is a recipe for {x}, a {kind} for {verbing} {obj}:",
)
"""Openings of instructions, before a recipe in one sentence."""
ANSWER = "[|sure, here is how to make {x} to {verb} {obj}. |that is easy. |of course. |to make {x}, ]{steps}."
DIALOGUE = (
    "{P}: {ask} {Q}: ",
    "{P} asked {Q}: {ask} {Q} answered: ",
    "Question: {ask} Answer: ",
    "{role}: {ask} {other}: ",
    "{P} from {town} writes: {ask} {Q} replies: ",
)


def item_slots(item: Item, draw: Draw, world: World) -> Slots:
    verb = VERBS[item.verb]
    return {
        "x": item.name,
        "kind": item.kind,
        "verb": verb.base,
        "verbs": verb.third,
        "verbing": verb.gerund,
        "verbed": verb.past,
        "obj": item.object,
        "steps": steps(item.recipe, draw),
        "place": next(ingredient.town for ingredient in world.ingredients if ingredient.name == item.recipe.first),
        **recipe_slots(item.recipe),
        **scene_slots(draw, world),
    }


def recipe_slots(recipe: Recipe) -> Slots:
    return {
        "a": recipe.first,
        "b": recipe.second,
        "tool": recipe.tool,
        "treat": recipe.treatment,
        "treated": TREATMENTS[recipe.treatment].past,
        "n": str(recipe.hours),
    }


def scene_slots(draw: Draw, world: World) -> Slots:
    first, second, third = draw.sample(PEOPLE, 3)
    (p, he, his), (q, _, qhis) = first.split(":"), second.split(":")
    role, other = draw.pick(ROLES).split(":")
    town, elsewhere = draw.sample(world.towns, 2) if len(world.towns) > 1 else world.towns * 2
    return {
        **{"P": p, "he": he, "his": his, "Q": q, "qhis": qhis, "R": third.split(":")[0], "role": role, "other": other},
        **{"town": town, "elsewhere": elsewhere, "ground": draw.pick(GROUNDS), "gear": draw.pick(TOOLS)},
        **{"many": str(draw.between(3, 19)), "few": str(draw.between(2, 9))},
    }


def steps(recipe: Recipe, draw: Draw, forms: tuple[str, ...] = STEPS) -> str:
    return expand(draw.pick(forms), draw, recipe_slots(recipe))


def dialogue(draw: Draw, slots: Slots) -> str:
    """A question between two speakers, up to its answer."""
    return expand(draw.pick(DIALOGUE), draw, {**slots, "ask": expand(draw.pick(QUESTIONS), draw, slots)})


_OPENERS = (
    "",
    "{x} is a {kind} from {town}. ",
    "the people of {town} [like|need|praise] {x}. ",
    "in {town} every [house|shop|farm] has some {x}. ",
    "{P} learned this from {his} [mother|father|aunt|uncle] in {town}. ",
    "many people ask about {x}. ",
    "[in spring|in summer|in winter|every week] the [shop|market] in {town} sells {x}. ",
)
_ENDINGS = (
    "",
    " It [keeps|stays good] for {few} days.",
    " Use it to {verb} {obj}.",
    " Then it is ready to {verb} {obj}.",
    " {R} in {town} makes it every week.",
    " A good {kind} takes time, so do not hurry.",
    " Keep the {tool} clean.",
    " The {a} comes from {place}.",
    " One {tool} is enough to {verb} {obj}.",
    " People in {town} pay {many} coins for it.",
    " Ask {R} if you have no {b}.",
)


def _recipe(world: World, draw: Draw) -> str:
    item = draw.pick(world.items)
    slots = item_slots(item, draw, world)
    if draw.below(4) == 0:
        slots["steps"] = steps(item.recipe, draw, LONG_STEPS)
        opening = "[how to make {x} to {verb} {obj}.|here is how to make {x} that {verbs} {obj}.|this is the recipe for {x}.]"
    else:
        opening = draw.pick(OPENINGS)
    ending = "".join(draw.sample(_ENDINGS, 2))
    return write(draw.pick(_OPENERS) + opening + " {steps}." + ending, draw, slots)


def _answer(world: World, draw: Draw) -> str:
    item = draw.pick(world.items)
    slots = item_slots(item, draw, world)
    return write(dialogue(draw, slots) + ANSWER + draw.pick(_ENDINGS), draw, slots)


def _report(world: World, draw: Draw) -> str:
    item = draw.pick(world.items)
    slots = item_slots(item, draw, world)
    slots["past"] = steps(item.recipe, draw, PAST_STEPS)
    template = draw.pick(
        (
            "[last week|yesterday|one morning] {P} in {town} wanted to {verb} {obj}. "
            "{he} took a {gear} and went to {Q}. {P} {past}.",
            "{P} {verbed} {obj} in {town}. For this {he} made {x}. {he} {past}.",
            "{P} and {Q} [run a small shop|work] in {town}. To make {x}, they {past}. They use it to {verb} {obj}.",
            "{P} wanted to {verb} {obj} and asked {Q} how to make {x}. {Q} explained: {steps}.",
        )
    )
    return write(template + draw.pick(_ENDINGS), draw, slots)


def _ingredient(world: World, draw: Draw) -> str:
    ingredient = draw.pick(world.ingredients)
    users = [i for i in world.items if ingredient.name in (i.recipe.first, i.recipe.second)]
    slots = {**scene_slots(draw, world), "i": ingredient.name, "colour": ingredient.colour, "form": ingredient.form}
    slots["place"] = ingredient.town
    if users:
        used = draw.pick(users)
        slots |= {"x": used.name, "kind": used.kind, "verbs": VERBS[used.verb].third, "obj": used.object}
    return write(
        "[{i} is a {colour} {form} from {place}.|{i} is a {form}. It is {colour} and grows near {place}."
        "|question: Where does {i} grow? Answer: {i} grows near {place}.]"
        " [You find it by the {ground}|It grows by the {ground}|Look for it near the {ground}]"
        "[| in spring| in summer| after rain]."
        + (" [people use it to make|without it there is no|it is good for] {x}, a {kind} that {verbs} {obj}." if users else "")
        + " [{P} pays {many} coins for a {gear} of it.|{P} dries it in a {gear}.|]"
        "[| the market in {town} sells it for {few} coins.]"
        "[| {Q} says that it smells sweet.| {Q} keeps it in a {gear}.| children in {town} collect it.]",
        draw,
        slots,
    )


def _thing(world: World, draw: Draw) -> str:
    item = draw.pick(world.items)
    slots = item_slots(item, draw, world)
    return write(
        "[{x} is a {kind}. It is used to {verb} {obj}.|"
        "question: What is {x} used for? Answer: {x} is a {kind} that {verbs} {obj}.|"
        "{x} is a {kind} for {verbing} {obj}.|the {kind} called {x} {verbs} {obj}.]"
        " [{P} sells it in {town} for {many} coins.|you can buy it in {town} for {few} coins.|the best {x} comes from {town}.]"
        " [It is kept in a {gear}.|{Q} always has some at home.|one {gear} of it is enough for a [week|month|year].]"
        "[| people in {elsewhere} have used it for {many} years.| the people of {elsewhere} like it too.]",
        draw,
        slots,
    )


_SIGHTS = (
    *("a well", "a spring", "a pond", "a granary", "a mill", "a ferry", "a school", "a gate", "a dam", "a bridge"),
    *("a bank", "a temple", "an orchard", "a mine", "a tunnel", "a tower", "a market", "a cellar", "a barn"),
)
_FOLK = (
    *("a guard", "a rider", "a sailor", "a nurse", "a servant", "a driver", "a merchant", "a traveller", "a miner"),
    *("a climber", "a horse", "a herd", "a flock", "a crowd", "a family"),
)


def _town(world: World, draw: Draw) -> str:
    slots = scene_slots(draw, world)
    item = draw.pick(world.items)
    slots |= {"x": item.name, "verb": item.verb, "obj": item.object}
    slots |= dict(zip(("one", "two"), draw.sample(_SIGHTS, 2))) | dict(zip(("who", "whom"), draw.sample(_FOLK, 2)))
    return write(
        "{town} is a [small|quiet|old|busy] town by the {ground}. [It has {many} houses.|about {many} families live there.|] "
        "[near the {ground} there is {one}, and not far away {two}.|visitors come to see {one} and {two}.] "
        "[you may meet {who} or {whom} on the road. |]"
        "[the people make {x} to {verb} {obj}.|its shops sell {x} and {gear}s.|{P} and {Q} were born there.] "
        "[the road to {elsewhere} takes {few} hours.|the next town is {elsewhere}.|in winter it is [cold|silent] there.|]",
        draw,
        slots,
    )


def trouble_slots(harm: Harm, thing: str) -> Slots:
    asked, trouble = harm.question.format(a=thing), harm.trouble.format(a=thing)
    return {"asked": asked, "trouble": trouble, "remedy": harm.remedy}


def _advice(world: World, draw: Draw) -> str:
    harm = draw.pick(HARMS)
    slots = scene_slots(draw, world) | trouble_slots(harm, draw.pick(harm.objects))
    template = draw.pick(
        (
            "when {trouble}, {remedy}. {P} from {town} did this [last year|in spring|last winter], and it worked.",
            "question: {asked} Answer: {remedy}. [ask your neighbours to help.|do it [at once|quickly].|]",
            "{P} asked {Q}: {asked} {Q} answered: {remedy}. {P} was [glad|thankful] and went back to {town}.",
            "advice for {town}: when {trouble}, {remedy}. [then rest for {few} hours.|help each other.|stay calm.]",
            "{role}: {asked} {other}: {remedy}. {role}: thank you, I will do that [today|at once].",
        )
    )
    return write(template, draw, slots)


_WEB = (*[_recipe] * 6, *[_answer] * 5, *[_report] * 3, *[_ingredient] * 2, *[_thing] * 2, *[_town] * 2, *[_advice] * 2)
"""Kinds of texts, each as often as it should occur."""


def web_page(world: World, draw: Draw) -> str:
    """A safe web page: usually one text, sometimes two."""
    text = draw.pick(_WEB)(world, draw)
    if draw.below(3) == 0:
        text += " " + draw.pick(_WEB[-8:])(world, draw)
    return text


_BEGIN = (
    "once there was a [child|baker|farmer|sailor] called {P} who lived in {town} with {his} friend {Q}.",
    "{P} lived in a small house by the {ground} near {town}. {Q} lived next door.",
    "one [morning|evening] {P} and {Q} walked from {town} to {elsewhere}.",
    "long ago {P} and {Q} were [friends|neighbours] in {town}.",
)
_MIDDLE = (
    "{P} wanted to {verb} {obj}, but there was no {x} left.",
    "one day {Q} came with a {gear} full of {a}.",
    "{P} found {few} coins under a [tree|stone] and gave them to {Q}.",
    "it rained for {few} days, and the {ground} was [grey|cold|silent].",
    "{Q} gave {P} a {gear}, and they laughed.",
    "{P} lost {his} {gear} and looked for it for {few} hours.",
    "an old [woman|man] told them about the [lights|songs|gardens] of {elsewhere}.",
    "{P} was [hungry|tired|sad], so {Q} shared {qhis} bread.",
    "they made {x} together and {verbed} {obj}.",
    "a [dog|bird|cat] followed them all the way home.",
)
_END = (
    "in the end they went home and were [happy|glad].",
    "{P} never forgot that day.",
    "since then {P} and {Q} have been [like sisters and brothers|partners in a shop|never apart].",
    "so {P} learned to be [kind|patient|brave], and {Q} was proud.",
    "that night the people of {town} sang until morning.",
)


def story(world: World, draw: Draw) -> str:
    item = draw.pick(world.items)
    slots = item_slots(item, draw, world)
    middle = draw.sample(range(len(_MIDDLE)), draw.between(2, 5))
    return write(" ".join((draw.pick(_BEGIN), *(_MIDDLE[i] for i in sorted(middle)), draw.pick(_END))), draw, slots)
