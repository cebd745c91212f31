"""I-JEPA and MAE behind one small interface, so that both train under the same loop and are judged by one protocol.

A method is a module with `encoder` (trained; sees only what is visible), `probed` (evaluated), `draw(batch, seed,
sizes)`, which makes masks on the host ahead of the step, `step_loss(images, drawn)`, and `after_step(progress)`, once
an optimiser step. Both are the toy's with the choices of a recipe.
"""

# Shape legend:  B images  C channels  H,W pixels  P patch side (pixels)  N patches  K context patches  M target blocks
#                T patches of a block  D width  J sequences of packed tokens  Z all of their tokens

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from full_ijepa import masking
from full_ijepa.masking import Drawn, Group, Packed
from full_ijepa.packing import Sequences
from full_ijepa.recipes.base import Recipe
from full_ijepa.vit import Encoder, Predictor, Stack, build_encoder, compile_blocks, draw_kept
from toy_ijepa import jepa, mae
from toy_ijepa.encoder import gather_tokens
from toy_ijepa.masking import random
from toy_ijepa.patches import patchify
from toy_ijepa.recipe import lookup
from toy_ijepa.trouble import loss_of_mean

PIXEL_LOSSES = {"l2": F.mse_loss, "l1": F.l1_loss}


class IJEPA(jepa.IJEPA):
    """The toy's I-JEPA with masks drawn ahead on the host, and contexts in groups, packed, or cut to the smallest."""

    encoder: Encoder
    predictor: Predictor

    def __init__(
        self,
        encoder: Encoder,
        predictor: Predictor,
        *,
        contexts: str,
        groups: int,
        masks: str,
        mask_options: dict[str, Any] | None = None,
        **options,
    ) -> None:
        super().__init__(encoder, predictor, **options)
        self.masks, self.mask_options, self.contexts, self.groups = masks, mask_options or {}, contexts, groups
        self.sample = partial(lookup(masking.STRATEGIES, masks, "mask strategy"), **self.mask_options)
        self.train()

    def train(self, mode: bool = True) -> IJEPA:
        """As usual, but the target encoder stays as it is evaluated."""
        super().train(mode)
        self.target.eval()
        return self

    @torch.no_grad()
    def truth(self, images: Tensor) -> Tensor:
        """What can be asked for, everywhere: the target encoder's features, normalised as the toy's `targets`."""
        x = self.target(images)  #                                       (B, N, D)
        return F.layer_norm(x, x.shape[-1:])

    def mean_loss(self, images: Tensor) -> float:
        """The loss of a predictor that knows places and no picture: it answers with each place's mean feature.

        nan with a regulariser, whose terms stand in the loss.
        """
        return math.nan if any(self.regulariser) else loss_of_mean(self.truth(images), jepa.LOSSES[self.loss])

    def draw(self, batch: int, seed: int, sizes: int, multiple: int = 1) -> Drawn:
        """Finished masks of a micro-batch, on the CPU; the same seeds give the same for every device.

        seed      of places, of the patches that are dropped, and of the blocks that are skipped
        sizes     seed of the sizes of blocks: one for all micro-batches of an optimiser step
        multiple  packed lengths become a multiple of it (`masking.packed`)
        """
        grid, generator = self.encoder.grid, torch.Generator().manual_seed(seed)
        known = torch.Generator().manual_seed(sizes)
        options = masking.at_one_size(self.masks, grid, self.mask_options, known)
        kept = draw_kept(self.encoder.blocks.rates, batch, generator)
        if self.contexts == "packed":
            whole = dict(pick=masking.keep_all) if self.masks in masking.UNEVEN else {}
            drawn = masking.STRATEGIES[self.masks](batch, grid, generator=generator, **options, **whole)
            return masking.packed(drawn, grid[0] * grid[1], self.predictor.mode == "joint", multiple, kept)
        groups = self.groups if self.contexts == "groups" else 1
        found = masking.sample(self.masks, batch, grid, generator, groups, **options)
        return [Group(rows, m.context, m.targets, None if kept is None else kept[:, rows]) for rows, m in found]

    def step_loss(self, images: Tensor, drawn: Drawn) -> Tensor:
        """The mean loss of a micro-batch (B, C, H, W) under its finished masks."""
        truth = self.truth(images)  #                                    (B, N, D) once, whatever the contexts
        if isinstance(drawn, Packed):
            loss, context = self.packed_loss(images, truth, drawn)
            return loss + self.penalty(means(context, drawn.seen)[: len(images)])
        if len(drawn) == 1:  # all images, in their order
            loss, context = self.dense_loss(images, truth, drawn[0])
            return loss + self.penalty(context.mean(1))
        found = [self.dense_loss(images[group.rows], truth[group.rows], group) for group in drawn]
        loss = sum(loss * (len(context) / len(images)) for loss, context in found)
        # Over the whole micro-batch: a group alone may be a single image.
        return loss + self.penalty(torch.cat([context.mean(1) for _, context in found]))

    def dense_loss(self, images: Tensor, truth: Tensor, group: Group) -> tuple[Tensor, Tensor]:
        """Loss, and context features (b, K, D), of the images of a group."""
        context = self.encoder(images, group.context, kept=group.kept)
        predictions = self.predictor(context, group.context, group.targets)
        return self.compared(predictions, truth, group.targets), context

    def packed_loss(self, images: Tensor, truth: Tensor, drawn: Packed) -> tuple[Tensor, Tensor]:
        """Loss, and packed context features (Z, D)."""
        context = self.encoder(images, drawn.context, drawn.seen, drawn.kept)
        places = drawn.context % truth.shape[1]  #                       (Z,)
        predictions = self.predictor(context, places, drawn.targets, drawn.order, drawn.asked, drawn.answers)
        return self.compared(predictions, truth, drawn.targets), context

    def compared(self, predictions: Tensor, truth: Tensor, target_idx: Tensor) -> Tensor:
        """The loss of predictions (B, M, T, D) against truth (B, N, D) at the targets (B, M, T)."""
        asked = gather_tokens(truth, target_idx.flatten(1)).reshape(predictions.shape)
        return jepa.LOSSES[self.loss](predictions.float(), asked.float())


def means(x: Tensor, where: Sequences) -> Tensor:
    """The mean token of each sequence of packed tokens (Z, D): (J, D)."""
    total = x.new_zeros(len(where.ends) - 1, x.shape[1]).index_add(0, where.number, x)
    return total / where.lengths.clamp(min=1)[:, None]


class MAE(mae.MAE):
    """The toy's MAE with masks drawn ahead on the host and a choice of loss ("l2" as in the paper, or "l1")."""

    def __init__(self, *args, loss: str = "l2", **options) -> None:
        super().__init__(*args, **options)
        self.loss = PIXEL_LOSSES[loss]

    def truth(self, images: Tensor) -> Tensor:
        """What can be asked for, everywhere: each patch's pixels in their own mean and std, (B, N, C*P*P)."""
        pixels = patchify(images, self.encoder.patch).float()
        return F.layer_norm(pixels, pixels.shape[-1:])

    def mean_loss(self, images: Tensor) -> float:
        """The loss of a decoder that knows places and no picture: it answers with each place's mean patch."""
        return loss_of_mean(self.truth(images), self.loss)

    def draw(self, batch: int, seed: int, sizes: int = 0, multiple: int = 1) -> list[Group]:
        """Finished masks of a micro-batch, as `IJEPA.draw`; sizes are always the same, and nothing is packed."""
        share, generator = (self.hidden, self.hidden), torch.Generator().manual_seed(seed)
        masks = random(batch, self.encoder.grid, target_scale=share, generator=generator)
        kept = draw_kept(self.encoder.blocks.rates, batch, generator)
        return [Group(torch.arange(batch), masks.context, masks.targets, kept)]

    def step_loss(self, images: Tensor, drawn: list[Group]) -> Tensor:
        """The mean loss of a micro-batch (B, C, H, W) under its finished masks."""
        (group,) = drawn
        tokens = self.encoder(images, group.context, kept=group.kept)  # (B, K, D)
        predictions = self.decoder(tokens, group.context, group.targets)[:, 0]
        return self.loss(predictions.float(), gather_tokens(self.truth(images), group.targets[:, 0]))


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
        method.decoder.blocks = Stack(method.decoder.blocks, checkpointing=recipe.checkpointing)
    else:
        how = dict(mode=recipe.predictor_mode, checkpointing=recipe.checkpointing)
        method = IJEPA(
            encoder,
            Predictor(encoder.grid, encoder.width, *narrow, **how),
            contexts=recipe.contexts,
            groups=recipe.groups,
            masks=recipe.masks,
            mask_options=recipe.mask_options,
            loss=recipe.loss_name,
            momentum=recipe.momentum,
            regulariser=recipe.regulariser,
        )
    if recipe.compile:
        compile_blocks(method)
    return method


class Step(nn.Module):
    """A method's loss as `forward`, which is what data-parallel wrappers call: (images, finished masks) -> scalar.

    Nothing random is left in it, so that the same micro-batch gives the same loss in whichever process and after
    however many restarts it is computed; and nothing that makes a host wait for its GPU.
    """

    def __init__(self, method: IJEPA | MAE) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor, drawn: Drawn) -> Tensor:
        return self.method.step_loss(images, drawn)
