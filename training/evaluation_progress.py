"""The progress of an evaluation: a line of JSON for each image, from which a killed one continues."""

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attn2mask.builders.files import write_file
from attn2mask.training.evaluation import ImageCounts


class EvaluationProgress:
    """What was counted so far, in memory and in a file. `identity` holds everything that the counts depend
    on: a file of another evaluation is replaced.

    Attributes:
        counts: what was counted of each image, by its index.
    """

    def __init__(self, file: Path, identity: dict[str, Any]) -> None:
        self.file, self.counts = file, {}
        lines = file.read_text("utf-8").splitlines() if file.is_file() else []
        header = json.dumps(identity, sort_keys=True)
        if lines[:1] == [header]:
            for line in lines[1:]:
                with suppress(ValueError):  # a killed process may leave part of a line
                    entry = json.loads(line)
                    index = entry.pop("index")
                    self.counts[index] = ImageCounts(**entry)
        kept = [header, *(self._line(index, counts) for index, counts in self.counts.items())]
        write_file(file, "".join(f"{line}\n" for line in kept).encode())

    def add(self, index: int, counts: ImageCounts) -> None:
        """Keep what was counted of an image."""
        self.counts[index] = counts
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(f"{self._line(index, counts)}\n")

    def remove(self) -> None:
        """Remove the file: the evaluation is finished."""
        self.file.unlink(missing_ok=True)

    @staticmethod
    def _line(index: int, counts: ImageCounts) -> str:
        return json.dumps({"index": index, **asdict(counts)})
