"""I-JEPA and MAE behind one small interface, so that both train under the same loop and are judged by one protocol.

A method is a module with `encoder` (trained; sees only what is visible), `probed` (evaluated), `step_loss(images,
generator)` and `after_step(progress)`, once an optimiser step. Both are the toy's, with masks drawn on the device and
the choices of a recipe.
"""

# Shape legend:  B images  C channels  H,W pixels  h,w grid (patches)

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from full_ijepa import masking
from full_ijepa.recipes.base import Recipe
from full_ijepa.vit import Encoder, Stack, build_encoder, compile_blocks
from toy_ijepa import jepa, mae
from toy_ijepa.masking import random
from toy_ijepa.patches import patchify
from toy_ijepa.predictor import Predictor
from toy_ijepa.recipe import lookup

PIXEL_LOSSES = {"l2": F.mse_loss, "l1": F.l1_loss}


def loss_of_mean(truth: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The loss of predicting the mean over images of each place, for what has to be predicted (B, N, F).

    The mean is taken from these B images (two at least): the residuals are widened by what that makes them too small.
    """
    residual = (truth - truth.mean(0)).float() * (len(truth) / (len(truth) - 1)) ** 0.5
    return loss(residual, torch.zeros_like(residual)).item()


class IJEPA(jepa.IJEPA):
    """The toy's I-JEPA with masks drawn on the device and contexts in groups of similar size."""

    def __init__(
        self,
        encoder: Encoder,
        predictor: Predictor,
        *,
        groups: int,
        masks: str,
        mask_options: dict[str, Any] | None = None,
        **options,
    ) -> None:
        super().__init__(encoder, predictor, **options)
        self.masks, self.mask_options, self.groups = masks, mask_options or {}, groups
        self.sample = partial(lookup(masking.STRATEGIES, masks, "mask strategy"), **self.mask_options)
        self.train()

    def train(self, mode: bool = True) -> IJEPA:
        """As usual, but the target encoder stays whole: none of its blocks is ever skipped."""
        super().train(mode)
        self.target.eval()
        return self

    @torch.no_grad()
    def mean_loss(self, images: Tensor) -> float:
        """The loss of a predictor that knows places and no picture: it answers with each place's mean feature."""
        features = self.target(images)  #                                (B, N, D)
        return loss_of_mean(F.layer_norm(features, features.shape[-1:]), jepa.LOSSES[self.loss])

    def step_loss(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The mean loss of a batch under freshly drawn masks."""
        B = len(images)
        drawn = masking.sample(self.masks, B, self.encoder.grid, generator, self.groups, **self.mask_options)
        if len(drawn) == 1:
            return self(images, drawn[0][1]).loss
        found = [self.predict(images[rows], masks) for rows, masks in drawn]
        loss = sum(output.loss * (len(output.context) / B) for output in found)
        # Over the whole micro-batch: a group alone may be a single image.
        return loss + self.penalty(torch.cat([output.context.mean(1) for output in found]))


class MAE(mae.MAE):
    """The toy's MAE with masks drawn on the device and a choice of loss ("l2" as in the paper, or "l1")."""

    def __init__(self, *args, loss: str = "l2", **options) -> None:
        super().__init__(*args, **options)
        self.loss = PIXEL_LOSSES[loss]

    @torch.no_grad()
    def mean_loss(self, images: Tensor) -> float:
        """The loss of a decoder that knows places and no picture: it answers with each place's mean patch."""
        pixels = patchify(images, self.encoder.patch).float()  #         (B, N, C*P*P)
        return loss_of_mean(F.layer_norm(pixels, pixels.shape[-1:]), self.loss)

    def step_loss(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The mean loss of a batch under freshly drawn masks."""
        share = (self.hidden, self.hidden)
        with generator.device:
            masks = random(len(images), self.encoder.grid, target_scale=share, generator=generator)
        predictions, pixels = self(images, masks.context, masks.targets[:, 0])
        return self.loss(predictions.float(), pixels)


def build(recipe: Recipe) -> IJEPA | MAE:
    """The method of a recipe around a fresh encoder; the same seed gives both methods the same encoder.

    Raises ValueError if sizes do not fit together.
    """
    torch.manual_seed(recipe.seed)
    options = dict(positions=recipe.positions, drop_path=recipe.drop_path, checkpointing=recipe.checkpointing)
    options |= dict(pixels=recipe.pixels)
    encoder = build_encoder(recipe.encoder, recipe.image_size, recipe.patch, **options)
    narrow = recipe.predictor_width, recipe.predictor_depth, recipe.predictor_heads
    if recipe.method == "mae":
        method = MAE(encoder, *narrow, hidden=recipe.hidden, loss=recipe.loss_name)
        helper = method.decoder
    else:
        helper = Predictor(encoder.grid, encoder.width, *narrow, mode=recipe.predictor_mode)
        method = IJEPA(
            encoder,
            helper,
            groups=recipe.groups,
            masks=recipe.masks,
            mask_options=recipe.mask_options,
            loss=recipe.loss_name,
            momentum=recipe.momentum,
            regulariser=recipe.regulariser,
        )
    helper.blocks = Stack(helper.blocks, checkpointing=recipe.checkpointing)
    if recipe.compile:
        compile_blocks(method)
    return method


class Step(nn.Module):
    """A method's loss as `forward`, which is what data-parallel wrappers call: (images, seed) -> scalar.

    The seed says everything that is random about a micro-batch, so that the same micro-batch gives the same loss in
    whichever process and after however many restarts it is computed.
    """

    def __init__(self, method: IJEPA | MAE) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)  # stochastic depth draws from the default generator
        return self.method.step_loss(images, torch.Generator(images.device).manual_seed(seed))
