"""I-JEPA under the names of the world-model toolkits: `create_model("jepa", ...)`, `JEPAConfig` and `JEPAAgent`.

    import full_ijepa
    full_ijepa.create_model("jepa", dataset="imagefolder", root_path="pictures", epochs=100, batch_size=64).train()

Thin on purpose: a `JEPAConfig` becomes a `Recipe`, `train` is `full_ijepa.train.pretrain` and `evaluate` is
`full_ijepa.evaluate.evaluate`. NAMES holds every argument: what it becomes here, or why it is refused. Nothing is
ignored. `python -m full_ijepa.facade` prints the table; `help(full_ijepa.JEPAConfig)` ends with it.

Names and defaults are those of TorchWM, the toolkit that has this call (read in November 2026 in
github.com/ParamThakkar123/torchwm: docs/source/jepa.md, docs/source/configs_reference.md,
world_models/configs/jepa_config.py, world_models/models/jepa_agent.py); where its pages and its code differ, the pages
count. `blr` is MAE's (github.com/facebookresearch/mae, main_pretrain.py).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from full_ijepa import checkpoint
from full_ijepa import evaluate as judging
from full_ijepa.evaluate.run import load_run
from full_ijepa.loop import Run
from full_ijepa.recipes.base import Recipe
from full_ijepa.train import pretrain
from full_ijepa.vit import SIZES, Encoder
from toy_ijepa.patches import grid_size
from toy_ijepa.recipe import lookup

SMALL = 0.5  # share of the picture up to which a context stays whole and the targets lie elsewhere
MODELS = {"vit_tiny": "ti", "vit_small": "s", "vit_base": "b", "vit_large": "l", "vit_huge": "h"}
SETS = {name: name for name in ("imagefolder", "imagenet", "cifar10", "cifar100", "stl10", "shapes")}
SETS |= {"imagenet1k": "imagenet"}


@dataclass(frozen=True)
class Name:
    """One argument of the toolkits.

    ours     the fields of `Recipe` that it sets (or argument of `pretrain`), "" if it is refused or always so
    default  its value where none is said
    note     how it is meant, or the reason why it is refused
    only     the value that asks for what is always so here and passes; every other is refused
    same_as  another spelling of that name
    """

    ours: str = ""
    note: str = ""
    default: Any = None
    only: tuple = ()
    same_as: str = ""


NO_VIEWS = (
    "masks are all that I-JEPA does to a picture besides cropping and mirroring it; the method needs no distortions"
)

NAMES: dict[str, Name] = {
    # --- data
    "dataset": Name("data", ", ".join(SETS), "imagenet"),
    "root_path": Name("data", "folder that holds image_folder; also of imagenet"),
    "data_dir": Name(same_as="root_path"),
    "image_folder": Name(
        "data", "folder of pictures in root_path; without train/ every fifth is kept for tests", "train"
    ),
    "image_size": Name("image_size", "side in pixels that the encoder sees", 224),
    "crop_size": Name(same_as="image_size"),
    "crop_scale": Name("crop_scale", "share of the picture that a crop keeps; the paper has 0.3-1", (0.67, 1.0)),
    "use_horizontal_flip": Name("flip", "", True),
    "num_workers": Name("workers", "processes that decode", 8),
    "use_gaussian_blur": Name(note=NO_VIEWS, only=(False,)),
    "use_color_distortion": Name(note=NO_VIEWS, only=(False,)),
    "color_jitter_strength": Name(note=NO_VIEWS, only=(0,)),
    "val_split": Name(note="a test/ or val/ folder, else every fifth picture, is kept for evaluation", only=(None,)),
    "download": Name(note="sets by name are fetched where they are missing; IJEPA_WAIT=0 asks no server", only=(True,)),
    "copy_data": Name(note="pictures are read where they lie; copy them yourself", only=(False,)),
    "pin_mem": Name(note="memory is pinned exactly where there is a GPU to copy to", only=(True,)),
    # --- encoder and predictor
    "patch_size": Name("patch", "side of a patch in pixels", 16),
    "model_name": Name("encoder predictor_heads", f"{', '.join(MODELS)}; or embed_dim, depth, num_heads"),
    "embed_dim": Name("encoder predictor_heads", "width of a size of full_ijepa.vit.SIZES; vit_base's where it fits"),
    "depth": Name("encoder predictor_heads", "blocks of such a size"),
    "num_layers": Name(same_as="depth"),
    "num_heads": Name("encoder predictor_heads", "heads of such a size"),
    "pred_depth": Name("predictor_depth", "", 6),
    "predictor_depth": Name(same_as="pred_depth"),
    "pred_emb_dim": Name("predictor_width", "its heads are as many as the encoder's", 384),
    # --- masks
    "enc_mask_scale": Name(
        "context_scale masks",
        f"share of the picture that is context; up to {SMALL:g} it stays whole and the targets lie elsewhere (masks "
        "small_context), above that targets are cut out of it (multiblock; the paper has 0.85-1, which was better in a "
        "short run: assets/results/small-context.json)",
        (0.15, 0.2),
    ),
    "pred_mask_scale": Name("target_scale", "share of the picture that a block to predict covers", (0.15, 0.2)),
    "num_pred_masks": Name("targets", "blocks to predict", 4),
    "aspect_ratio": Name("target_aspect", "height/width of a block to predict", (0.75, 1.5)),
    "min_keep": Name("min_context", "a context of multiblock keeps more patches than this; a small one stays whole"),
    "num_enc_masks": Name(note="one context a picture, as in the paper", only=(1,)),
    "allow_overlap": Name(note="a context that overlaps a target sees what it has to predict", only=(False,)),
    "mask_ratio": Name(
        note="I-JEPA hides blocks, not a share of the patches: say pred_mask_scale and num_pred_masks; MAE hides a "
        "share, Recipe(method='mae', hidden=...)"
    ),
    "predict_horizon": Name(
        note="frames to predict: a picture has no next frame, and blocks of the same one are predicted"
    ),
    "disable_masking": Name(note="without masks nothing is left to predict", only=(False,)),
    # --- optimisation
    "epochs": Name("epochs", "passes over the pictures", 100),
    "batch_size": Name("batch micro_batch", "pictures that one process holds at a time", 64),
    "accum_iter": Name("batch", "a step takes batch_size x accum_iter pictures of every process", 1),
    "lr": Name("lr", "peak rate, absolute: no batch size scales it", 1.5e-4),
    "learning_rate": Name(same_as="lr"),
    "blr": Name("lr", "peak rate for 256 pictures a step: lr = blr x pictures of a step / 256"),
    "min_lr": Name("final_lr", "rate at the end", 1e-6),
    "final_lr": Name(same_as="min_lr"),
    "start_lr": Name(note="the warm-up starts from 0", only=(0,)),
    "warmup": Name("warmup_epochs", "passes over the pictures before the peak", 40),
    "warmup_epochs": Name(same_as="warmup"),
    "weight_decay": Name("weight_decay", "the same from start to end, unless final_weight_decay is said", 0.05),
    "final_weight_decay": Name("weight_decay", "weight decay at the end, reached along a cosine"),
    "clip_grad": Name("clip", "the gradient's norm is cut to this; None or 0 leaves it", 1.0),
    "momentum": Name("momentum", "of the target encoder at start and end, linear between", (0.996, 1.0)),
    "ema": Name(same_as="momentum"),
    "ipe_scale": Name(note="schedules end with the run: say more epochs", only=(1,)),
    "seed": Name("seed", "", 0),
    # --- machine
    "gradient_checkpointing": Name("checkpointing", "keep blocks' inputs only and compute the rest again", False),
    "use_bfloat16": Name("precision", "True bf16, False fp32; not said: bf16 where the device is fast at it"),
    "enable_deepspeed": Name(note="several GPUs work through torchrun, with DDP or FSDP", only=(False,)),
    "device": Name("device=", '"auto", "cpu" or "cuda"', "auto"),
    # --- what is written and read
    "folder": Name("out", "where the run is written", "results/jepa"),
    "output_dir": Name(same_as="folder"),
    "logdir": Name(same_as="folder"),
    "write_tag": Name("out", "a folder in `folder`"),
    "save_ckpt_freq": Name("checkpoint_epochs", "passes over the pictures between two checkpoints", 1),
    "read_checkpoint": Name(
        "out resume=", "a run, or its newest checkpoint: train goes on with it, evaluate judges it"
    ),
    "resume": Name(same_as="read_checkpoint"),
    "load_checkpoint": Name("resume=", "True: train goes on with the newest checkpoint of `folder`, if there is one"),
    "eval": Name("evaluate", "True: train() judges read_checkpoint or `folder` instead", False),
    "enable_tensorboard": Name(note="TensorBoard's files are always written", only=(True,)),
    "enable_wandb": Name("log_to", "True: Weights & Biases beside TensorBoard", False),
    "enable_sweep": Name(note="a loop over create_model(...) is a sweep", only=(False,)),
}


def settled(name: str, value: Any = None) -> str:
    """The first spelling of an argument. Raises ValueError if it is unknown, or if this value is refused."""
    entry = lookup(NAMES, name, "argument")
    if entry.same_as:
        return entry.same_as
    if not entry.ours and value not in entry.only:
        choice = f" (here it is always {entry.only[0]!r})" if entry.only else ""
        raise ValueError(f"{name}={value!r} is refused{choice}: {entry.note}")
    return name


class JEPAConfig:
    """Arguments of a run by the toolkits' names, as keywords or set as attributes; `recipe()` says them in ours.

    An unknown name, and a value that would not be obeyed, raise ValueError at once.
    """

    def __init__(self, **said: Any) -> None:
        self.__dict__["said"] = {}
        for name, value in said.items():
            if settled(name, value) in self.said:
                raise ValueError(f"{name} and another spelling of it are both given: {', '.join(said)}")
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        first = settled(name, value)
        value = tuple(value) if isinstance(value, list) else value
        if isinstance(pair := NAMES[first].default, tuple) and not (isinstance(value, tuple) and len(value) == 2):
            raise ValueError(f"{name}={value!r} is not two numbers, as {pair} is")
        self.said[first] = value

    def __getattr__(self, name: str) -> Any:
        if name not in NAMES:
            raise AttributeError(f"JEPAConfig has no {name!r}")
        name = NAMES[name].same_as or name
        return self.__dict__["said"].get(name, NAMES[name].default)

    def __repr__(self) -> str:
        return f"JEPAConfig({', '.join(f'{name}={value!r}' for name, value in self.said.items())})"

    def recipe(self) -> Recipe:
        """The same run in our words. Raises ValueError for values that do not fit together or are not to be had."""
        encoder = encoder_of(self)
        batch = self.batch_size * self.accum_iter * int(os.environ.get("WORLD_SIZE", 1))  # torchrun's processes
        whole = max(self.enc_mask_scale) <= SMALL
        if "lr" in self.said and self.blr is not None:
            raise ValueError(f"lr {self.lr} is absolute and blr {self.blr} is for 256 pictures: say one of them")
        end = self.final_weight_decay
        return Recipe(
            data=data_of(self),
            image_size=self.image_size,
            crop_scale=self.crop_scale,
            flip=self.use_horizontal_flip,
            workers=self.num_workers,
            encoder=encoder,
            patch=self.patch_size,
            predictor_width=self.pred_emb_dim,
            predictor_depth=self.pred_depth,
            predictor_heads=SIZES[encoder][2],
            masks="small_context" if whole else "multiblock",
            targets=self.num_pred_masks,
            target_scale=self.pred_mask_scale,
            target_aspect=self.aspect_ratio,
            context_scale=self.enc_mask_scale,
            min_context=least_of(self, whole),
            epochs=self.epochs,
            batch=batch,
            micro_batch=self.batch_size,
            lr=self.lr if self.blr is None else self.blr * batch / 256,
            final_lr=self.min_lr,
            warmup_epochs=self.warmup,
            weight_decay=(self.weight_decay, self.weight_decay if end is None else end),
            momentum=self.momentum,
            clip=self.clip_grad or 0.0,
            seed=self.seed,
            precision="auto" if self.use_bfloat16 is None else "bf16" if self.use_bfloat16 else "fp32",
            checkpointing=self.gradient_checkpointing,
            checkpoint_epochs=self.save_ckpt_freq,
            log_to=("tensorboard", "wandb") if self.enable_wandb else ("tensorboard",),
        )

    @property
    def out(self) -> Path:
        """Where the run is written, or lies already if read_checkpoint names one."""
        folder = Path(self.folder) / (self.write_tag or "")
        if self.read_checkpoint is None:
            return folder
        found = run_of(Path(self.read_checkpoint).expanduser())
        if "folder" in self.said and found.resolve() != folder.resolve():
            raise ValueError(f"the run of read_checkpoint goes on in its own folder {found}, not in {folder}")
        return found


def data_of(config: JEPAConfig) -> str:
    """`Recipe.data` of dataset, root_path and image_folder. Raises ValueError for a folder that is not there."""
    name = lookup(SETS, str(config.dataset).lower(), "dataset")
    if config.root_path is None:
        if name == "imagefolder" or config.image_folder != "train":
            raise ValueError(
                f"{name}: image_folder {config.image_folder!r} is a folder in root_path, which is not said"
            )
        return name
    if name not in ("imagefolder", "imagenet"):
        raise ValueError(f"root_path is for imagefolder and imagenet; {name} is looked for in the folder IJEPA_DATA")
    root = Path(config.root_path).expanduser()
    if not (root / config.image_folder).is_dir():
        raise ValueError(f"no folder {root / config.image_folder} (root_path and image_folder)")
    return f"folder:{root if config.image_folder == 'train' else root / config.image_folder}"


def encoder_of(config: JEPAConfig) -> str:
    """Name of the size that agrees with all that is said of it, vit_base's where that does.

    Raises ValueError naming the nearest size if none agrees, or all that do.
    """
    asked = {name: value for name in ("embed_dim", "depth", "num_heads") if (value := getattr(config, name))}
    sizes = {name: dict(zip(("embed_dim", "depth", "num_heads"), size, strict=True)) for name, size in SIZES.items()}
    if config.model_name is not None:
        sizes = {name: sizes[name] for name in (lookup(MODELS, config.model_name, "model_name"),)}
    fit = [name for name, size in sizes.items() if asked.items() <= size.items()]
    if "b" in fit or len(fit) == 1:
        return "b" if "b" in fit else fit[0]
    told = ", ".join(f"{name} {value}" for name, value in asked.items())
    if fit:
        raise ValueError(f"{told} is true of the encoders {', '.join(fit)}: say embed_dim, depth and num_heads")
    near = min(sizes, key=lambda name: sum(abs(math.log(sizes[name][key] / value)) for key, value in asked.items()))
    has = ", ".join(f"{name} {value}" for name, value in sizes[near].items())
    raise ValueError(f"no encoder has {told}: the nearest is {near!r} with {has}")


def least_of(config: JEPAConfig, whole: bool) -> int | None:
    """`Recipe.min_context` of min_keep, "more than", None where it is not said or the context stays whole.

    Raises ValueError if a whole context can be too small.
    """
    if config.min_keep is None or not whole:
        return None if config.min_keep is None else config.min_keep + 1
    (h, w), share = grid_size(config.image_size, config.patch_size), min(config.enc_mask_scale)
    patches = max(round(h * share**0.5), 1) * max(round(w * share**0.5), 1)
    if patches <= config.min_keep:
        raise ValueError(
            f"a context of {patches} patches (enc_mask_scale {share} of {h}x{w}) does not keep more than min_keep "
            f"{config.min_keep}"
        )
    return None


def run_of(path: Path) -> Path:
    """The run that read_checkpoint names: its folder, or its newest checkpoint. Raises ValueError if it is neither."""
    out = path if path.is_dir() else path.parent.parent
    found = checkpoint.written(out / "checkpoints")
    if not found or (path != out and path not in found):
        raise ValueError(
            f"read_checkpoint {path} is neither a run with checkpoints nor RUN/checkpoints/step-*.safetensors; weights "
            "of other programs open with full_ijepa.interop"
        )
    if path not in (out, found[-1]):
        raise ValueError(f"read_checkpoint {path.name} is not the newest of its run: {found[-1].name} is")
    return out


class JEPAAgent:
    """Trains and judges the run of a config; keywords say more, or otherwise, than the config."""

    def __init__(self, config: JEPAConfig | dict[str, Any] | None = None, **said: Any) -> None:
        self.cfg = JEPAConfig(**(config.said if isinstance(config, JEPAConfig) else config or {}))
        for name, value in JEPAConfig(**said).said.items():
            setattr(self.cfg, name, value)

    def train(self) -> Run | dict[str, Any]:
        """Pre-train and return the `Run`; with eval=True judge a run instead and return its figures."""
        if self.cfg.eval:
            return self.evaluate()
        resume = bool(self.cfg.load_checkpoint) or self.cfg.read_checkpoint is not None
        return pretrain(self.cfg.recipe(), self.cfg.out, resume=resume, device=self.cfg.device)

    def evaluate(self, protocols: Iterable[str] = ("knn", "linear", "lowshot"), **options: Any) -> dict[str, Any]:
        """Judge the run beside a random encoder and pixels; options as of `full_ijepa.evaluate.evaluate`."""
        return judging.evaluate(self.cfg.out, protocols, **{"device": self.cfg.device, **options})

    @property
    def encoder(self) -> Encoder:
        """The run's target encoder, from its newest checkpoint, on the CPU."""
        return load_run(self.cfg.out)[1].probed


def create_config(model: str, **said: Any) -> JEPAConfig:
    """The config of a model by name. Raises ValueError for any but I-JEPA."""
    if model.lower() not in ("jepa", "ijepa", "i-jepa"):
        raise ValueError(
            f"no model {model!r}: only 'jepa' (or 'ijepa'), which learns from single pictures; models of "
            "films, games and robots are not here"
        )
    return JEPAConfig(**said)


def create_model(model: str, config: JEPAConfig | dict[str, Any] | None = None, **said: Any) -> JEPAAgent:
    """An agent by its model's name, ready to `train()`. Raises ValueError for any model but I-JEPA."""
    create_config(model)
    return JEPAAgent(config, **said)


def table() -> str:
    """All arguments as a Markdown table: name, default, what they become here or that they are refused, and why."""
    others = {first: [n for n, e in NAMES.items() if e.same_as == first] for first in NAMES}
    lines = ["| argument | default | here | |", "|---|---|---|---|"]
    for name, entry in NAMES.items():
        if entry.same_as:
            continue
        spelled = ", ".join(f"`{n}`" for n in (name, *others[name]))
        ours = ", ".join(f"`{field}`" for field in entry.ours.split())
        passes = f"always {entry.only[0]!r}" if entry.only not in ((), (None,)) else "refused"
        default = "" if entry.default is None else f"{entry.default!r}"
        lines.append(f"| {spelled} | {default} | {ours or passes} | {entry.note} |")
    return "\n".join(lines)


JEPAConfig.__doc__ = f"{JEPAConfig.__doc__}\n\n{table()}\n"

if __name__ == "__main__":
    print(table())
