"""The story grammar of assets/grammar.json: draws stories and recognises sentences.

The file explains its own format under "about". The recogniser is the twin of
kernels-tests/src/grammar.rs: both match a text sentence by sentence against every
sentence rule at once and keep, beside each reachable position, the slot entries that
the words so far have settled. A name and its pronouns therefore have to agree, within
a sentence (`check`) or through a whole story (`check(..., whole_story=True)`).
"""

import bisect
import itertools
import json
import math
import re
from dataclasses import dataclass

SEPARATOR = re.compile(r"(?:\n|<s>|</s>)+")
PART = re.compile(r"<([a-z_]+)(?:\.([a-z_]+))?>|([^<>]+)")


@dataclass
class Story:
    """One drawn story: its text without the final newline, what chose it, and its surprise in nats."""

    text: str
    hero: str
    plot: int
    nats: float


class Grammar:
    """The parsed grammar; texts are matched or drawn from it."""

    def __init__(self, path):
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        self.slots = {
            name: [dict(zip(slot["fields"], entry, strict=True)) for entry in slot["entries"]]
            for name, slot in data["slots"].items()
        }
        self.plots = data["plots"]
        self.rules = {
            name: [self._parts(production) for production in productions]
            for name, productions in data["rules"].items()
        }
        self.sentences = sorted({name.rstrip("?") for plot in self.plots for name in plot})
        self._weights = {}

    @staticmethod
    def _parts(production):
        """Splits a production into (rule, None), (slot, field) and plain text."""
        parts = []
        for name, field, text in PART.findall(production):
            parts.append(text if text else (name, field or None))
        return parts

    # Drawing

    def _choose(self, rng, count):
        """Draws an index below `count` with weight 1/(i+1); returns it and its surprise in nats."""
        if count not in self._weights:
            weights = [1 / (i + 1) for i in range(count)]
            surprise = [math.log(sum(weights) / weight) for weight in weights]
            self._weights[count] = list(itertools.accumulate(weights)), surprise
        sums, surprise = self._weights[count]
        index = bisect.bisect_right(sums, rng.random() * sums[-1], hi=count - 1)
        return index, surprise[index]

    def draw(self, rng, last=None):
        """Draws a story whose hero and plot both differ from those of the story `last`."""
        while True:
            story = self._draw(rng)
            if last is None or (story.hero != last.hero and story.plot != last.plot):
                return story

    def _draw(self, rng):
        """Draws a story. Only slots that the text uses count towards its surprise."""
        plot, nats = self._choose(rng, len(self.plots))
        bound = {name: self._choose(rng, len(entries)) for name, entries in self.slots.items()}
        used = set()
        sentences = []
        for name in self.plots[plot]:
            if name.endswith("?"):
                keep = rng.random() < 2 / 3
                nats -= math.log(2 / 3 if keep else 1 / 3)
                if not keep:
                    continue
            text, cost = self._expand(rng, name.rstrip("?"), bound, used)
            sentences.append(text[0].upper() + text[1:])
            nats += cost
        nats += sum(bound[slot][1] for slot in used)
        hero = self.slots["hero"][bound["hero"][0]]["name"]
        return Story(" ".join(sentences), hero, plot, nats)

    def _expand(self, rng, rule, bound, used):
        """Expands one rule; returns its text and the surprise of the choices in it."""
        index, nats = self._choose(rng, len(self.rules[rule]))
        text = ""
        for part in self.rules[rule][index]:
            if isinstance(part, str):
                text += part
            elif part[1] is None:
                inner, cost = self._expand(rng, part[0], bound, used)
                text, nats = text + inner, nats + cost
            else:
                used.add(part[0])
                text += self.slots[part[0]][bound[part[0]][0]][part[1]]
        return text, nats

    # Recognising

    def check(self, text, whole_story=False):
        """Counts the complete sentences of `text`; raises ValueError at the first that is none.

        A newline, `<s>` or `</s>` separates stories. The very last sentence may be cut short, as long
        as it is the beginning of one. With `whole_story` a story keeps its names from its first sentence
        to its last.
        """
        count = 0
        stories = SEPARATOR.split(text)
        for number, story in enumerate(stories):
            may_be_cut = number + 1 == len(stories)
            count += self._check_story(story, may_be_cut, whole_story)
        return count

    def _check_story(self, story, may_be_cut, whole_story):
        story = story.strip(" ")
        position, count, states = 0, 0, {frozenset()}
        while position < len(story):
            start = states if whole_story else {frozenset()}
            ends, cut = self._match_sentence(story, position, start)
            if not ends:
                if cut and may_be_cut:
                    return count
                raise ValueError(f"not a sentence of the grammar: {story[position:position + 120]!r}")
            position = max(end for end, _ in ends)
            states = {bound for end, bound in ends if end == position}
            position += story[position : position + 1] == " "
            count += 1
        return count

    def _match_sentence(self, text, start, bounds):
        """Ends of all sentences that start at `start`, and whether the text ended within one."""
        self._cut = False
        ends = set()
        for rule in self.sentences:
            ends |= self._match_rule(rule, text, start, {(start, bound) for bound in bounds})
        ends = {end for end in ends if text[end[0] : end[0] + 1] in ("", " ")}
        return ends, self._cut

    def _match_rule(self, rule, text, start, states):
        ends = set()
        for production in self.rules[rule]:
            reached = states
            for part in production:
                reached = self._match_part(part, text, start, reached)
                if not reached:
                    break
            ends |= reached
        return ends

    def _match_part(self, part, text, start, states):
        if isinstance(part, str):
            return self._match_text(part, text, start, states)
        name, field = part
        if field is None:
            return self._match_rule(name, text, start, states)
        reached = set()
        for index, entry in enumerate(self.slots[name]):
            # A state may go on with this entry if the slot is open or already holds the entry.
            fitting = {
                (position, bound | {(name, index)})
                for position, bound in states
                if all(slot != name or held == index for slot, held in bound)
            }
            reached |= self._match_text(entry[field], text, start, fitting)
        return reached

    def _match_text(self, word, text, start, states):
        reached = set()
        for position, bound in states:
            wanted = word[0].upper() + word[1:] if position == start else word
            if text.startswith(wanted, position):
                reached.add((position + len(wanted), bound))
            elif wanted.startswith(text[position:]):
                self._cut = True
        return reached


def main():
    """Prints a few stories and checks the recogniser against 2000 more."""
    import pathlib
    import random

    path = pathlib.Path(__file__).resolve().parents[2] / "assets" / "grammar.json"
    grammar, rng = Grammar(path), random.Random(1)
    for _ in range(6):
        print(grammar.draw(rng).text, end="\n\n")
    stories = [grammar.draw(rng) for _ in range(2000)]
    for story in stories:
        count = grammar.check(story.text, whole_story=True)
        assert 4 <= count <= 8, count
        grammar.check(story.text[: len(story.text) // 2], whole_story=True)
    print("nats a story:", sum(story.nats for story in stories) / len(stories))


if __name__ == "__main__":
    main()
