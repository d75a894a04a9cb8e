"""Class tables: what ships is complete and official, and a user's YAML is checked key by key."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from places import DATA, ROOT

from attn2mask.builders.classes import default_color, spelling
from attn2mask.builders.errors import UserError
from attn2mask.builders.table_reader import TABLES, load_table, wordnet_ids
from attn2mask.builders.words.english import article, means_many, plural

VOC = """
    background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person
    pottedplant sheep sofa train tvmonitor
""".split()
CITYSCAPES_STUFF = "road sidewalk building wall fence pole traffic_light traffic_sign vegetation terrain sky"
CITYSCAPES_THINGS = "person rider car truck bus train motorcycle bicycle"

# The paper's Table 5, by VOC's class: base names -> synonyms and hyponyms.
TABLE_5 = """
aeroplane: airplane, airplanes, plane, planes -> aircraft, jet, airliner, glider, drone, seaplane,
    ultralight aircraft;
bicycle: bicycle, bicycles -> pushbike, road bike, mountain bike, racing bike, bmx, tandem bike, recumbent
    bicycle, folding bike, electric bike;
bird: bird, birds -> avian, songbird, sparrow, falcon, hawk, eagle, owl, crow, seagull, parrot, swallow,
    woodpecker, pigeon;
boat: boat, boats, ship, ships, yacht, yachts -> vessel, canoe, kayak, rowboat, sailboat, catamaran,
    dinghy, speedboat, barge, fishing boat, gondola;
bottle: bottle, bottles -> flask, vial, decanter, carafe, squeeze bottle, perfume bottle;
bus: bus, buses, busses -> omnibus, motorcoach, school bus, transit bus, double-decker bus, trolleybus,
    shuttle bus, intercity bus, articulated bus;
car: car, cars -> automobile, motorcar, sedan, coupe, convertible, suv, pickup truck, minivan, hatchback,
    station wagon, roadster;
cat: cat, cats -> feline, kitten, tabby cat, siamese cat, persian cat, maine coon, bengal cat, ragdoll
    cat, bobcat;
chair: chair, chairs -> armchair, recliner, rocking chair, lounge chair, dining chair, barstool, office
    chair, folding chair, bench, high chair;
cow: cow, cows -> bovine, heifer, steer, bull, dairy cow, beef cow, holstein, angus, jersey cow;
diningtable: table, tables -> desk, dining table, coffee table, side table, end table, kitchen table,
    writing desk, console table, card table;
dog: dog, dogs -> canine, pooch, hound, puppy, mutt dog, terrier, bulldog, poodle, labrador, shepherd,
    retriever;
horse: horse, horses -> equine, stallion, mare, gelding, pony, foal, thoroughbred, clydesdale, palomino
    horse, appaloosa;
motorbike: motor, motors, motorcycle, motorcycles -> chopper bike, sportbike, dirt bike, scooter, cafe
    racer, bobber bike, moped, supermoto;
person: person, people, man, woman, men, women, player, players -> human, homo sapiens, citizen;
pottedplant: plant, plants -> flora, greenery, vegetation, herb, tree, flower, cactus, succulent;
sheep: sheep -> ewe, woolly animal, merino sheep, suffolk sheep, dorper sheep, shetland sheep, border
    leicester, jacob sheep;
sofa: sofa, sofas -> couch, settee, loveseat, chesterfield, chaise lounge, sectional sofa, daybed, sleeper
    sofa;
train: train, trains -> locomotive, subway train, metro train, commuter train, bullet train;
tvmonitor: monitor, monitors, tv, tvs, television, televisions -> display, screen, vdu, computer monitor,
    flat panel monitor, crt monitor, led monitor, touchscreen, dual monitor;
"""
ROWS = [" ".join(row.split()) for row in TABLE_5.split(";") if row.strip()]


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "table.yaml"
    path.write_text(text, "utf-8")
    return str(path)


def test_voc_is_official():
    table = load_table("voc")
    assert list(table.names) == VOC
    assert [row.split(":")[0] for row in ROWS] == VOC[1:]
    assert (table.first_id, table.ignore_index, table.id_of("tvmonitor")) == (1, 255, 20)
    assert table.palette.dtype == np.uint8
    assert [tuple(color) for color in table.palette.tolist()] == [default_color(i) for i in range(21)]
    assert default_color(15) == (192, 128, 128)  # person, as VOCdevkit has it


@pytest.mark.parametrize("row", ROWS)
def test_voc_holds_table_5(row: str):
    name, words = row.split(": ")
    base, aliases = (side.split(", ") for side in words.split(" -> "))
    label = next(label for label in load_table("voc").classes if label.name == name)
    assert list(label.base[: len(base)]) == base
    assert list(label.aliases) == aliases


def test_cityscapes_is_official():
    table = load_table("cityscapes")
    assert len(table.names) == 19
    assert (table.names[0], table.names[18], table.first_id, table.background) == ("road", "bicycle", 0, None)
    assert table.palette[table.id_of("car")].tolist() == [0, 0, 142]
    names = f"{CITYSCAPES_STUFF} {CITYSCAPES_THINGS}".split()
    assert [name.replace(" ", "_") for name in table.names] == names
    things = {"pole", "traffic light", "traffic sign", *CITYSCAPES_THINGS.split()}
    assert {label.name for label in table.classes if label.thing} == things


@pytest.mark.parametrize(("size", "ignore"), [(50, 255), (300, 65535), (919, 65535)])
def test_imagenet_s(size: int, ignore: int):
    table = load_table(f"imagenet_s_{size}")
    assert (len(table.names), table.names[0], table.ignore_index) == (size + 1, "other", ignore)
    assert len(set(table.names)) == size + 1
    assert len({tuple(color) for color in table.palette.tolist()}) == size + 1


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the class lists in ../shared/data")
@pytest.mark.parametrize("size", [50, 300, 919])
def test_imagenet_s_ids(size: int):
    lines = (ROOT / "builders/tables/imagenet_s.tsv").read_text("utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    ids = [row[0] for row in rows if int(row[1]) <= size]
    assert ids == (DATA / f"imagenet_s/im{size}.txt").read_text().split()


@pytest.mark.parametrize("name", TABLES)
def test_no_word_has_two_classes(name: str):
    table = load_table(name)
    owners: dict[str, str] = {}
    for label in table.classes:
        assert label.base
        for word in (label.name, *label.base, *label.aliases, *map(plural, label.aliases)):
            assert owners.setdefault(spelling(word), label.name) == label.name
    assert not owners.keys() & set(map(spelling, table.compounds))


@pytest.mark.parametrize("name", TABLES)
def test_tables_travel_to_worker_processes(name: str):
    table = load_table(name)
    assert pickle.loads(pickle.dumps(table)) == table
    assert hash(table) == hash(load_table(name))


KITCHEN = """
name: kitchen
background: true
classes:
  - {name: mug, base: [mug, mugs, cup], aliases: [coffee cup, beaker]}
  - {name: kettle, color: [1, 2, 3], thing: false}
compounds: [cup holder]
"""


def test_a_users_table(tmp_path: Path):
    table = load_table(write(tmp_path, KITCHEN))
    mug, kettle = table.classes
    assert table.names == ("background", "mug", "kettle")
    assert mug.base == ("mug", "mugs", "cup")
    assert (kettle.base, kettle.color, kettle.thing) == (("kettle", "kettles"), (1, 2, 3), False)
    assert mug.color == default_color(1)


@pytest.mark.parametrize(
    ("background", "names"),
    [("false", ("mug",)), ("other", ("other", "mug")), ("true", ("background", "mug"))],
)
def test_background(tmp_path: Path, background: str, names: tuple[str, ...]):
    table = load_table(write(tmp_path, f"name: t\nbackground: {background}\nclasses: [{{name: mug}}]"))
    assert table.names == names
    assert len(table.palette) == len(names)


def test_a_users_words(tmp_path: Path):
    text = """name: t
classes:
  - {name: mug, aliases: [beaker, tankard], synonyms: [coffee cup], ambiguous: [vessel, beaker]}
  - {name: boat, ambiguous: [vessel]}
"""
    table = load_table(write(tmp_path, text))
    forms = table.lexicon
    assert [forms[word].kind for word in ("mug", "mugs", "tankards", "coffee cups")] == ["name"] * 4
    assert [forms[word].kind for word in ("beaker", "beakers", "vessel")] == ["ambiguous"] * 3
    assert [forms[word].number for word in ("coffee cup", "vessels")] == ["one", "many"]


def test_a_users_words_and_their_neighbors(tmp_path: Path):
    text = """name: t
classes:
  - {name: mug, aliases: [beaker, tankard]}
  - {name: tray}
parts: {mug: tray}
kinds: [tankard]
contrary: {beaker: [coffee], tankard: []}
paper_only: [Tankard]
"""
    table = load_table(write(tmp_path, text))
    assert (table.parts, table.kinds, table.paper_only) == (((0, 1),), ("tankard",), ("Tankard",))
    assert table.forms_of_kinds == {"tankard", "tankards"}
    assert {"coffee", "coffees"} <= table.contradicting["beaker"]
    assert table.contradicting["tankard"] == frozenset()


def test_a_users_scene(tmp_path: Path):
    scene = (
        "caption_style: {aspect: 2, balance: true, usual: [mug], stuff: [0, 1], places: [in a kitchen], "
        "phrases: {mug: [two mugs]}}"
    )
    table = load_table(write(tmp_path, KITCHEN + scene))
    assert (table.caption_style.aspect, table.caption_style.balance, table.caption_style.things) == (
        2.0,
        True,
        (1, 3),
    )
    assert table.caption_style.usual == (0,)
    assert (table.caption_style.stuff, table.caption_style.places) == ((0, 1), ("in a kitchen",))
    assert table.caption_style.phrases == (("two mugs",), ())
    assert load_table(write(tmp_path, KITCHEN)).caption_style is None
    assert hash(table)


def test_facts_mention_a_scene_where_there_is_one():
    """Builds of tables without one go on: the digest of their table is what it was."""
    assert "caption_style" not in load_table("voc").facts()
    assert load_table("cityscapes").facts()["caption_style"]["aspect"] == 2


def test_wordnet_ids_belong_to_the_classes():
    ids = dict(zip(wordnet_ids("imagenet_s_300"), load_table("imagenet_s_300").classes, strict=True))
    assert ids["n01443537"].name == "goldfish"


def test_imagenet_s_phrases_are_of_its_classes():
    said = yaml.safe_load((ROOT / "builders/tables/imagenet_s.yaml").read_text())["phrases"]
    assert said.keys() <= set(load_table("imagenet_s_919").names)


def test_more_than_254_names_need_16_bits(tmp_path: Path):
    classes = "\n".join(f"  - name: thing{i}x" for i in range(254))
    assert load_table(write(tmp_path, f"name: t\nclasses:\n{classes}")).ignore_index == 65535
    assert load_table(write(tmp_path, f"name: t\nbackground: false\nclasses:\n{classes}")).ignore_index == 255
    assert load_table(write(tmp_path, "name: t\nignore: 9\nclasses: [{name: mug}]")).ignore_index == 9


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: [", "not valid YAML"),
        ("name: 2020-99-99\nclasses: [{name: a}]", "not valid YAML"),
        ("- a list", "the file is"),
        ("", "the file is missing"),
        ("classes: [{name: mug}]", "name is missing"),
        ("name: t", "classes is missing"),
        ("name: t\nclasses: []", "classes is empty"),
        ("name: t\nclasses: mug", "classes is 'mug'"),
        ("name: t\nclasses: [mug]", "classes[0] is 'mug'"),
        ("name: t\nclasses: [{base: [mug]}]", "classes[0].name is missing"),
        ("name: t\nclasses: [{name: no}]", "classes[0].name is False"),
        ("name: t\nclasses: [{name: 7}]", "classes[0].name is 7"),
        ("name: t\nclasses: [{name: '!'}]", "classes[0].name has no word in it"),
        ('name: t\nclasses: [{name: "a\\nb"}]', "classes[0].name is 'a\\nb', which holds a line break or a"),
        ('name: t\nclasses: [{name: "a\\x1b[1mb"}]', "which holds a line break or a control character"),
        ("name: t\nclasses: [{name: mug, base: mug}]", "classes[0].base is 'mug'"),
        ("name: t\nclasses: [{name: mug, base: []}]", "classes[0].base is empty"),
        ("name: t\nclasses: [{name: mug, aliases: [cup, on]}]", "classes[0].aliases[1] is True"),
        ("name: t\nclasses: [{name: mug, alias: [cup]}]", "classes[0].alias is not a key"),
        (
            "name: t\nclasses: [{name: mug, colour: [1, 2, 3]}]",
            "classes[0].colour is not a key of a class table",
        ),
        ("name: t\nclasses: [{name: mug, colour: [1, 2, 3]}]", ": write color"),
        ("name: t\nclasses: [{name: mug, color: red}]", "classes[0].color is 'red'"),
        ("name: t\nclasses: [{name: mug, color: [1, 2, 256]}]", "classes[0].color is [1, 2, 256]"),
        ("name: t\nclasses: [{name: mug, thing: 1}]", "classes[0].thing is 1"),
        ("name: t\nbackground: none\nclasses: [{name: mug}]", "background is 'none'"),
        ("name: t\nignore: 1\nclasses: [{name: mug}]", "ignore is 1"),
        ("name: t\nclass: [{name: mug}]", "class is not a key"),
        ("name: t\nclasses: [{name: mug}]\ncaption_style: 2", "caption_style is 2"),
        ("name: t\nclasses: [{name: mug}]\ncaption_style: {wide: 2}", "caption_style.wide is not a key"),
        ("name: t\nclasses: [{name: mug}]\ncaption_style: {aspect: 0}", "caption_style.aspect is 0"),
        (
            "name: t\nclasses: [{name: mug}]\ncaption_style: {things: [3, 1]}",
            "caption_style.things is [3, 1]",
        ),
        ("name: t\nclasses: [{name: mug}]\ncaption_style: {light: dark}", "caption_style.light is 'dark'"),
        ("name: t\nclasses: [{name: mug}]\ncaption_style: {usual: [cup]}", "caption_style.usual has 'cup'"),
        ("name: t\nclasses: [{name: mug}]\ncaption_style: {balance: 1}", "caption_style.balance is 1"),
        (
            "name: t\nclasses: [{name: mug}]\ncaption_style: {phrases: {cup: [a cup]}}",
            "caption_style.phrases.cup is not a key",
        ),
        (
            "name: t\nclasses: [{name: mug}]\ncaption_style: {phrases: {mug: [a cup]}}",
            "has 'a cup', which has no base",
        ),
        ("name: t\nclasses: [{name: mug}, {name: Mug}]", "'mug' and 'Mug' share"),
        ("name: t\nclasses: [{name: mug}, {name: cup, aliases: [tea-cup, mugs]}]", "'mug' and 'cup' share"),
        (
            "name: t\nclasses: [{name: mug, aliases: [tea-cup]}, {name: cup, base: [tea cup]}]",
            "share the name or alias 'tea cup'",
        ),
        ("name: t\nclasses: [{name: background}]", "'background' and 'background' share"),
        ("name: t\nclasses: [{name: mug}]\ncompounds: [mugs]", "'mugs' is also a name or alias of 'mug'"),
        ("name: t\nclasses: [{name: mug, synonyms: tumbler}]", "classes[0].synonyms is 'tumbler'"),
        ("name: t\nclasses: [{name: mug}]\nkinds: [cup]", "kinds has 'cup', which is not a name or alias"),
        ("name: t\nclasses: [{name: mug}]\nkinds: mug", "kinds is 'mug'"),
        ("name: t\nclasses: [{name: mug}]\npaper_only: [mug]", "paper_only has 'mug', which is not an alias"),
        ("name: t\nclasses: [{name: mug}]\ncontrary: [mug]", "contrary is ['mug']"),
        (
            "name: t\nclasses: [{name: mug}]\ncontrary: {mug: [tea]}",
            "contrary has 'mug', which is not an alias",
        ),
        ("name: t\nclasses: [{name: mug}]\ncontrary: {mug: tea}", "contrary.mug is 'tea'"),
        ("name: t\nclasses: [{name: mug}]\ncontrary: {no: [tea]}", "contrary is False"),
        ("name: t\nclasses: [{name: mug}]\nparts: {mug: cup}", "parts has 'cup', which is not the name"),
        ("name: t\nclasses: [{name: mug}]\nparts: [mug]", "parts is ['mug']"),
        ("name: t\nclasses: [{name: mug}]\nparts: {1: mug}", "parts[0] is 1"),
        ("name: t\nclasses: [{name: mug, ambiguous: [7]}]", "classes[0].ambiguous[0] is 7"),
        ("name: t\nclasses: [{name: mug, synonyms: [cup]}, {name: cup}]", "'mug' and 'cup' share"),
        (
            "name: t\nclasses: [{name: mug}, {name: cup, ambiguous: [mug]}]",
            "classes[1].ambiguous has 'mug', which is also a name or alias of 'mug'",
        ),
        (
            "name: t\nclasses: [{name: mug, synonyms: [cup], ambiguous: [cup]}]",
            "classes[0].ambiguous has 'cup', which is also a name or alias of 'mug'",
        ),
        (
            "name: t\nclasses: [{name: mug, ambiguous: [cup]}]\ncompounds: [cup]",
            "compounds 'cup' is also a name or alias of 'mug'",
        ),
    ],
)
def test_what_is_wrong_in_a_table(tmp_path: Path, text: str, complaint: str):
    with pytest.raises(UserError) as caught:
        load_table(write(tmp_path, text))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_many_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = {"name": "t", "classes": [{"name": "mug"}] * 65536}
    monkeypatch.setattr("attn2mask.builders.table_reader.load_yaml", lambda _: content)
    with pytest.raises(UserError, match="more than a 16-bit mask can hold"):
        load_table(write(tmp_path, ""))


def test_an_unknown_table(tmp_path: Path):
    with pytest.raises(UserError, match="choose voc, cityscapes, imagenet_s_50"):
        load_table("pascal")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        load_table(str(tmp_path / "missing.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(UserError, match="not valid YAML"):
        load_table(str(tmp_path / "binary.yaml"))


PLURALS = """
    poodle: poodles, school bus: school buses, puppy: puppies, monkey: monkeys, bench: benches, cactus: cacti,
    merino sheep: merino sheep, aircraft: aircraft, human: humans, fireman: firemen, person: people,
    greenery: greenery, homo sapiens: homo sapiens, arctic wolf: arctic wolves, ear of corn: ears of corn,
    goldfish: goldfish, monarch: monarchs, tomato: tomatoes, T-shirt: T-shirts
"""


@pytest.mark.parametrize(("one", "many"), [pair.strip().split(": ") for pair in PLURALS.split(",")])
def test_plural(one: str, many: str):
    assert plural(one) == many


def test_article():
    for word in ("eagle", "suv", "herb", "hour", "ultralight aircraft", "LED monitor", "umbrella"):
        assert article(word) == "an"
    for word in ("jet", "ewe", "human", "unicycle", "utility pole", "one-way road", "European fox", "vdu"):
        assert article(word) == "a"


ONE = ["a |", "a black and white | standing", "one small | on a hill", "the | stands alone"]
MANY = ["two |", "a herd of white |", "a dog and | in a field", "| grazing", "the | are eating", "12 |"]


@pytest.mark.parametrize("many", [False, True])
def test_one_sheep_or_many(many: bool):
    for text in (*MANY, "Man. | in grass") if many else ONE:
        assert means_many(*text.split("|")) == many, text


@given(st.text())
def test_english_takes_any_text(text: str):
    assert plural(text)
    assert article(text) in ("a", "an")
    assert spelling(spelling(text)) == spelling(text)
