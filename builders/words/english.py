"""The little English that prompts need: plurals, articles, and whether a noun in a text means one or many.

Rules with short lists of exceptions, after what the class tables hold; not a grammar. A noun that the rules
read wrongly costs a clumsy prompt, never a wrong mask, since a word's place in the prompt is tracked by
characters.
"""

import re

# fmt: off
# Nouns with no plural, which take no article: "a plant" becomes "greenery".
UNCOUNTABLE = {
    "flora", "greenery", "vegetation", "foliage", "shrubbery", "grass", "turf", "soil", "sand", "dirt",
    "traffic", "dough", "hay", "binoculars", "field glasses", "swimming trunks", "bathing trunks",
    "parallel bars",
}
_IRREGULAR = {
    "aircraft": "aircraft", "angus": "angus", "bison": "bison", "bmx": "bmxs", "bonsai": "bonsai",
    "cactus": "cacti", "child": "children", "foot": "feet", "goose": "geese", "half": "halves",
    "homo sapiens": "homo sapiens", "knife": "knives", "leaf": "leaves", "loaf": "loaves", "louse": "lice",
    "mouse": "mice", "ox": "oxen", "person": "people", "reindeer": "reindeer", "salmon": "salmon",
    "scarf": "scarves", "sheep": "sheep", "shelf": "shelves", "shrimp": "shrimp", "tooth": "teeth",
    "trout": "trout", "wolf": "wolves",
}
# fmt: on
_IRREGULAR_ENDS = {"woman": "women", "man": "men", "fish": "fish", "craft": "craft"}
_REGULAR = {"human", "talisman", "ottoman", "caiman", "german", "doberman"}  # though they end so
_ES = re.compile(
    r".*(?:s|x|z|sh|(?<!monar)(?<!stoma)ch|buffalo|mango|mosquito|potato|tomato|torpedo|volcano)"
)

# A vowel letter that sounds as a consonant, a consonant letter that is silent, and spelt-out abbreviations.
_A_BEFORE_VOWEL = re.compile(r"eu|ewe|one\b|ukulele|uni(?!n|m)|ur[aeiou]|us[aeu]|ut[aeio]", re.I)
_AN_BEFORE_CONSONANT = re.compile(r"heir|herb|hono|hour|(?:suv|led|lcd|mp3|x-ray|rv|hd)s?\b", re.I)

# Words before a noun that tell one from many, words that end the search for them, and verbs that tell one.
# fmt: off
_SINGULAR = {"a", "an", "one", "1", "this", "that", "each", "every", "another", "either", "single", "lone"}
_PLURAL = {
    "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "dozen",
    "dozens", "hundred", "hundreds", "several", "many", "few", "some", "these", "those", "both", "all",
    "various", "multiple", "numerous", "different", "of", "are", "were", "have",
}
_BREAK = {
    "the", "its", "their", "with", "in", "on", "at", "by", "to", "near", "while", "from", "for", "behind",
    "beside", "over", "under",
}
_ONE_DOES = {
    "is", "was", "has", "does", "stands", "sits", "lies", "lays", "looks", "stares", "walks", "runs", "eats",
    "grazes", "jumps",
}
# fmt: on
_LAST_WORD = re.compile(r"(.*?)([^\W_]*)", re.DOTALL)
_WORD = re.compile(r"[^\W_]+")


def plural(noun: str) -> str:
    """The plural of a noun phrase: "school bus" -> "school buses", "ear of corn" -> "ears of corn"."""
    head, of, rest = noun.partition(" of ")
    if of:
        return plural(head) + of + rest
    before, last = _LAST_WORD.fullmatch(noun).groups()
    for word, prefix in ((noun, ""), (last, before)):
        if word.lower() in UNCOUNTABLE:
            return noun
        if word.lower() in _IRREGULAR:
            return prefix + _IRREGULAR[word.lower()]
    lower = last.lower()
    for single, many in _IRREGULAR_ENDS.items():
        if lower.endswith(single) and lower not in _REGULAR:
            return noun[: -len(single)] + many
    if re.fullmatch(r".*[^aeiou]y", lower):
        return noun[:-1] + "ies"
    return noun + ("es" if _ES.fullmatch(lower) else "s")


def article(phrase: str) -> str:
    """ "a" or "an", by how the phrase begins: "an eagle", "a ewe", "an suv"."""
    if phrase[:1].lower() in tuple("aeiou"):
        return "a" if _A_BEFORE_VOWEL.match(phrase) else "an"
    return "an" if _AN_BEFORE_CONSONANT.match(phrase) else "a"


def means_many(before: str, after: str) -> bool:
    """Whether a noun with one form ("sheep") means several, by the text around it.

    The nearest of the determiners and numbers up to four words before it decides, then the verb after it;
    with neither ("Sheep grazing on a hill") it means several.
    """
    words = _WORD.findall(re.split(r"[.;:!?]", before)[-1].lower())[-4:][::-1]
    for distance, word in enumerate(words):
        if word in _SINGULAR:
            return False
        if word in _PLURAL or word.isdecimal():
            return True
        if word in _BREAK or (word == "and" and distance == 0):  # but "a black and white sheep"
            break
    verb = _WORD.match(after.lower().lstrip())
    return not (verb and verb.group() in _ONE_DOES)
