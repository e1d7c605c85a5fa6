"""Words the curriculum plays with.  The tokenizer keeps every one of them as single letters."""

from __future__ import annotations

from random import Random

WORDS = """
planet grape silver window garden rocket button kettle ladder mirror pepper rabbit saddle tunnel velvet
walnut yellow zebra anchor basket candle dragon engine forest guitar hammer island jacket kitten lemon
magnet needle orange pencil quartz ribbon shadow tomato umbrella violin whistle balloon blossom bottle
bubble butter carrot cheese cherry coffee cookie copper cotton daisy desert dinner donkey feather fiddle
flower glass goose hollow hello jelly jungle kernel kiwi lantern lettuce lizard llama meadow melon mitten
moon muffin noodle ocean onion otter paddle panda parrot peach pebble penguin piano pillow pocket potato
puddle puffin puzzle raccoon radio river salad salmon sheep shoal shell shrimp sloth spoon spring squid
steam stone storm straw sugar summer sunset supper swallow teapot tennis thunder tiger timber toffee
tractor trumpet tulip turtle valley vanilla village volcano waffle water willow winter wizard wool yoga
banana bee tree book cocoa papaya mississippi coconut cinnamon eleven seventeen assess possess tattoo
committee bookkeeper successful address letterbox apple acorn amber badger bamboo barley beaver bishop
blanket bramble breeze bridge bronze cactus camel canyon castle cedar chalk cloud clover cobweb comet
coral cradle crane cricket crystal cuckoo curtain dagger dolphin eagle ember falcon ferret finch flame
flint fossil galaxy gannet gecko ginger glacier glove gravel hazel hedge heron hornet ivory jaguar jasmine
juniper kayak koala lagoon lark lavender lilac linen lobster lotus lynx maple marble mango meteor mint moss
nectar nutmeg oasis olive opal orchid oyster panther pearl pelican pine plum pollen prairie quail raven
reef robin saffron sapphire sparrow spruce swan thistle topaz tundra vulture walrus weasel wheat whale
""".split()

NAMES = """
Anna Ben Clara David Emma Felix Greta Hugo Ines Jonas Karla Leo Mara Nils Olga Paul Rosa Simon Tessa Umar
Vera Walter Yara Zoe Adam Bella Carlos Dora Elias Fatima Gavin Hanna Igor Julia Kenji Lena Marco Nadia
Oscar Petra Quentin Ravi Sofia Tomas Ursula Viktor Wendy Xavier Yusuf Zara Aisha Bruno Chloe Diego Elif
""".split()

CITIES = """
Oslo Paris Rome Madrid Berlin Vienna Prague Lisbon Dublin Athens Cairo Lima Quito Tokyo Seoul Delhi Accra
Nairobi Tunis Rabat Bergen Turin Porto Seville Lyon Geneva Zurich Munich Hamburg Krakow Riga Vilnius
Tallinn Helsinki Malmo Aarhus Ghent Bruges Leeds Cardiff Boston Denver Austin Toronto Havana Bogota Manila
Hanoi Jakarta Sydney Perth Dakar Lagos Kigali Lusaka Maputo
""".split()

_ONSETS = "b c d f g h j k l m n p r s t v w z br cr dr fl gr kl pl pr sl st tr sh ch th".split()
_VOWELS = "a e i o u a e i o u ai ea ee oo ou".split()
_CODAS = ["", "", "", "n", "r", "s", "t", "l", "m", "k", "ng", "ck", "ss", "ll"]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def syllables(rng: Random) -> str:
    """A pronounceable invented word of one to three syllables."""
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.randint(1, 3))]
    return "".join(parts)[:11]


def word(rng: Random, repeats: float = 0.3) -> str:
    """A word of 3 to 12 letters: a third real, a third syllables, a third random letters.

    With probability ``repeats`` one letter is doubled or copied to another place, because words with
    repeated letters are the hard ones to reverse and to count.
    """
    kind = rng.random()
    if kind < 1 / 3:
        return rng.choice(WORDS)
    if kind < 2 / 3:
        w = syllables(rng)
    else:
        w = "".join(rng.choice(LETTERS) for _ in range(rng.randint(3, 9)))
    if rng.random() < repeats:
        i = rng.randrange(len(w))
        j = i if rng.random() < 0.6 else rng.randrange(len(w) + 1)
        w = w[:j] + w[i] + w[j:]
    return w if len(w) >= 3 else w + w[-1]


_BY_COUNT: dict[int, list[tuple[str, str]]] = {
    n: [(w, c) for w in WORDS for c in LETTERS if w.count(c) == n] for n in range(5)
}


def word_with_count(rng: Random, count: int) -> tuple[str, str]:
    """A word and a letter that occurs in it exactly ``count`` times (0 to 4)."""
    if rng.random() < 0.4 and _BY_COUNT[count]:
        return rng.choice(_BY_COUNT[count])
    letter = rng.choice(LETTERS)
    base = word(rng, 0.2).replace(letter, "")[: 10 - count]
    while len(base) + count < 3 or not base:
        base += rng.choice(LETTERS.replace(letter, ""))
    chars = list(base)
    while count:
        at = rng.randint(0, len(chars))
        run = 2 if count >= 2 and rng.random() < 0.25 else 1
        chars[at:at] = letter * run
        count -= run
    return "".join(chars), letter
