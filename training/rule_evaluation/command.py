"""`attn2mask evaluate-rules`: measure rules of labels on images with masks, without painting.

    attn2mask evaluate-rules --dataset VOCdevkit/VOC2012 --presets photo paper --out rules.json
    attn2mask evaluate-rules --dataset VOCdevkit/VOC2012 --model stable-diffusion-v1-5/stable-diffusion-v1-5

Attention is simulated from the masks. With `--model` it is recorded: each image is encoded, noised, and
denoised in one pass with the words of its classes. Beside `rules.json` it writes `rules.yaml`, the options
that `--config` reads, and `rules.png`, the masks of each preset side by side.
"""

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import write_file
from attn2mask.builders.options import CheckedOptions, option, stored_options, to_yaml
from attn2mask.builders.provenance import FORMAT_VERSION
from attn2mask.builders.rules import PAINTERS, Rules, check_preset, is_of_this_project, load_rules
from attn2mask.builders.table_reader import load_table
from attn2mask.training.config import measured_images, measured_split

if TYPE_CHECKING:
    from attn2mask.training.rule_evaluation.measurement import Case, Judged

    # What was judged on an image, by preset and by the name of its attention maps.
    Results = Mapping[str, Mapping[str, Judged]]

logger = logging.getLogger(__name__)

SIDE = 512  # of an image in pixels, without a model
SHOWN, TILE = 8, 192  # images on the sheet, and their side in pixels
SHOWN_LEVEL = "blur 1.6, noise 0.025"  # of the masks on the sheet
AHEAD = 2  # images that wait for each labeling process
HALVES = ("even", "odd")  # images by their position: rules are chosen on one half, and reported on the other


@dataclass(frozen=True)
class EvaluateRulesConfig(CheckedOptions):
    """The options of `attn2mask evaluate-rules`. Raises UserError for an unknown preset and for values out of
    range.
    """

    dataset: str | None = measured_images()
    split: str | None = measured_split()
    table: str | None = option(
        "class table of --dataset", None, default_text="the one that the dataset's build recorded, or voc"
    )
    num_images: int | None = option(
        "measure on the first N images", None, at_least=1, default_text="all images"
    )
    presets: list[str] | None = option(
        "presets of rules to compare",
        None,
        default_text="those that are not of other methods",
        nargs="+",
        metavar="PRESET",
    )
    seed: int = option("random seed of the simulated attention, or of the noise", 0, at_least=0)
    model: str | None = option(
        "record the attention of this painter: embedded, a folder with a diffusers pipeline, or a model of"
        " the Hub",
        None,
        default_text="attention is simulated",
    )
    revision: str | None = option("revision of --model on the Hub", None, default_text="the newest")
    out: str = option(
        "JSON file of the figures; options and images of masks go beside it",
        "rules.json",
        stored=False,
        metavar="FILE",
    )
    workers: int | None = option(
        "number of labeling processes",
        None,
        at_least=1,
        stored=False,
        default_text="one for each core",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for preset in self.presets or ():
            check_preset(preset, "--presets")
            if load_rules(preset).propagation_power:
                raise UserError(
                    f"--presets {preset}: its rules need self-attention, which is neither simulated nor"
                    " recorded here"
                )
        if self.revision is not None and self.model is None:
            raise UserError("--revision is used only with --model")
        if Path(self.out).suffix != ".json":
            raise UserError(f"--out {self.out}: the name must end in .json")

    def rules(self) -> dict[str, Rules]:
        """The rules of each preset to compare."""
        presets = self.presets or filter(is_of_this_project, PAINTERS)
        return {name: load_rules(name) for name in dict.fromkeys(presets)}


def run(config: EvaluateRulesConfig) -> None:
    """Measure, write the files and print the figures. Raises UserError for what cannot be measured."""
    started, out = time.monotonic(), Path(config.out)
    if out.is_dir():
        raise UserError(f"--out {out} is a directory")
    logger.info("Reading the images of %s", config.dataset)
    from tqdm import tqdm

    from attn2mask.builders.workers import default_workers, labeling_pool
    from attn2mask.training.benchmarks import open_images, recorded_table
    from attn2mask.training.rule_evaluation.measurement import make_case

    table = load_table(config.table) if config.table else recorded_table(config.dataset) or load_table("voc")
    rules = config.rules()
    images = open_images(config.dataset, config.split, table)
    count = min(len(images), config.num_images or len(images))
    workers = config.workers or default_workers() + 1
    with labeling_pool(workers) as pool:
        if config.model is None:
            attention = simulated(rules, table, config.seed, pool)
        else:
            attention = recorded(config, rules, table, pool)
        examples = ((index, images[index]) for index in range(count))
        cases = (make_case(i, e.image, e.target, table, attention.side, config.seed) for i, e in examples)
        shown = tqdm((case for case in cases if case is not None), "measuring", unit=" images", total=count)
        # Of most images only the counts are kept, since a benchmark may have thousands.
        results: list[tuple[int, Results]] = []
        drawn: list[tuple[Case, Results]] = []
        for case, judged in results_of(shown, attention, AHEAD * workers):
            results.append((case.index, judged))
            drawn += [(case, judged)] if len(drawn) < SHOWN else []
    if not results:
        raise UserError(f"no image of {config.dataset} shows a class of {table.name} and lacks another one")
    report = {
        "format_version": FORMAT_VERSION,
        "options": stored_options(config),
        "table": table.name,
        "attention": attention.facts,
        "images": len(results),
        "presets": {name: preset_figures(results, name, table) for name in rules},
        "seconds": round(time.monotonic() - started, 1),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, (json.dumps(report, indent=2) + "\n").encode())
    options = to_yaml(config, f"attn2mask evaluate-rules --config {out.stem}.yaml")
    write_file(out.with_suffix(".yaml"), options.encode())
    draw_masks(drawn, table, out.with_suffix(".png"), attention.shown)
    print(as_text(report))
    made = ", ".join(str(out.with_suffix(ending)) for ending in (".json", ".yaml", ".png"))
    print(f"made in {report['seconds']:.0f} s: {made}")
    print(f"next: look at {out.with_suffix('.png')}, and give the best preset to attn2mask build --preset")


# Attention


@dataclass(frozen=True)
class Attention:
    """Where the attention comes from.

    Attributes:
        side: the height and width of the images in pixels.
        shown: the name of the attention maps whose masks are drawn.
        facts: what the report says about it.
        submit: starts to judge an image in a labeling process. Its second argument is `shown`, or None to
            keep no masks.
    """

    side: int
    shown: str
    facts: dict[str, Any]
    submit: Callable[["Case", str | None], "Future[Results]"]


def simulated(
    rules: Mapping[str, Rules], table: ClassTable, seed: int, pool: ProcessPoolExecutor
) -> Attention:
    """Attention that is simulated from the masks, at every level."""
    from attn2mask.training.rule_evaluation.measurement import judge_simulated
    from attn2mask.training.rule_evaluation.simulation import LEVELS

    def submit(case: "Case", shown: str | None) -> "Future[Results]":
        return pool.submit(judge_simulated, case, rules, table, seed, shown)

    facts = {"simulated": {name: asdict(level) for name, level in LEVELS.items()}}
    return Attention(SIDE, SHOWN_LEVEL, facts, submit)


def recorded(
    config: EvaluateRulesConfig, rules: Mapping[str, Rules], table: ClassTable, pool: ProcessPoolExecutor
) -> Attention:
    """The attention of a painter in one denoising pass, with the words of the classes of each image."""
    import numpy as np
    import torch

    from attn2mask.builders.layouts import UNet
    from attn2mask.builders.painter import load_painter
    from attn2mask.training.mask_quality import class_prompt, record_image
    from attn2mask.training.rule_evaluation.measurement import judge, scores_of
    from attn2mask.training.single_pass import TIMESTEP

    logger.info("Loading the painter %s", config.model)
    painter = load_painter(config.model, config.revision)
    if not isinstance(painter.layout, UNet):
        raise UserError(
            f"--model {config.model}: images can be given to Stable Diffusion 1.x, 2.x and XL alone; leave"
            " --model out to simulate the attention"
        )
    side = min(painter.defaults.height, painter.defaults.width)

    def submit(case: "Case", shown: str | None) -> "Future[Results]":
        rng = np.random.default_rng([config.seed, case.index])
        prompt = class_prompt(case.classes, "", table, painter, rng)
        image = record_image(painter, case.image, prompt, config.seed + case.index)
        of_class = dict(zip(image.classes, image.maps, strict=True))
        # A class that has no room in the prompt has an empty map.
        empty = {size: torch.zeros_like(one) for size, one in image.maps[0].items()}
        maps = {config.model: [of_class.get(k, empty) for k in case.classes]}
        return pool.submit(judge, case, scores_of(maps, rules, image.latent_side), rules, table, shown)

    return Attention(side, config.model, {"recorded": {**painter.facts, "timestep": TIMESTEP}}, submit)


def results_of(
    cases: Iterable["Case"], attention: Attention, ahead: int
) -> Iterator[tuple["Case", "Results"]]:
    """Each image with what was judged on it. At most `ahead` images wait for a labeling process."""
    waiting: deque[tuple[Case, Future[Results]]] = deque()
    for number, case in enumerate(cases):
        waiting.append((case, attention.submit(case, attention.shown if number < SHOWN else None)))
        if len(waiting) > ahead:
            first, task = waiting.popleft()
            yield first, task.result()
    yield from ((case, task.result()) for case, task in waiting)


# The report


def preset_figures(
    results: Sequence[tuple[int, "Results"]], preset: str, table: ClassTable
) -> dict[str, Any]:
    """The figures of a preset over all images, and over each of `HALVES`. `results` has the position of each
    image in the dataset, and what was judged on it.
    """
    from attn2mask.training.rule_evaluation.measurement import figures

    halves = {
        half: figures([of[preset] for index, of in results if index % 2 == remainder], table)
        for remainder, half in enumerate(HALVES)
    }
    return {**figures([of[preset] for _, of in results], table), "halves": halves}


def draw_masks(
    results: Sequence[tuple["Case", "Results"]], table: ClassTable, path: Path, shown: str
) -> None:
    """Draw images, their given masks, and the masks of each preset as strips one below the other."""
    import numpy as np
    from PIL import Image

    from attn2mask.builders.images import overlay
    from attn2mask.builders.label import to_ids
    from attn2mask.training.charts import strip_sheet

    def strip(tiles: Iterable[np.ndarray]) -> np.ndarray:
        return np.hstack([np.asarray(Image.fromarray(tile).resize((TILE, TILE))) for tile in tiles])

    strips = {"image": strip(case.image for case, _ in results)}
    strips["given"] = strip(
        overlay(case.image, to_ids(case.target, case.classes, table), table) for case, _ in results
    )
    for preset in results[0][1]:
        strips[preset] = strip(overlay(case.image, of[preset][shown].mask, table) for case, of in results)
    strip_sheet(strips, path, [f"masks after the CRF; attention: {shown}"])


COLUMNS = {
    "coarse": "coarse",
    "refined": "refined",
    "small": "small_refined",
    "lost": "classes_lost",
    "classes": "classes",
    "reliable": "reliable",
    "precision": "precision",
    "absent": "absent",
}


def as_text(report: Mapping[str, Any]) -> str:
    """The figures of each preset, and its refined mean IoU at each level, as tables."""
    presets = report["presets"]
    width = max(map(len, [*presets, "preset"])) + 2
    lines = [f"{'preset':{width}}" + "".join(f"{title:>11}" for title in COLUMNS)]
    for name, preset in presets.items():
        lines.append(f"{name:{width}}" + "".join(f"{_entry(preset[key]):>11}" for key in COLUMNS.values()))
    levels = next(iter(presets.values()))["levels"]
    if len(levels) > 1:
        width = max(map(len, levels)) + 2
        lines += ["", f"{'refined':{width}}" + "".join(f"{name:>13}" for name in presets)]
        for level in levels:
            values = (_entry(preset["levels"][level]["refined"]) for preset in presets.values())
            lines.append(f"{level:{width}}" + "".join(f"{value:>13}" for value in values))
    return "\n".join(lines)


def _entry(value: float | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"
