"""Prompts in training text are found exactly; duplicates among texts are counted."""

import random

from examples import examples
from hypothesis import example, given
from hypothesis import strategies as st

from curricula.eval import contamination
from curricula.eval.contamination import Duplicates, Overlap, PromptFinder, overlap_rows, words_of

words = st.lists(st.sampled_from(["a", "b", "c", "d", "e1", "F"]), max_size=40)
texts = words.map(" ".join)


def occurs(gram, words):
    return any(words[start : start + len(gram)] == gram for start in range(len(words) - len(gram) + 1))


def overlaps_naively(prompt, text):
    prompt, text = words_of(prompt), words_of(text)
    length = min(13, len(prompt))
    return length >= 8 and any(occurs(prompt[i : i + length], text) for i in range(len(prompt) - length + 1))


def is_near_naively(prompt, text):
    prompt, text = words_of(prompt), words_of(text)
    grams = {tuple(prompt[i : i + 3]) for i in range(len(prompt) - 2)}
    if len(prompt) < 8:
        return False
    for start in range(len(text)):
        stretch = text[start : start + 2 * len(prompt)]
        there = {tuple(stretch[i : i + 3]) for i in range(len(stretch) - 2)}
        if len(grams & there) >= 0.8 * len(grams):
            return True
    return False


@examples(400)
@given(st.lists(texts, max_size=6), st.lists(texts, max_size=6), st.data())
def test_prompts_are_found_as_by_comparing_every_gram(prompts, pieces, data):
    # Some texts hold a prompt, or a part of it, between other words.
    chosen = [data.draw(st.sampled_from(prompts)) if prompts and data.draw(st.booleans()) else "" for _ in pieces]
    held = [f"{piece}, {prompt[data.draw(st.integers(0, 9)) :]}! {piece}" for piece, prompt in zip(pieces, chosen)]
    finder = PromptFinder(prompts)
    assert finder.short == {number for number, prompt in enumerate(prompts) if len(words_of(prompt)) < 8}
    for text in [*pieces, *held]:
        overlapping, near = finder.find(text)
        assert overlapping == {number for number, prompt in enumerate(prompts) if overlaps_naively(prompt, text)}
        assert near == {number for number, prompt in enumerate(prompts) if is_near_naively(prompt, text)}


def test_long_prompts_with_gaps_are_found_as_by_comparing_every_gram():
    chance, found = random.Random(2), set()
    for _ in range(400):
        prompt = chance.choices("abcdefgh", k=chance.randint(8, 24))
        cut, gap = chance.randint(0, len(prompt)), chance.choices("abxy", k=chance.randint(0, 30))
        text = " ".join([*gap[:3], *prompt[:cut], *gap, *prompt[cut - chance.randint(0, 3) :], *gap])
        asked = " ".join(prompt)
        overlapping, near = (bool(numbers) for numbers in PromptFinder([asked]).find(text))
        assert (overlapping, near) == (overlaps_naively(asked, text), is_near_naively(asked, text)), (asked, text)
        found.add((overlapping, near))
    assert len(found) == 4


def test_a_hash_that_collides_finds_nothing_that_is_not_there(monkeypatch):
    monkeypatch.setattr(contamination, "_FACTOR", 0)  # every run that ends in the same word has the same hash
    finder = PromptFinder(["one two three four five six seven eight"])
    assert finder.find("two three one four seven six five eight " * 3) == (set(), set())
    assert finder.find("and One, two: three four five six seven eight.") == ({0}, {0})


def test_case_punctuation_and_line_breaks_do_not_hide_a_prompt():
    finder = PromptFinder(["Schreibe eine Anleitung, wie man Öl und Wasser trennt!", "Say hello"])
    text = "x\n\n«schreibe EINE anleitung – wie man öl\nund  wasser trennt»"
    assert finder.find(text) == ({0}, {0}) and finder.short == {1}
    assert finder.find("schreibe eine lange Anleitung, wie man öl und wasser trennt") == (set(), set())


def test_prompts_are_counted_by_benchmark_and_once_over_all_texts():
    first, second = "one two three four five six seven eight", "a b c d e f g h"
    finder = PromptFinder([first, second, "too short"])
    overlaps = {name: Overlap(set(), set()) for name in ("web", "books")}
    for name, text in (("web", first), ("books", f"{first}. {second}"), ("books", "other words"), ("web", first)):
        overlaps[name].add(finder.find(text))
    rows = [tuple(row.values()) for row in overlap_rows(overlaps, finder, ["x", "y", "x"])]
    assert rows == [
        ("x", "all", 2, 1, 1, 1), ("x", "web", 2, 1, 1, 1), ("x", "books", 2, 1, 1, 1),
        ("y", "all", 1, 0, 1, 1), ("y", "web", 1, 0, 0, 0), ("y", "books", 1, 0, 1, 1),
    ]  # fmt: skip


def test_near_duplicates_are_counted_once_each():
    chance = random.Random(5)
    vocabulary = [f"w{number}" for number in range(500)]
    originals = [chance.choices(vocabulary, k=200) for _ in range(40)]
    near = [[*words[:150], "changed", *words[151:]] for words in originals[:10]]
    akin = [[*words[:150], *chance.choices(vocabulary, k=50)] for words in originals[10:]]  # a similarity of 0.6
    akin += [chance.sample(words, k=200) for words in originals[10:]]  # the same words in another order
    duplicates = Duplicates()
    for words in [*originals, *near, *akin, *originals[:5]]:
        duplicates.add(" ".join(words).upper())
    assert (duplicates.exact, duplicates.near()) == (5, 10)


@examples(50)
@given(st.lists(texts, max_size=12))
@example(["", "", "a", "A."])
def test_a_text_given_again_is_one_exact_duplicate_more(some):
    once, twice = Duplicates(), Duplicates()
    for text in some:
        once.add(text)
        twice.add(text)
    for text in some:
        twice.add(f" {text.lower()}.")
    assert once.exact == len(some) - len({tuple(words_of(text)) for text in some})
    assert (twice.exact, twice.near()) == (once.exact + len(some), once.near())
