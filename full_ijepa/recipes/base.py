"""What a run is made of: one frozen dataclass, a reason beside every field. The comments are also the help texts."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, replace
from typing import Any, Literal

from full_ijepa.pixels import Pixels, both

SCHEMA = 1  # raised when a field changes its meaning: old checkpoints then say so instead of continuing wrongly


@dataclass(frozen=True)
class Recipe:
    """A run; its values: ViT-B/16 on STL-10, but for micro_batch, contexts and compile. Recipes name what differs."""

    # "ijepa" predicts features of hidden blocks, "mae" pixels of hidden patches; all else can stay the same
    method: Literal["ijepa", "mae"] = "ijepa"

    # --- data

    # "stl10", "imagenet", "cifar10", "cifar100", "shapes", "folder:PATH"; WebDataset's "shards:FOLDER" or
    # "shards:NAME-{000..123}.tar" (paths or addresses); Hugging Face's "hf:PATH_OR_NAME[@CONFIG][:SPLIT]"
    data: str = "stl10"
    # pixels that the encoder sees: the side of a square, or height and width
    image_size: int | tuple[int, int] = 224
    # channels of the pictures; 0 for as many as they have: 3 for colour, 1 where all are grey
    channels: int = 0
    # what their numbers are, "auto" from the files; "float32" for all that is not 8 or 16 bit without sign
    depth: Literal["auto", "uint8", "uint16", "float32"] = "auto"
    # in the files' units, one number or one a channel; none: 127.5 for 8-bit colour, else measured on training pictures
    mean: tuple[float, ...] = ()
    # likewise; none: 63.75 for 8-bit colour
    std: tuple[float, ...] = ()
    # pages of a stack (TIFF, DICOM) are "channels", or planes of which the "max" or "mean" is taken
    stack: Literal["channels", "max", "mean"] = "channels"
    # share of the picture that a crop keeps; the paper's range, narrower for small pictures
    crop_scale: tuple[float, float] = (0.3, 1.0)
    # width/height of a crop; torchvision's range, so that a circle may become an ellipse but not a line
    crop_aspect: tuple[float, float] = (0.75, 4 / 3)
    # left and right look alike in photographs; turn off for text and digits
    flip: bool = True
    # processes that decode pictures too many for memory or larger than image_size; 0 decodes in the training process
    workers: int = 8
    # go on although more than one in twenty of a folder's files cannot be read
    allow_skipped: bool = False
    # shards whose pictures are shuffled together: more mix better, of remote ones fewer need less room
    shards_together: int = 32
    # GB that remote shards may take in the cache folder (IJEPA_CACHE); room for twice shards_together is needed
    shard_room: float = 20.0
    # "gpu" leaves JPEG files to the GPU's decoder, where processor cores are too few; colours differ by a few levels
    decode: Literal["workers", "gpu"] = "workers"

    # --- encoder

    # width, depth and heads by name: "toy", "ti", "s", "b", "l", "h", "g" (full_ijepa.vit.SIZES)
    encoder: Literal["toy", "ti", "s", "b", "l", "h", "g"] = "b"
    # side of a patch in pixels; halving it makes four times as many tokens
    patch: int = 16
    # "fixed" sin-cos as in the paper, or "learned" from that start
    positions: Literal["fixed", "learned"] = "fixed"
    # share of blocks skipped at random for an image (stochastic depth); 0 as in the paper, more for long runs
    drop_path: float = 0.0

    # --- predictor (I-JEPA) or decoder (MAE)

    # narrower than the encoder, so that the work is done there; the paper's width
    predictor_width: int = 384
    # the paper has 6 for ViT-B, 12 for ViT-L and ViT-H
    predictor_depth: int = 6
    # as many as the encoder, the released code's convention
    predictor_heads: int = 12
    # a target block at a time as in the paper, or all in one sequence, which is cheaper
    predictor_mode: Literal["block", "joint"] = "block"

    # --- masks (I-JEPA)

    # a name of full_ijepa.masking.STRATEGIES; all but the first are for comparison
    masks: Literal["multiblock", "complement", "single_block", "random", "released", "small_context"] = "multiblock"
    # blocks to predict; None here and below: what the strategy has, for multiblock the paper's four
    targets: int | None = None
    # share of the picture that a block to predict covers; multiblock's is the paper's 0.15-0.2
    target_scale: tuple[float, float] | None = None
    # height/width of a block to predict; multiblock's is the paper's 0.75-1.5
    target_aspect: tuple[float, float] | None = None
    # share of the picture that the context block covers before targets leave it; multiblock's is the paper's 0.85-1
    context_scale: tuple[float, float] | None = None
    # a picture left with fewer context patches is drawn again; multiblock's is a sixteenth of the patches
    min_context: int | None = None
    # contexts of different sizes: "packed" one after the other, nothing lost, made for GPUs in half precision; cut to
    # the smallest of a few "groups", plain tensors that are fast everywhere; or all "cut" to the smallest
    contexts: Literal["groups", "packed", "cut"] = "groups"
    # of contexts that are grouped; more groups keep more patches
    groups: int = 4
    # I-JEPA: "smooth_l1" (released code, "auto") or "l2" (paper); MAE: "l2" (paper, "auto") or "l1"
    loss: Literal["auto", "smooth_l1", "l2", "l1"] = "auto"
    # weights of the variance and covariance terms on pooled context features (two images at least); 0: the plain method
    regulariser: tuple[float, float] = (0.0, 0.0)
    # share of patches that MAE hides; the paper's
    hidden: float = 0.75

    # --- length and steps

    # passes over the data
    epochs: float = 50.0
    # images of an optimiser step, over all processes and accumulated micro-batches together
    batch: int = 256
    # images that one process holds at a time; lower it when memory runs out (masks are drawn a micro-batch at a time)
    micro_batch: int = 64
    # "adamw" as everywhere, or "muon" for the blocks' matrices, which made the toy learn faster (not with fsdp or fp16)
    optimiser: Literal["adamw", "muon"] = "adamw"
    # peak rate; the released configs use 1e-3 at batch 2048, small batches want less or a long warm-up
    lr: float = 1e-3
    # rate of the first step, from which warm-up rises; the released configs have 2e-4
    start_lr: float = 0.0
    # rate at the end; the released configs' value
    final_lr: float = 1e-6
    # passes over the data before the peak
    warmup_epochs: float = 15.0
    # on matrices, from start to end; the paper's, along the released code's cosine
    weight_decay: tuple[float, float] = (0.04, 0.4)
    # weight decay of the matrices that lead in and out; negative: the same as the others
    ends_decay: float = -1.0
    # EMA momentum at the start and at the end, linear between; 1/(1 - m) steps should be a small part of the run
    momentum: tuple[float, float] = (0.996, 1.0)
    # the gradient's norm is cut to this; 0 leaves it
    clip: float = 3.0
    # of weights, data order, crops and masks
    seed: int = 0

    # --- machine

    # "bf16", "fp16" (with loss scaling), "fp32"; "auto" is bf16 where the device multiplies it fast
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    # activation checkpointing: one more forward pass a step, for a fraction of the memory
    checkpointing: bool = False
    # torch.compile block by block, for GPUs and long runs: the first steps wait for the compiler
    compile: bool = False
    # "ddp" copies the model to every process, "fsdp" shares out weights, gradients and the optimiser's state, for
    # models that do not fit; with bf16 products it also adds up in bf16 what blocks find
    parallel: Literal["ddp", "fsdp"] = "ddp"
    # fsdp: processes that share one copy among them, those of a machine for instance; 0 for all
    shard_size: int = 0

    # --- what is written

    # optimiser steps between two rows of history
    log_every: int = 20
    # optimiser steps between two rows that also say what features are like (std, rank, loss of each place's mean); 0: a
    # fiftieth of the run, at most 200
    watch_every: int = 0
    # passes over the data between two checkpoints
    checkpoint_epochs: float = 1.0
    # checkpoints kept beside the last, oldest deleted first
    keep: int = 2
    # passes over the data between two online probes (kNN on the training labels' held-out part); 0 for none. The best
    # checkpoint is chosen by them, or by effective rank where there are no labels
    probe_epochs: float = 5.0
    # boards that draw the history: "tensorboard", "wandb", "mlflow", "trackio"; history.jsonl is written in any case
    log_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)

    # --- what is refused

    # go on although the rate is more than ten times what the batch and the encoder's width bear
    allow_high_rate: bool = False

    # --- labels of a folder of pictures, for the probe; `evaluate` asks for the same (full_ijepa.table.Table)

    # a table beside the folder (.csv, .tsv, .parquet); what it gives to the test part is not trained on
    labels: str = ""
    # its column of classes, numbers or tags; several columns are tags or numbers
    label_column: tuple[str, ...] = ()
    # its column of pictures, relative to the folder or to the table; "": one called path, image, file ...
    path_column: str = ""
    # its column of patients, slides, cameras ...: a group never lies on both sides of a division
    group_column: str = ""
    # its column of "train" and "test"; "": the folders of that name, else a fifth is set aside
    split_column: str = ""
    # what labels are, instead of what they look like
    task: Literal["auto", "classes", "tags", "numbers"] = "auto"

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch",
            "micro_batch",
            "lr",
            "patch",
            "groups",
            "log_every",
            "keep",
            "shards_together",
            "shard_room",
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} {value} must be above 0")
        if self.batch % self.micro_batch and self.batch > self.micro_batch:
            raise ValueError(f"batch {self.batch} is not a whole number of micro-batches of {self.micro_batch}")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"a warm-up of {self.warmup_epochs} epochs does not end within {self.epochs} epochs")
        if not 0 <= self.final_lr <= self.lr:
            raise ValueError(
                f"final_lr {self.final_lr:g} is not between 0 and lr {self.lr:g}: the rate would rise to the end of "
                "the run. Lower final_lr; the released configs end at a thousandth of the peak"
            )
        if not 0 <= self.start_lr <= self.lr:
            raise ValueError(f"start_lr {self.start_lr:g} is not between 0 and lr {self.lr:g}, to which warm-up rises")
        tops = dict(crop_scale=1.0, crop_aspect=math.inf, target_scale=1.0, target_aspect=math.inf, context_scale=1.0)
        for name, top in tops.items():
            low, high = getattr(self, name) or (1.0, 1.0)  # None: the mask strategy's own
            if not 0 < low <= high <= top:
                raise ValueError(f"{name} {low} {high} is not a range within (0, {top}]")
        self.check_masks()
        for name in ("momentum", "weight_decay"):
            if not all(0 <= value <= 1 for value in getattr(self, name)):
                raise ValueError(f"{name} {getattr(self, name)} is not within [0, 1]")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path {self.drop_path} is not within [0, 1)")
        if (self.method, self.loss) in (("mae", "smooth_l1"), ("ijepa", "l1")):
            choice = "l2 or l1" if self.method == "mae" else "smooth_l1 or l2"
            raise ValueError(f"{self.method} has no loss {self.loss!r}: choose {choice}")
        if (self.optimiser, self.parallel) == ("muon", "fsdp"):
            raise ValueError("muon needs whole matrices, which fsdp shares out: choose adamw or ddp")
        if self.shard_size < 0 or (self.shard_size and self.parallel != "fsdp"):
            raise ValueError(f"shard_size {self.shard_size} is a number of processes, for parallel fsdp; 0 for all")
        if (self.optimiser, self.precision) == ("muon", "fp16"):
            raise ValueError("fp16 scales the loss for one optimiser, muon is two: choose adamw, bf16 or fp32")
        if any(self.regulariser) and min(self.batch, self.micro_batch) < 2:
            raise ValueError("the regulariser compares images: it needs a micro_batch of at least 2")
        if self.labels and self.data != "imagenet" and not self.data.startswith("folder:"):
            raise ValueError(f"a table of labels goes with a folder of pictures (folder:PATH), not with {self.data!r}")
        if not self.labels and (self.label_column or self.path_column or self.group_column or self.split_column):
            raise ValueError("columns are those of a table of labels: name it too (labels)")
        if any(side < 1 or side % self.patch for side in self.sides):
            shown = " ".join(map(str, dict.fromkeys(self.sides)))
            raise ValueError(f"image_size {shown} is not a whole number of patches of {self.patch} px")
        if self.channels < 0:
            raise ValueError(f"channels {self.channels} must be above 0, or 0 for as many as the pictures have")
        if bool(self.mean) != bool(self.std):
            raise ValueError("mean and std belong together: give both, or neither")
        if self.mean and self.channels:
            self.pixels  # noqa: B018 (raises if their numbers do not fit)

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width in pixels that the encoder sees."""
        return both(self.image_size)

    @property
    def pixels(self) -> Pixels:
        """What the numbers of the pictures mean; photographs, where a recipe has not met its pictures yet."""
        known = Pixels(self.channels or 3, "uint8" if self.depth == "auto" else self.depth, stack=self.stack)
        return replace(known, mean=self.mean, std=self.std) if self.mean else known

    def check_masks(self) -> None:
        """Raise ValueError for counts below 1, and for what the mask strategy does not let one choose."""
        for name in ("targets", "min_context"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"{name} {count} must be at least 1")
        for name, has in FIXED.get(self.masks, {}).items():
            asked = getattr(self, name)
            if asked not in (None, has):
                told = f"always have {name} {has}" if has else f"have no {name}"
                raise ValueError(f"masks {self.masks} {told}: {asked} cannot be chosen; multiblock takes all of these")

    @property
    def mask_options(self) -> dict[str, Any]:
        """Keyword arguments of the mask strategy: what the recipe says and the strategy lets one choose."""
        free = [name for name in MASK_OPTIONS if name not in FIXED.get(self.masks, {})]
        return {name: value for name in free if (value := getattr(self, name)) is not None}

    @property
    def loss_name(self) -> str:
        """The loss by name, "auto" resolved."""
        return self.loss if self.loss != "auto" else {"ijepa": "smooth_l1", "mae": "l2"}[self.method]

    @classmethod
    def read(cls, said: dict) -> Recipe:
        """The recipe that JSON holds, in which tuples have become lists. Raises TypeError for unknown fields."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in said.items()})

    def filled(self) -> Recipe:
        """The same recipe with channels, depth, mean and std written out (what older runs left unsaid: photographs)."""
        known = self.pixels
        return self.replace(channels=known.channels, depth=known.depth, mean=known.mean, std=known.std)

    def located(self) -> Recipe:
        """The same recipe with paths in full: it means the same from whatever folder a command is called."""
        labels = os.path.abspath(os.path.expanduser(self.labels)) if self.labels else ""
        return self.replace(data=in_full(self.data), labels=labels)

    def replace(self, **changes) -> Recipe:
        """The same recipe with other values. Raises ValueError if they do not fit together."""
        return dataclasses.replace(self, **changes)


def in_full(data: str) -> str:
    """The name of a set, the path in it absolute."""
    scheme, _, where = data.partition(":")
    if scheme not in ("folder", "shards") or "://" in where:
        return data
    return f"{scheme}:{os.path.abspath(os.path.expanduser(where))}"


# What a mask strategy has no choice of: the value that it always has, None where the word means nothing to it. What is
# not listed here is a keyword argument of the strategy (tests/full/test_masking.py compares).
FIXED: dict[str, dict[str, object]] = {
    "multiblock": {},
    "complement": dict(context_scale=(1.0, 1.0)),
    "single_block": dict(targets=1, context_scale=(1.0, 1.0)),
    "random": dict(targets=1, target_aspect=None, context_scale=None, min_context=None),
    "released": {},
    "small_context": dict(min_context=None),
}
MASK_OPTIONS = ("targets", "target_scale", "target_aspect", "context_scale", "min_context")
