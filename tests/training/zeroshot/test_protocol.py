"""Protocols: what the publications did, and what is the same for all methods."""

from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

from attn2mask.builders.errors import UserError
from attn2mask.builders.table_reader import load_table
from attn2mask.training.zeroshot.protocol import PROTOCOLS, background_words, common, original, read_words
from attn2mask.training.zeroshot.segmenter import Preprocessor

VOC, CITYSCAPES = load_table("voc"), load_table("cityscapes")


def test_the_prompts_of_maskclip():
    protocol = original("maskclip", VOC)
    assert len(protocol.queries) == 20
    for query in protocol.queries:
        prompts = protocol.prompts(query)
        assert len(prompts) == len(set(prompts)) == 85
        assert all(query in prompt for prompt in prompts)
        assert "there is a " + query + " in the scene." in prompts
    assert protocol.background == "none"
    assert protocol.threshold is None


def test_the_names_and_words_of_sclip():
    protocol = original("sclip", VOC)
    names = dict(zip(VOC.names[1:], protocol.names, strict=True))
    assert [name for name, synonyms in names.items() if len(synonyms) > 1] == ["person", "tvmonitor"]
    assert len(names["person"]) == 7
    assert len(names["tvmonitor"]) == 5
    assert len(protocol.words) == 26
    assert len(protocol.queries) == 18 + 7 + 5 + 26
    assert len(protocol.prompts("cat")) == 80
    assert (protocol.scale, protocol.threshold, protocol.area) == (65, 0.1, 0.1)
    naclip = original("naclip", VOC)
    assert (naclip.queries, naclip.scale, naclip.area) == (protocol.queries, 40, 0)
    assert (naclip.refinement, protocol.refinement) == ("pamr", None)


def test_the_queries_of_clippy():
    protocol = original("clippy", VOC)
    assert len(set(protocol.queries)) == len(protocol.queries) == 60
    assert protocol.words[0] == "background"
    assert protocol.prompts("airplane") == ["a photo of an airplane"]
    assert protocol.prompts("bicycle") == ["a photo of a bicycle"]
    assert (protocol.size, protocol.crop) == (224, 224)


@pytest.mark.parametrize("method", PROTOCOLS)
def test_every_publication_names_each_class_once(method):
    protocol = original(method, VOC)
    assert len(protocol.names) == 20
    assert Counter(protocol.queries).most_common(1)[0][1] == 1
    assert protocol.name == protocol.facts()["name"] == "original"


def test_the_overlap_follows_from_the_stride():
    assert original("sclip", VOC).overlap == 1 - 112 / 224
    assert original("groupvit", VOC).overlap == 1 - 224 / 448
    assert (original("maskclip", VOC).window, original("groupvit", VOC).window) == (None, 448)


def test_a_name_has_the_article_that_its_sound_asks_for():
    protocol = replace(common(VOC), templates=("article",))
    assert protocol.prompts("aeroplane") == ["a photo of an aeroplane"]
    assert protocol.prompts("unicycle") == ["a photo of a unicycle"]


@pytest.mark.parametrize(
    ("method", "table", "message"),
    [
        ("align", VOC, "no publication defines how align is evaluated"),
        ("clipseg", VOC, "no publication defines how clipseg is evaluated"),
        ("maskclip", CITYSCAPES, "for VOC's classes, not for cityscapes"),
    ],
)
def test_without_a_protocol_of_a_publication(method, table, message):
    with pytest.raises(UserError, match=message) as error:
        original(method, table)
    assert "--protocol common" in str(error.value)


def test_the_common_protocol_has_the_names_of_the_table():
    protocol = common(VOC)
    names = dict(zip(VOC.names[1:], protocol.names, strict=True))
    assert names["bicycle"] == ("bicycle",)
    assert names["bus"] == ("bus",)
    assert {"aeroplane", "airplane"} <= set(names["aeroplane"])
    assert "airplanes" not in names["aeroplane"]
    assert protocol.prompts("bus") == ["a photo of a bus."]
    assert (protocol.size, protocol.window, protocol.overlap, protocol.crop) == (448, 448, 0.5, None)
    assert (common(VOC, size=224).window, common(VOC, overlap=0.25).overlap) == (224, 0.25)


def test_the_rule_for_the_background():
    assert common(VOC).background == "words"
    assert common(VOC).threshold is None
    assert common(CITYSCAPES).background == "none"
    assert common(VOC, "threshold").threshold == 0.5
    assert common(VOC, "threshold", threshold=0.2).threshold == 0.2
    assert common(VOC, "threshold").words == common(VOC, "none").words == ()
    assert common(VOC, "none").threshold is None
    with pytest.raises(UserError, match="cityscapes has no background; take --background none"):
        common(CITYSCAPES, "words")


def test_words_that_name_a_class_are_left_out():
    assert common(VOC, words=["sky", "Dogs", "sofa", "grass"]).words == ("sky", "grass")
    assert set(common(VOC).words) <= set(background_words())
    assert {"sky", "road"} <= set(common(VOC).words)
    with pytest.raises(UserError, match="no word is left"):
        common(VOC, words=["dogs"])


def test_words_come_from_a_file(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("sky\n\n  tall grass \nsky\n")
    assert read_words(str(file)) == ("sky", "tall grass")
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no word"):
        read_words(str(file))
    with pytest.raises(UserError, match="cannot be read"):
        read_words(str(tmp_path / "missing.txt"))


@pytest.mark.parametrize(("size", "expected"), [((20_000, 1), (448, 4096)), ((1, 20_000), (4096, 448))])
def test_a_narrow_image_is_not_enlarged_without_limit(size, expected):
    preprocessor = Preprocessor(common(VOC), "clip")
    assert preprocessor(Image.new("RGB", size))["pixel_values"].shape == (1, 3, *expected)
    assert preprocessor(Image.new("RGB", (896, 448)))["pixel_values"].shape == (1, 3, 448, 896)
