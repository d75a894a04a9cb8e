"""The little English that prompts need: plurals, articles, and whether a noun means one or many.

These are rules with short lists of exceptions, chosen for the words of the class tables. A noun that the
rules misread makes a clumsy prompt, but never a wrong mask.
"""

import re
from functools import lru_cache

# Nouns without a plural. They take no article: "a plant" becomes "greenery".
UNCOUNTABLE = {
    *"flora greenery vegetation foliage shrubbery grass turf soil sand dirt traffic dough hay".split(),
    "binoculars",
    "field glasses",
    "swimming trunks",
    "bathing trunks",
    "parallel bars",
}
# Nouns whose plural is the same word, and nouns with another plural than the rules give.
_SAME = {"homo sapiens", *"aircraft angus bison bonsai cattle reindeer salmon sheep shrimp trout".split()}
_IRREGULAR = dict(
    pair.split("/")
    for pair in """
    bmx/bmxs cactus/cacti child/children foot/feet goose/geese half/halves knife/knives leaf/leaves
    loaf/loaves louse/lice mouse/mice ox/oxen person/people scarf/scarves shelf/shelves tooth/teeth
    wolf/wolves
    """.split()
)
_IRREGULAR_ENDS = {"woman": "women", "man": "men", "fish": "fish", "craft": "craft"}
_REGULAR = set("human talisman ottoman caiman german doberman".split())  # not irregular, though they end so
_ES = re.compile(
    r".*(?:s|x|z|sh|(?<!monar)(?<!stoma)ch|buffalo|mango|mosquito|potato|tomato|torpedo|volcano)"
)

# A vowel letter that sounds as a consonant, a consonant letter that is silent, and spelt-out abbreviations.
_A_BEFORE_VOWEL = re.compile(r"eu|ewe|one\b|ukulele|uni(?!n|m)|ur[aeiou]|us[aeu]|ut[aeio]", re.I)
_AN_BEFORE_CONSONANT = re.compile(r"heir|herb|hono|hour|(?:suv|led|lcd|mp3|x-ray|rv|hd)s?\b", re.I)

# Words before a noun that say one or many, words that end the search for them, and verbs of one.
_SINGULAR = set("a an one 1 this that each every another either single lone".split())
_PLURAL = set(
    "two three four five six seven eight nine ten eleven twelve dozen dozens hundred hundreds several many"
    " few some these those both all various multiple numerous different of are were have".split()
)
_BREAK = set("is was the its their with in on at by to near while from for behind beside over under".split())
_ONE_DOES = set("is was has does stands sits lies lays looks stares walks runs eats grazes jumps".split())
_LAST_WORD = re.compile(r"(.*?)([^\W_]*)", re.DOTALL)
_WORD = re.compile(r"[^\W_]+")


@lru_cache(maxsize=2**16)
def plural(noun: str) -> str:
    """The plural of a noun phrase: "school bus" -> "school buses", "ear of corn" -> "ears of corn"."""
    head, of, rest = noun.partition(" of ")
    if of:
        return plural(head) + of + rest
    before, last = _LAST_WORD.fullmatch(noun).groups()
    for word, prefix in ((noun, ""), (last, before)):
        if word.lower() in UNCOUNTABLE:
            return noun
        if word.lower() in _SAME:
            return prefix + word.lower()
        if word.lower() in _IRREGULAR:
            return prefix + _IRREGULAR[word.lower()]
    lower = last.lower()
    for single, many in _IRREGULAR_ENDS.items():
        if lower.endswith(single) and lower not in _REGULAR:
            return noun[: -len(single)] + many
    if re.fullmatch(r".*[^aeiou]y", lower):
        return noun[:-1] + "ies"
    return noun + ("es" if _ES.fullmatch(lower) else "s")


def verb_forms(verb: str) -> tuple[str, ...]:
    """What may stand after a noun of one: "sits", "sitting", "siting", "sitted" (more than what exists)."""
    many = verb + ("es" if re.fullmatch(r".*(?:s|x|z|sh|ch|o)", verb) else "s")
    stems = {verb, verb.removesuffix("e"), verb + verb[-1]}
    if re.fullmatch(r".*[^aeiou]y", verb):
        many, stems = verb[:-1] + "ies", {verb, verb[:-1] + "i"}
    if verb.endswith("ie"):
        stems = {verb[:-2] + "y", verb.removesuffix("e")}
    return many, *(stem + end for stem in sorted(stems) for end in ("ing", "ed"))


def article(phrase: str) -> str:
    """The article of a phrase, "a" or "an", by its sound: "an eagle", "a ewe", "an suv"."""
    if phrase[:1].lower() in tuple("aeiou"):
        return "a" if _A_BEFORE_VOWEL.match(phrase) else "an"
    return "an" if _AN_BEFORE_CONSONANT.match(phrase) else "a"


def means_many(before: str, after: str) -> bool:
    """Whether a noun with one form for both ("sheep") means several, given the text around it.

    The nearest determiner or number up to four words before the noun decides, or else the verb after it.
    Without either ("Sheep grazing on a hill") the noun means several.
    """
    words = _WORD.findall(re.split(r"[.;:!?]", before)[-1].lower())[-4:][::-1]
    for distance, word in enumerate(words):
        if word in _SINGULAR:
            return False
        if word in _PLURAL or word.isdecimal():
            return True
        # "a dog herding sheep", but "a black and white sheep" and "a sleeping sheep"
        if word in _BREAK or (distance == 0 and (word == "and" or word.endswith("ing"))):
            break
    verb = _WORD.match(after.lower().lstrip())
    return not (verb and verb.group() in _ONE_DOES)
