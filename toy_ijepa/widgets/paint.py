"""Paint your own targets: hide any patches of a picture and see what the model imagines there, and where it errs."""

# Shape legend:  S pictures  C channels  H,W pixels  P patch side (pixels)  h,w grid (patches)  K context patches
#                T hidden patches

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property

import ipywidgets
import traitlets
from matplotlib.figure import Figure
from torch import Tensor

from toy_ijepa import plots
from toy_ijepa.imagination import Gallery, compose, imagine
from toy_ijepa.jepa import IJEPA
from toy_ijepa.masking import Masks
from toy_ijepa.widgets.blocks import Block, check_images, covered, masks_of
from toy_ijepa.widgets.canvas import PatchCanvas
from toy_ijepa.widgets.drawing import heat, panels, seen_only, whole
from toy_ijepa.widgets.view import Explorer, Report, control

# As plots.TARGETS, in the canvas's words.
COLOURS = ["#" + "".join(f"{round(255 * c):02x}" for c in colour) for colour in plots.TARGETS]


@dataclass(frozen=True)
class Answer:
    """Imagined patches (T, C*P*P) in [0, 1], smooth-L1 error of each predicted feature (T,), seconds it took."""

    patches: Tensor
    error: Tensor
    seconds: float


@dataclass(frozen=True, eq=False)
class PaintModel:
    """A uint8 image (S, C, H, W) of which `blocks` (top, left, rows, columns) are hidden, the rest is context.

    Blocks may overlap; their union is predicted as one target.
    Raises ValueError for a block outside the grid, or if nothing or everything is hidden.
    """

    model: IJEPA
    images: Tensor
    shelf: Gallery
    image: int = 0
    blocks: tuple[Block, ...] = ()

    def __post_init__(self) -> None:
        check_images(self.images, self.image, self.model.encoder)
        T, N = int(self.hidden.sum()), self.hidden.numel()
        if T == 0:
            raise ValueError("nothing is hidden: drag a block on the picture, there is nothing to predict yet")
        if T == N:
            raise ValueError(f"all {N} patches are hidden: remove a block, the model needs some context to see")

    @cached_property
    def hidden(self) -> Tensor:
        """Boolean (h, w), True where a block lies."""
        return covered(self.blocks, self.model.encoder.grid)

    @property
    def masks(self) -> Masks:
        """The hidden patches as one target row (1, 1, T), all others as context (1, K)."""
        return masks_of(self.hidden, ~self.hidden)

    @cached_property
    def answer(self) -> Answer:
        begun = time.perf_counter()
        patches, error = imagine(self.model, self.images[self.image : self.image + 1], self.masks, self.shelf)
        return Answer(patches[0, 0], error[0, 0], time.perf_counter() - begun)

    @property
    def error_map(self) -> Tensor:
        """Error of each hidden patch (h, w), not a number where the model sees."""
        return whole(self.answer.error, self.masks.targets[0, 0], self.model.encoder.grid)

    def figure(self, alone: bool = True) -> Figure:
        figure, axes = panels(1, 4) if alone else panels(2, 2)
        image, patch = self.images[self.image], self.model.encoder.patch
        one = self.images[self.image : self.image + 1]
        filled = compose(one, self.masks, self.answer.patches[None, None], patch, [0])[0]
        plots.show(axes[0], image, "original")
        plots.show(axes[1], seen_only(image, ~self.hidden), "what the encoder sees")
        plots.show(axes[2], filled, "imagined")
        top = max(self.answer.error.max().item(), 1e-6)
        heat(axes[3], self.error_map, f"error a patch, 0 to {top:.2f}", 0, top, "{:.2f}")
        return figure

    def alt(self) -> str:
        return (
            f"Picture {self.image}: the original, what the encoder sees with {int(self.hidden.sum())} patches hidden, "
            "the picture with the imagined patches, and a map of the error of each."
        )

    def report(self) -> Report:
        answer, (T, N) = self.answer, (int(self.hidden.sum()), self.hidden.numel())
        (row, column), worst = divmod(int(self.error_map.nan_to_num(-1).argmax()), self.hidden.shape[1]), answer.error
        return [
            f"{T} of {N} patches hidden in {len(self.blocks)} block{'s' * (len(self.blocks) != 1)}, {N - T} seen. "
            f"Mean error {worst.mean():.3f} (smooth L1 between features); "
            f"largest {worst.max():.3f}, at row {row}, column {column}. It took {answer.seconds:.2f} s."
        ]


class PaintTargets(Explorer):
    """Drag blocks on a picture (or draw them by keyboard) and see what the model imagines there.

    blocks  [top, left, rows, columns] of each hidden block in patches; a cell may set it: paint.blocks = [[1, 2, 3, 3]]
    Controls: image, remove and clear (buttons), and the canvas.
    """

    blocks = traitlets.List(traitlets.Tuple(*(traitlets.Int() for _ in range(4))))

    def __init__(self, model: IJEPA, images: Tensor, shelf: Gallery) -> None:
        super().__init__()
        h, w = model.encoder.grid
        first = (h // 4, w // 4, max(h // 3, 1), max(w // 3, 1))
        self.model = PaintModel(model, images, shelf, blocks=(first,))
        self.image = control(ipywidgets.IntSlider, "image number", 0, max=len(images) - 1)
        self.remove = ipywidgets.Button(description="Remove last block")
        self.clear = ipywidgets.Button(description="Clear")
        self.remove.on_click(lambda _: self.set_trait("blocks", self.blocks[:-1]))
        self.clear.on_click(lambda _: self.set_trait("blocks", []))
        canvas = PatchCanvas(grid=(h, w), mode="paint", blocks=[first], colours=COLOURS)
        canvas.label = "Picture: paint the patches that the model shall not see"
        traitlets.link((canvas, "blocks"), (self, "blocks"))
        self.start([self.image, self.remove, self.clear], canvas)

    def read(self) -> PaintModel:
        return replace(self.model, image=self.image.value, blocks=tuple(self.canvas.blocks))

    def settle(self) -> None:
        self.canvas.show(self.model.images[self.model.image])
