"""How pictures are spoken of: articles, plurals, names of styles, groups and skin tones."""

from __future__ import annotations

from rebus.data.pictures import Pictures

STYLES = {
    ("noto", ""): "Noto",
    ("fluent", "flat"): "flat Fluent",
    ("fluent", "3d"): "Fluent 3D",
    ("twemoji", ""): "Twemoji",
    ("emojione", ""): "EmojiOne",
    ("fxemoji", ""): "FxEmoji",
}
"""What people call a family and variant: `in Fluent 3D style`."""

GROUPS = {
    "smileys-emotion": "smileys and emotions",
    "people-body": "people and the body",
    "animals-nature": "animals and nature",
    "food-drink": "food and drink",
    "travel-places": "travel and places",
    "activities": "activities",
    "objects": "objects",
    "symbols": "symbols",
    "flags": "flags",
}
"""What the nine groups are called in a sentence."""

_SINGULAR_S = set(
    "cactus octopus hibiscus lotus compass bus minibus trolleybus dress abacus hippopotamus rhinoceros walrus kiss "
    "glass hourglass cross swiss class citrus phoenix stegosaurus tyrannosaurus".split()
)
_NO_ARTICLE = set(
    "bacon bread butter salt garlic popcorn sushi oden fire fog ice sake mate spaghetti broccoli coral custard "
    "fondue soap wood cooking badminton baseball basketball bowling tennis softball volleyball lacrosse "
    "breast-feeding confetti candy".split()
) | {
    "american football",
    "baguette bread",
    "canned food",
    "chocolate",
    "cooked rice",
    "curry rice",
    "field hockey",
    "flatbread",
    "ginger root",
    "ice cream",
    "ice hockey",
    "martial arts",
    "performing arts",
    "ping pong",
    "pouring liquid",
    "rugby football",
    "Santa Claus",
    "Mrs. Claus",
    "Mx Claus",
    "shaved ice",
    "soft ice cream",
    "building construction",
    "high voltage",
}
_THE = {"Statue of Liberty", "kaaba", "milky way", "performing arts"}
_SAID = {
    "balance scale": "a pair of scales",
    "camping": "a tent at a camping place",
    "chart decreasing": "a decreasing chart",
    "chart increasing": "an increasing chart",
    "construction": "a construction barrier",
    "dashing away": "a puff of dust",
    "dizzy": "a dizzy star",
    "dna": "a strand of DNA",
    "foggy": "a foggy city",
    "horse racing": "a jockey on a horse",
    "hourglass done": "an hourglass",
    "hourglass not done": "an hourglass that is running",
    "hundred points": "the hundred points symbol",
    "leafy green": "a leafy green vegetable",
    "locked with key": "a locked padlock with a key",
    "locked with pen": "a locked padlock with a pen",
    "locked": "a locked padlock",
    "luggage": "a piece of luggage",
    "mount fuji": "Mount Fuji",
    "palms up together": "two palms up together",
    "person lifting weights": "a person lifting weights",
    "rolling on the floor laughing": "a face rolling on the floor laughing",
    "skull and crossbones": "a skull and crossbones",
    "speaker high volume": "a speaker at high volume",
    "speaker low volume": "a speaker at low volume",
    "speaker medium volume": "a speaker at medium volume",
    "star-struck": "a star-struck face",
    "thread": "a spool of thread",
    "Tokyo tower": "Tokyo Tower",
    "unlocked": "an open padlock",
    "yarn": "a ball of yarn",
}
"""Labels that do not make a noun with an article alone."""
EVERYDAY = {
    "airplane": "plane",
    "articulated lorry": "truck",
    "automobile": "car",
    "baguette bread": "baguette",
    "beer mug": "mug of beer",
    "bicycle": "bike",
    "billed cap": "cap",
    "birthday cake": "cake",
    "computer mouse": "mouse of a computer",
    "cooked rice": "bowl of rice",
    "deciduous tree": "tree",
    "delivery truck": "van",
    "doughnut": "donut",
    "ear of corn": "corn cob",
    "eggplant": "aubergine",
    "evergreen tree": "fir tree",
    "fire engine": "fire truck",
    "game die": "dice",
    "gem stone": "diamond",
    "grinning face": "smiley",
    "hamburger": "burger",
    "hippopotamus": "hippo",
    "kick scooter": "scooter",
    "kiwi fruit": "kiwi",
    "lady beetle": "ladybird",
    "motorcycle": "motorbike",
    "necktie": "tie",
    "oncoming automobile": "car from the front",
    "open book": "book",
    "orca": "killer whale",
    "pile of poo": "poo",
    "rabbit": "bunny",
    "racing car": "race car",
    "red heart": "heart",
    "rhinoceros": "rhino",
    "running shoe": "sneaker",
    "sailboat": "sailing boat",
    "soccer ball": "football",
    "spouting whale": "whale with a fountain",
    "steaming bowl": "bowl of noodles",
    "t-shirt": "shirt",
    "tangerine": "orange",
    "trophy": "cup for a winner",
    "wine glass": "glass of wine",
    "wrapped gift": "present",
}
"""What people say who ask for a picture, where that differs from the label."""
_LAND_WITH_THE = (
    "United",
    "Netherlands",
    "Philippines",
    "Bahamas",
    "Gambia",
    "Isle of",
    "Maldives",
    "Comoros",
    "Seychelles",
)
_SPOKEN_CAPITALS = {"COOL", "FREE", "NEW", "TOP", "BACK", "SOON", "UP!", "ON!", "END"}
_SYMBOL_NOUNS = set(
    "button arrow symbol sign mark square circle diamond cross asterisk loop flag star sparkle arrows emblem badge "
    "dash box heart suit".split()
)
_IRREGULAR = {
    "mouse": "mice",
    "leaf": "leaves",
    "knife": "knives",
    "wolf": "wolves",
    "scarf": "scarves",
    "ox": "oxen",
    "snowman": "snowmen",
}
_SAME_PLURAL = {"fish", "sheep", "deer", "bison", "moose", "shrimp", "squid", "moai", "blowfish", "jellyfish"}


def is_plural(label: str) -> bool:
    """Does the label speak of several things (`grapes`, `two hearts`, `people hugging`)?"""
    words = label.split()
    if words[0].endswith("wards"):
        return False
    if words[0] in ("two", "people", "men", "women", "hundred"):
        return True
    for place, word in enumerate(words[1:], 1):
        if word.endswith("ing") or word in ("with", "of", "in", "on", "over", "at", "and", "under"):
            words = words[:place]
            break
    last = words[-1].strip(",")
    return last.endswith("s") and not last.endswith("ss") and not last.endswith("'s") and last not in _SINGULAR_S


def article(label: str) -> str:
    """`a`, `an`, `the` or nothing, followed by the label."""
    if label in _SAID:
        return _SAID[label]
    if label in _THE:
        return f"the {label}"
    if label in _NO_ARTICLE or is_plural(label):
        return label
    first = label.split()[0]
    if first.isupper() and first not in _SPOKEN_CAPITALS and len(first.strip("!")) <= 3 and first[0].isalpha():
        vowel = first[0] in "AEFHILMNORSX"
    else:
        low = first.lower()
        vowel = low[0] in "aeiou8" or low.startswith(("hour", "x-ray"))
        vowel = vowel and not low.startswith(("uni", "one", "eu", "ewe", "uk"))
    return f"{'an' if vowel else 'a'} {label}"


def noun(label: str, group: str, subgroup: str) -> str:
    """A label with its article, as it stands in a sentence: `a red apple`, `the flag of Japan`, `grapes`."""
    if label.startswith("flag of "):
        land = label.removeprefix("flag of ")
        the = "the " if land.startswith(_LAND_WITH_THE) or land.endswith(("Islands", "Republic", "Territories")) else ""
        return f"the flag of {the}{land}"
    if label.startswith(("letter ", "keycap ")):
        return f"the {label}"
    if subgroup == "time" and ("o'clock" in label or label.endswith("-thirty")):
        return f"a clock showing {label}"
    if subgroup == "zodiac":
        return f"the zodiac sign {label}"
    if group == "symbols" and not _SYMBOL_NOUNS & set(label.split()) and subgroup != "geometric":
        return f"the {label} symbol"
    return article(label)


def plural(label: str) -> str:
    """`red apple` → `red apples`; a label that is plural already stays as it is."""
    if is_plural(label):
        return label
    *before, last = label.split(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith(("s", "x", "sh", "ch")) and last not in _SAME_PLURAL:
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    elif last in ("tomato", "potato", "mango", "volcano"):
        last += "es"
    elif last not in _SAME_PLURAL:
        last += "s"
    return " ".join([*before, last])


def countable(label: str) -> bool:
    """May one say `three …s` and `a … left of a …`? True of short, singular names of single things."""
    words = label.split()
    odd = {"with", "of", "in", "on", "and", "showing", "facing", "without", "behind", "over", "at"} & set(words)
    ends_oddly = words[-1] in (
        "up",
        "down",
        "high",
        "done",
        "arrival",
        "departure",
        "upright",
        "volume",
        "left",
        "right",
    )
    return not (
        odd
        or ends_oddly
        or len(words) > 3
        or label in _NO_ARTICLE
        or label in _SAID
        or label in _THE
        or is_plural(label)
        or words[-1] in ("decreasing", "increasing", "landslide", "weather", "locked", "unlocked", "hockey", "ceremony")
        or any(character.isdigit() for character in label)
    )


def style_name(pictures: Pictures, row: int) -> str:
    """`Noto`, `flat Fluent`, …: the name of a picture's style."""
    return STYLES[pictures.family[row], pictures.variant[row]]


def named(pictures: Pictures, row: int) -> str:
    """What a picture shows, as it stands in a sentence, with the skin tone if there is one."""
    text = noun(pictures.label[row], pictures.group[row], pictures.subgroup[row])
    tone = pictures.skin_tone[row]
    return f"{text} with {tone} skin" if tone else text
