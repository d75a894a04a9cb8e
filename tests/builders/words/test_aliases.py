"""Proposals from a WordNet of a few words, written here in its own format, and from Debian's if installed."""

import zipfile
from pathlib import Path

import pytest
import yaml

from attn2mask.builders.errors import UserError
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.words import wordnet
from attn2mask.builders.words.wordnet import WordNet, find_wordnet
from attn2mask.hub.cli import main

# Senses: words, kind, hyponyms (by number), definition. 0 and 1 are genera, 12 a name.
SENSES = [
    (["genus_Mus"], 5, [], "mice"),
    (["Crane", "Stephen_Crane"], 18, [], "United States writer; wrote a novel"),
    (["mug", "mugful"], 23, [], "the quantity that can be held in a mug"),
    (["mug", "chump"], 18, [], "a person who is gullible"),
    (["mug"], 6, [5, 6], "with handle and usually cylindrical"),
    (["beer_mug", "stein"], 6, [], "a mug for beer"),
    (["coffee_mug", "bucket"], 6, [], "a mug for coffee"),
    (["bucket", "pail"], 6, [], "a vessel with a handle"),
    (["mouse", "Mus_musculus"], 5, [], "a small rodent; many kinds"),
    (["crane"], 6, [10], "lifts heavy objects"),
    (["derrick", "stein"], 6, [], "a simple crane"),
]
NAMES = {1}
# Word -> its senses, the counted ones first, and how many these are.
INDEX = {
    "genus_mus": ([0], 0),
    "crane": ([1, 9], 0),
    "stephen_crane": ([1], 0),
    "mug": ([2, 3, 4], 0),
    "mugful": ([2], 0),
    "chump": ([3], 0),
    "beer_mug": ([5], 0),
    "stein": ([5, 10], 0),
    "coffee_mug": ([6], 0),
    "bucket": ([7, 6], 1),
    "pail": ([7], 0),
    "mouse": ([8], 1),
    "mus_musculus": ([8], 0),
    "derrick": ([10], 0),
}
KITCHEN = """# mine
name: kitchen
classes:
  - {name: mug, base: [mug, mugs], aliases: [beaker, "no"], color: [1, 2, 3]}
  - {name: "mouse"}
  - {name: blorple}
compounds: [mug holder]
caption_style: {aspect: 2}
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with the two files, as Debian's package has them."""
    lines, offsets, position = [], [], len("  1 WordNet 3.0 Copyright\n")
    for fill in (True, False):  # offsets have a fixed width, so lengths are known before the offsets
        lines, starts = [], []
        at = position
        for number, (words, kind, hyponyms, gloss) in enumerate(SENSES):
            pointers = ["@i" if number in NAMES else "@", "00000000", "n", "0000"]
            for to in hyponyms:
                pointers += ["~", f"{0 if fill else offsets[to]:08d}", "n", "0000"]
            said = " ".join(f"{word} 0" for word in words)
            line = f"{0 if fill else offsets[number]:08d} {kind:02d} n {len(words):02x} {said} "
            line += f"{1 + len(hyponyms):03d} {' '.join(pointers)} | {gloss}  \n"
            starts.append(at)
            at += len(line)
            lines.append(line)
        offsets = starts
    index = []
    for word, (senses, counted) in INDEX.items():
        at = " ".join(f"{offsets[sense]:08d}" for sense in senses)
        index.append(f"{word} n {len(senses)} 1 @ {len(senses)} {counted} {at}  \n")
    root = tmp_path / "wordnet"
    root.mkdir()
    for name, content in (("data.noun", lines), ("index.noun", index)):
        (root / name).write_text("  1 WordNet 3.0 Copyright\n" + "".join(content))
    return root


@pytest.fixture
def kitchen(tmp_path) -> Path:
    file = tmp_path / "kitchen.yaml"
    file.write_text(KITCHEN)
    return file


def test_senses(folder):
    nouns = WordNet(folder)
    assert len(nouns.senses("Mug")) == 3
    assert nouns.senses("beer-mug") == nouns.senses("beer mug") != ()
    assert nouns.senses("nothing") == ()
    # Uncounted senses: things go before persons, and both before quantities; names do not count.
    assert nouns.sense(nouns.main_sense("mug")).definition == "with handle and usually cylindrical"
    assert nouns.sense(nouns.main_sense("crane")).definition == "lifts heavy objects"
    assert nouns.main_sense("bucket") == nouns.main_sense("pail")
    assert nouns.main_sense("mugful") is not None
    assert nouns.main_sense("Stephen Crane") is None
    assert nouns.is_scientific("Mus musculus")
    assert not nouns.is_scientific("Stephen Crane")
    assert nouns.version == "WordNet 3.0"


def test_it_writes_a_table_to_edit(folder, kitchen, capsys):
    assert main(["aliases", str(kitchen), "--wordnet", str(folder)]) == 0
    said = capsys.readouterr().out
    out = kitchen.with_name("kitchen-aliases.yaml")
    assert f"{out}: 3 words from {folder} for 2 classes" in said
    assert "does not know blorple" in said
    assert f"attn2mask build {out}" in said
    old, new = load_table(str(kitchen)), load_table(str(out))
    assert new.classes[0].aliases == ("beaker", "no", "beer mug", "stein", "coffee mug")
    assert [c.aliases for c in new.classes[1:]] == [(), ()]
    assert (new.names, new.compounds, new.caption_style) == (old.names, old.compounds, old.caption_style)
    assert new.classes[0].color == (1, 2, 3)
    text = out.read_text()
    assert "# mug: with handle and usually cylindrical" in text
    assert "mostly another thing: bucket" in text
    assert "another mug (a person who is gullible): chump" in text
    assert "Mus musculus" not in text
    assert kitchen.read_text() == KITCHEN


def test_words_of_two_classes_are_left_out(folder, tmp_path):
    file = tmp_path / "t.yaml"
    file.write_text("name: t\nclasses: [{name: mug}, {name: crane}, {name: bucket, aliases: [beer mugs]}]")
    # A derrick is a stein here, in a sense that is not its main one; coffee mug's neighbor is a class.
    assert main(["aliases", str(file), "--wordnet", str(folder), "--out", str(tmp_path / "out.yml")]) == 0
    mug, crane, bucket = load_table(str(tmp_path / "out.yml")).classes
    assert "beer mug" not in mug.aliases
    assert crane.aliases == ("derrick",)
    assert bucket.aliases == ("beer mugs", "pail")


def test_the_number_of_words(folder, kitchen, tmp_path):
    out = tmp_path / "out.yaml"
    assert main(["aliases", str(kitchen), "--wordnet", str(folder), "--out", str(out), "--most", "1"]) == 0
    assert load_table(str(out)).classes[0].aliases == ("beaker", "no", "beer mug")
    assert "more of them: stein, coffee mug" in out.read_text()


def test_mistakes(folder, kitchen, tmp_path, capsys, monkeypatch):
    def refused(*argv: str) -> str:
        assert main(["aliases", *argv]) == 2
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith("attn2mask: error: ")
        return line

    assert "TABLE is missing" in refused()
    assert "voc has its aliases already" in refused("voc")
    assert "cannot be read" in refused(str(tmp_path / "nothing.yaml"))
    assert "must be at least 1" in refused(str(kitchen), "--most", "0")
    assert "cannot be read: No such file" in refused(str(kitchen), "--wordnet", str(tmp_path / "nowhere"))
    monkeypatch.setattr(wordnet, "places", lambda: [tmp_path / "nowhere", tmp_path / "nowhere.zip"])
    assert "WordNet is not installed: `apt install wordnet-base`" in refused(str(kitchen))
    out = tmp_path / "kitchen-aliases.yaml"
    out.write_text("edited")
    assert "exists, and may hold your edits" in refused(str(kitchen), "--wordnet", str(folder))
    assert out.read_text() == "edited"
    (folder / "data.noun").write_text("broken")
    assert "is broken: it has no sense at" in refused(
        str(kitchen), "--wordnet", str(folder), "--out", str(tmp_path / "o.yaml")
    )
    assert not (tmp_path / "o.yaml").exists()


def test_where_it_lies(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("WNSEARCHDIR", str(folder))
    assert find_wordnet().path == folder
    monkeypatch.delenv("WNSEARCHDIR")
    corpora = tmp_path / "nltk" / "corpora"
    corpora.mkdir(parents=True)
    with zipfile.ZipFile(corpora / "wordnet.zip", "w") as archive:  # as nltk downloads it
        for name in wordnet.FILES:
            archive.write(folder / name, f"wordnet/{name}")
    monkeypatch.setenv("NLTK_DATA", str(tmp_path / "nltk"))
    assert corpora / "wordnet.zip" in wordnet.places()
    assert len(WordNet(corpora / "wordnet.zip").senses("mug")) == 3
    (corpora / "broken.zip").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        WordNet(corpora / "broken.zip")


@pytest.mark.skipif(
    not Path("/usr/share/wordnet/data.noun").is_file(), reason="Debian's wordnet-base is not here"
)
def test_debians_wordnet(kitchen, tmp_path):
    out = tmp_path / "out.yaml"
    assert main(["aliases", str(kitchen), "--wordnet", "/usr/share/wordnet", "--out", str(out)]) == 0
    content = yaml.safe_load(out.read_text())
    assert "beer mug" in content["classes"][0]["aliases"]
