"""Drawn scenes on disk, which the painter, the referee and the backbone are trained on.

Each process draws its own part once, and trains on that part.
"""

import json
from pathlib import Path

import numpy as np
from accelerate import PartialState
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from attn2mask.builders.drawn.kinds import KINDS
from attn2mask.builders.drawn.scenes import VOC_THINGS, draw_scene, random_things
from attn2mask.builders.files import write_file
from attn2mask.training.referee import to_tensor

IMAGE_SIZE = 128  # pixels: height and width of every scene
THINGS = (0.4, 0.45, 0.15)  # shares of the scenes with one, two and three things
# Share of single things and plain grounds of Cityscapes' classes among the scenes of painter and CLIP.
STUDIES = 0.12


class SceneStore:
    """The scenes of one process: `images` (N, 128, 128, 3) uint8, `masks` (N, 128, 128) uint8, and for each
    in `scenes` {"things": [[index in KINDS, color], ...], "place": phrase}.
    """

    def __init__(self, folder: Path, process: int) -> None:
        self.images = np.load(folder / f"images-{process}.npy", mmap_mode="r")
        self.masks = np.load(folder / f"masks-{process}.npy", mmap_mode="r")
        lines = (folder / f"scenes-{process}.jsonl").read_text().splitlines()
        self.scenes = [json.loads(line) for line in lines]

    def crops(self, count: int, side: int, rng: np.random.Generator) -> Tensor:
        """Random crops (count, 3, side, side) in [-1, 1]; three of four are centered on a thing."""
        out = np.empty((count, side, side, 3), np.uint8)
        for i, index in enumerate(rng.integers(len(self.images), size=count)):
            y, x = rng.integers(0, IMAGE_SIZE, 2)
            inside = np.flatnonzero(self.masks[index])
            if len(inside) and rng.random() < 0.75:
                y, x = divmod(int(inside[rng.integers(len(inside))]), IMAGE_SIZE)
            y, x = np.clip([y - side // 2, x - side // 2], 0, IMAGE_SIZE - side)
            crop = self.images[index, y : y + side, x : x + side]
            out[i] = crop[:, ::-1] if rng.random() < 0.5 else crop
        return to_tensor(out)


def draw_scenes(folder: Path, state: PartialState, count: int, seed: int, studies: float = 0.0) -> SceneStore:
    """Draw this process's part of `count` scenes of all kinds, unless `folder` holds it already.

    The share `studies` of the scenes shows single things and plain grounds of Cityscapes' classes instead.
    """
    process = state.process_index
    folder.mkdir(parents=True, exist_ok=True)
    finished = folder / f"scenes-{process}.jsonl"
    if not finished.exists():
        indices = range(process, count, state.num_processes)
        shape = (len(indices), IMAGE_SIZE, IMAGE_SIZE)
        images = open_memmap(folder / f"images-{process}.npy", "w+", np.uint8, (*shape, 3))
        masks = open_memmap(folder / f"masks-{process}.npy", "w+", np.uint8, shape)
        lines = []
        bar = tqdm(indices, "drawing", disable=not state.is_main_process, mininterval=5)
        for row, index in enumerate(bar):
            rng = np.random.default_rng([seed, 1, index])
            if rng.random() < studies:
                scene = draw_scene("studies", rng, IMAGE_SIZE)
            else:
                scene = draw_scene("variety", rng, IMAGE_SIZE, random_things(rng, VOC_THINGS, THINGS))
            images[row], masks[row] = scene.image, scene.mask
            things = [[KINDS.index(thing.kind), thing.color] for thing in scene.things]
            lines.append(json.dumps({"things": things, "place": scene.place}))
        write_file(finished, "\n".join(lines).encode())
    state.wait_for_everyone()
    return SceneStore(folder, process)
