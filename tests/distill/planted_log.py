"""A log of made-up conversations with planted variants of questions: none may be learnt where its source is held out.

In: how many conversations, how many variants, a seed. Out: lines to import, and which conversations hold a source and its variant.
"""

import random
from dataclasses import dataclass

_THINGS = [
    "kettle", "bicycle", "violin", "ladder", "parcel", "umbrella", "lawnmower", "aquarium", "blanket", "telescope",
    "passport", "harp", "wardrobe", "candle", "tractor", "greenhouse", "mirror", "saddle", "projector", "chimney",
    "guitar", "sandbox", "toaster", "canoe", "freezer", "doorbell", "compass", "tent", "microscope", "piano",
    "stroller", "helmet", "thermostat", "radiator", "curtain", "hammock", "printer", "sofa", "trumpet", "mattress",
    "blender", "sewing-machine", "tripod", "wheelbarrow", "fountain", "heater",
]  # fmt: skip
_LOOKS = [
    "crimson", "wooden", "enormous", "secondhand", "foldable", "silent", "ceramic", "narrow", "electric", "antique",
    "waterproof", "golden", "crooked", "velvet", "portable", "striped", "frozen", "magnetic", "dusty", "transparent",
    "heavy", "miniature", "leather", "rusty", "inflatable",
]  # fmt: skip
_PLACES = [
    "Lisbon", "the attic", "Nairobi", "the harbour", "Quebec", "a vineyard", "the library", "Osaka", "the cellar",
    "Tallinn", "a lighthouse", "the airport", "Bogota", "the bakery", "Perth",
]  # fmt: skip
_GOT = [
    "bought",
    "ordered",
    "inherited",
    "repaired",
    "borrowed",
    "painted",
    "rented",
    "unpacked",
    "lent out",
    "registered",
    "insured",
]
_FAULTS = [
    "leaks oil", "smells of smoke", "refuses to open", "arrived in pieces", "plays the wrong tune", "has lost its label",
    "keeps beeping", "turned completely green", "is missing two screws", "shocks whoever touches it", "was billed twice",
    "cannot be tracked", "never came", "attracts wasps", "wobbles badly", "lost all warranty papers", "overheats", "shrank by half",
]  # fmt: skip
_SINCE = [
    "since Tuesday", "after the storm", "whenever it rains", "for three weeks", "despite your manual", "although nobody used it",
    "because of a typo", "every single night", "before my wedding", "in spite of the refund", "while we were abroad", "as of March",
]  # fmt: skip
_OPENINGS = ["Hello there,", "Good morning, sorry to trouble you,", "Hi team,", "Quick one:"]
_CLOSINGS = ["Many thanks!", "Please advise.", "Regards, a customer", "Any idea?"]


@dataclass(frozen=True)
class _Question:
    look: str
    thing: str
    got: str
    place: str
    fault: str
    since: str
    number: int

    def said(self) -> str:
        return f"My {self.look} {self.thing} number {self.number}, {self.got} near {self.place}, {self.fault} {self.since}"

    def paraphrased(self) -> str:
        what = f"{self.look} {self.thing} with number {self.number}"
        return f"{self.since}, my {what}, which I {self.got} near {self.place}, {self.fault}"


@dataclass(frozen=True)
class PlantedLog:
    """Lines to import; `pairs` are the conversations of a source and of its variant, with the sort of variant."""

    lines: tuple[dict[str, object], ...]
    pairs: tuple[tuple[str, str, str], ...]


def planted_log(conversations: int, variants: int, *, seed: int, name: str = "talk") -> PlantedLog:
    """Make conversations of one to eight turns, each customer with one, and plant variants in conversations of others."""
    chance = random.Random(seed)
    asked = [[_question(chance) for _ in range(chance.randint(1, 8))] for _ in range(conversations)]
    said = [[question.said() for question in questions] for questions in asked]
    pairs = []
    sources = chance.sample(range(conversations), 2 * variants)
    for number in range(variants):
        source, target = sources[2 * number], sources[2 * number + 1]
        turn = chance.randrange(len(asked[source]))
        sort = ("paraphrase", "case", "punctuation", "template")[number % 4]
        said[target].insert(chance.randint(0, len(said[target])), _variant(asked[source][turn], sort, chance))
        pairs.append((f"{name}-{source}", f"{name}-{target}", sort))
    lines = tuple(
        {
            "id": f"{name}-{place}",
            "customer_id": f"{name}-customer-{place}",
            "consent": True,
            "messages": [
                message
                for turn, text in enumerate(texts)
                for message in (
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": _reply(name, place, turn)},
                )
            ],
        }
        for place, texts in enumerate(said)
    )
    return PlantedLog(lines, tuple(pairs))


def _question(chance: random.Random) -> _Question:
    return _Question(*map(chance.choice, (_LOOKS, _THINGS, _GOT, _PLACES, _FAULTS, _SINCE)), chance.randint(100, 99_999))


def _reply(name: str, place: int, turn: int) -> str:
    return f"Ticket {place}-{turn} of {name} is open and a colleague will ring you within two working days."


def _variant(question: _Question, sort: str, chance: random.Random) -> str:
    text = question.said()
    if sort == "paraphrase":
        return question.paraphrased()
    if sort == "case":
        return chance.choice([text.upper(), text.lower(), text.title()])
    if sort == "punctuation":
        return text.replace(",", " -").replace(" near", "; near") + chance.choice(["!!!", "...", "?!"])
    return f"{chance.choice(_OPENINGS)} {text}. {chance.choice(_CLOSINGS)}"
