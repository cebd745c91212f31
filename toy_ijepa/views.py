"""Two augmented views of a picture that have to agree: SimCLR, and LeJEPA, which needs no negatives."""

# Shape legend:  B images  C channels  H,W pixels  N tokens  D encoder width  E projection width

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from toy_ijepa.encoder import Encoder, init_weights
from toy_ijepa.patches import normalise
from toy_ijepa.sigreg import sigreg
from toy_ijepa.training import augment

CROP = (0.2, 1.0)  # share of the picture that a view keeps
STRENGTH = 0.4  # of the jitter of brightness, contrast and colour
GREY = 0.2  # share of views without colour


def jitter(images: Tensor, generator: torch.Generator | None = None, strength: float = STRENGTH) -> Tensor:
    """Images (B, C, H, W) in normalised pixels with other brightness, contrast and saturation; some grey.

    Source: Chen et al. 2020 (SimCLR), arXiv:2002.05709, appendix A; without its change of hue and its blur.
    """
    B = len(images)
    bright, contrast, colour = (1 + strength * (2 * torch.rand(3, B, 1, 1, 1, generator=generator) - 1)).to(images)
    colour = colour * (torch.rand(B, 1, 1, 1, generator=generator) >= GREY).to(images)
    black = normalise(torch.zeros(1)).to(images)
    x = black + bright * (images - black)
    grey = x.mean(1, keepdim=True)  #                            (B, 1, H, W)
    x = grey + colour * (x - grey)
    middle = grey.mean((2, 3), keepdim=True)  #                  (B, 1, 1, 1)
    return middle + contrast * (x - middle)


def two_views(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each image twice, cropped, mirrored and coloured by chance: what the two share is what should be learned.

    The training loop has cropped and mirrored them once already; a view keeps 12 to 100 % of the picture in all.
    """
    first, second = (jitter(augment(images, CROP, True, generator), generator) for _ in range(2))
    return first, second


class TwoViews(nn.Module):
    """One encoder sees two views of each picture; their projections (B, E) have to agree, in a way a subclass says.

    The projector is thrown away after training: what it learns to ignore, the encoder may keep.
    """

    def __init__(self, encoder: Encoder, width: int = 128) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = nn.Sequential(nn.Linear(encoder.width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.projector.apply(init_weights)

    @property
    def probed(self) -> Encoder:
        """The encoder whose features are evaluated."""
        return self.encoder

    def agree(self, first: Tensor, second: Tensor, generator: torch.Generator | None) -> Tensor:
        """The loss on projections (B, E) of the two views."""
        raise NotImplementedError

    def step_loss(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The loss on two freshly drawn views of a batch: what the training loop calls."""
        seen = torch.cat(two_views(images, generator))  #        (2B, C, H, W)
        pooled = self.encoder(seen).mean(1)  #                   (2B, D)
        first, second = self.projector(pooled).float().chunk(2)
        return self.agree(first, second, generator)

    def after_step(self, progress: float) -> float:
        """Nothing moves beside the optimiser."""
        return 0.0


class SimCLR(TwoViews):
    """Which of the other 2B - 1 views in this batch is of the same picture? A classification without labels.

    temperature  divides cosines: the smaller, the more the nearest wrong views count
    Source: Chen et al. 2020, arXiv:2002.05709, section 2.1 (NT-Xent).
    """

    def __init__(self, encoder: Encoder, width: int = 128, temperature: float = 0.2) -> None:
        super().__init__(encoder, width)
        self.temperature = temperature
        self.others = math.nan  #  views to choose from in the last batch

    def agree(self, first: Tensor, second: Tensor, generator: torch.Generator | None) -> Tensor:
        x = F.normalize(torch.cat([first, second]), dim=1)  #    (2B, E)
        alike = x @ x.T / self.temperature  #                    (2B, 2B)
        alike.fill_diagonal_(-torch.inf)  #                      a view is not its own partner
        partner = torch.arange(len(x), device=x.device).roll(len(first))
        return F.cross_entropy(alike, partner)

    def step_loss(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        self.others = 2 * len(images) - 1
        return super().step_loss(images, generator)

    def mean_loss(self, images: Tensor) -> float:
        """The loss of an encoder that says the same of every picture: a guess among the 2B - 1 views of a step."""
        return math.log(self.others)


class LeJEPA(TwoViews):
    """Both projections go to their mean, and SIGReg keeps them from going to one point: no negatives, no EMA.

    weight  of SIGReg's statistic beside the squared distance
    Source: Balestriero & LeCun 2025, arXiv:2511.08544, section 5, with two views of one size.
    """

    def __init__(self, encoder: Encoder, width: int = 64, weight: float = 0.02) -> None:
        super().__init__(encoder, width)
        self.weight = weight

    def agree(self, first: Tensor, second: Tensor, generator: torch.Generator | None) -> Tensor:
        middle = (first + second) / 2
        apart = ((first - middle).square() + (second - middle).square()).mean() / 2
        normal = (sigreg(first, generator) + sigreg(second, generator)) / 2
        return (1 - self.weight) * apart + self.weight * normal
