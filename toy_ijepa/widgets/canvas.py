"""A picture cut into patches that can be picked, moved over and painted on, by mouse, finger and keyboard."""

# Shape legend:  C channels  H,W pixels  h,w grid (patches)

from __future__ import annotations

import base64
import io
from pathlib import Path

import anywidget
import numpy as np
import traitlets
from PIL import Image
from torch import Tensor

MODES = ("pick", "move", "paint")

STYLE = """
.ijepa-box { width: 280px; max-width: 100%; margin: 6px 14px 4px 4px; color: var(--jp-ui-font-color1, inherit); }
.ijepa-canvas { display: block; width: 100%; cursor: crosshair; }
.ijepa-canvas:focus { outline: 3px solid var(--jp-brand-color1, #0072b2); outline-offset: 2px; }
.ijepa-status, .ijepa-help { margin: 6px 0 0; font-size: 12px; line-height: 1.35; overflow-wrap: anywhere; }
.ijepa-status { min-height: 1.35em; font-weight: 600; }
"""


def data_url(image: Tensor) -> str:
    """An image (C, H, W), uint8 or in [0, 1], as the URL of a PNG of its own size."""
    array = image.permute(1, 2, 0).cpu().numpy()  #  (H, W, C)
    if array.dtype != np.uint8:
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class PatchCanvas(anywidget.AnyWidget):
    """The picture with its patch grid. Traits, the same in Python and JavaScript:

    image   URL of the picture (`show` sets it); grid  patches down and across
    mode    "pick" one patch, "move" one block, "paint" any number of blocks
    picked  [row, column] of the picked patch; blocks  [top, left, rows, columns] of each block, in patches from 0
    colours CSS colours of the blocks, used in turn; veil  one CSS colour a patch ("" for none), drawn over the picture
    label   what the picture is for, read by screen readers

    Keys: arrows move; in "move", shift + arrows resize; in "paint", space or Enter begins and ends a block, Escape
    gives it up, Delete removes the block under the cursor. Raises TraitError for values of the wrong type; whether
    blocks lie within the grid is for the model that uses them to say.
    """

    # One module out of two files: a widget's module has no address from which it could import another.
    _esm = "\n".join((Path(__file__).parent / name).read_text() for name in ("draw.js", "canvas.js"))
    _css = STYLE

    image = traitlets.Unicode("").tag(sync=True)
    grid = traitlets.Tuple(traitlets.Int(min=1), traitlets.Int(min=1), default_value=(8, 8)).tag(sync=True)
    mode = traitlets.Enum(MODES, default_value="pick").tag(sync=True)
    picked = traitlets.Tuple(traitlets.Int(), traitlets.Int(), default_value=(0, 0)).tag(sync=True)
    blocks = traitlets.List(traitlets.Tuple(*(traitlets.Int() for _ in range(4)))).tag(sync=True)
    colours = traitlets.List(traitlets.Unicode(), ["#d55e00"]).tag(sync=True)
    veil = traitlets.List(traitlets.Unicode()).tag(sync=True)
    label = traitlets.Unicode("Picture in patches").tag(sync=True)

    def show(self, image: Tensor) -> None:
        """Show an image (C, H, W), uint8 or in [0, 1]."""
        self.image = data_url(image)
