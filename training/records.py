"""The records of trainings, adaptations and evaluations: what their JSON files hold (`builders.records`)."""

from typing import Any, Required, TypedDict

from attn2mask.builders.records import Identity, Text


class Chosen(TypedDict, total=False):
    """The images on which something was chosen."""

    dataset: Required[str]
    split: str | None


class Rows(TypedDict, total=False):
    """The rows of a training, or those of one of its datasets: then with the name, the share of a batch, 0 to
    1, and the number of rows.
    """

    dataset: str
    on_hub: str | None
    share: float
    num_rows: int
    num_images: int
    identity: Identity | None
    license: Text
    revision: str | None


class TrainOptions(TypedDict, total=False):
    """The options of a training that cards and evaluations read."""

    dataset: list[str] | str | None
    eval_dataset: str | None
    eval_split: str | None
    backbone: str | None
    mix_probability: float | None
    preset: str | None
    trust_remote_code: bool


class PredictionSize(TypedDict, total=False):
    """The size of images in prediction, and how it was chosen.

    `tried` holds the mean IoU by size. `dataset` is None for rows of the training.
    """

    size: Required[int]
    tried: Required[dict[str, float | None]]
    images: Required[int]
    dataset: str | None


class TrainingRecord(TypedDict, total=False):
    """training_config.json of a checkpoint."""

    options: TrainOptions
    on_hub: dict[str, str | None]
    rows: Rows | list[Rows]
    table: str
    warmup_steps: int | None
    chosen_on: Chosen | None
    prediction_size: PredictionSize | None
    step: int
    seconds: float
    versions: dict[str, Any]


class Weights(TypedDict, total=False):
    """The pretrained weights of a backbone."""

    recipe: str | None
    sha256: str | None


class BackboneConfig(TypedDict, total=False):
    """The backbone in config.json."""

    model_type: str


class NetworkConfig(TypedDict, total=False):
    """config.json of a network."""

    model_type: str
    id2label: dict[str, str]
    class_table: str | None
    backbone_config: BackboneConfig | None
    backbone_from_scratch: bool
    backbone_weights: Weights | None
    resnet_d: bool
    auto_map: dict[str, Any]


class WeightsIndex(TypedDict, total=False):
    """model.safetensors.index.json: the file of each tensor."""

    weight_map: Required[dict[str, str]]


class LogLine(TypedDict, total=False):
    """A line of log.jsonl."""

    step: Required[int]
    loss_a: float
    loss_b: float
    images_per_second: float
    eval_mean_iou: float | None


class Scores(TypedDict, total=False):
    """The scores of one network or of both."""

    mean_iou: Required[float | None]
    per_class_iou: Required[dict[str, float | None]]
    pixel_accuracy: Required[float | None]
    num_images: Required[int]


class PlainScores(Scores, total=False):
    """The scores without test-time augmentation, beside those with it."""

    networks: dict[str, Scores]
    boundary_iou: float | None
    mean_iou_given_labels: float | None


class EvaluateOptions(TypedDict, total=False):
    """The options of an evaluation that cards read."""

    dataset: str | None
    split: str | None
    scales: str
    num_images: int | None


class MethodProtocol(TypedDict, total=False):
    """The protocol of a zero-shot method."""

    crop: Any
    window: int | None
    overlap: float | None
    templates: list[str]
    threshold: float | None


class MethodRecord(TypedDict, total=False):
    """A zero-shot method."""

    protocol: MethodProtocol


class Evaluated(TypedDict, total=False):
    """How scores were measured."""

    options: EvaluateOptions
    hub: str | None
    method: MethodRecord | None
    classes_scored: int


class MetricsRecord(Scores, total=False):
    """What `attn2mask evaluate` writes, or a training."""

    networks: dict[str, Scores]
    boundary_iou: float | None
    mean_iou_given_labels: float | None
    plain: PlainScores
    crf_mean_iou: float | None
    crf_pixel_accuracy: float | None
    step: int
    evaluated: Evaluated


class AdaptOptions(TypedDict, total=False):
    """The options of an adaptation that cards read."""

    instance_prompt: str | None
    preset: str | None


class AdaptData(TypedDict, total=False):
    """The images of an adaptation."""

    name: Required[str]
    images: Required[int]
    with_caption: Required[int]


class AdapterRecord(TypedDict, total=False):
    """training_config.json of a LoRA, and peft's adapter_config.json."""

    base_model: str
    base_model_name_or_path: str | None
    base_version: str | None
    license: Text
    table: str
    options: AdaptOptions
    data: AdaptData
    seconds: float
    versions: dict[str, Any]
