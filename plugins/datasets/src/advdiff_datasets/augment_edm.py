"""The augmentation of EDM: geometric changes that the denoiser is told of (Karras et al., 2022).

Written from appendix F.2 and table 6 of the paper. Differences: flips are exact instead of
resampled; values are clamped to the domain; beyond the image, its upsampled version is mirrored
instead of the image itself.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from advdiff_core.draws import Draws
from advdiff_core.interfaces.augmentation import Augmentation
from advdiff_core.interfaces.component import Build
from advdiff_core.settings import setting, settings
from advdiff_core.types import Augmented
from advdiff_datasets.augment import image_info, refuse

__all__ = ["LOWPASS", "EDMAugment", "Motion", "moved"]

#: Lowpass filter of the wavelet sym6 (Daubechies, 1992), divided by sqrt(2): it sums to one.
LOWPASS = (
    0.01089235016328, 0.00246830618592, -0.08343160770584, -0.03416156079324,
    0.34722898647835, 0.55694639196396, 0.23895218566605, -0.0513624849309,
    -0.01489187564922, 0.03162528132994, 0.00124996104639, -0.00551593375469,
)  # fmt: skip
#: How far the filter, which is not quite symmetric, moves a picture in making it finer, in pixels;
#: making it coarser moves it back, but turned meanwhile.
DRIFT = (5.5 - sum(m * weight for m, weight in enumerate(LOWPASS))) / 2
#: Samples that the filter reaches beyond an edge, before and after the image is made finer.
REACH, FINE_REACH = 3, 5


class EDMAugment(Augmentation):
    """EDM's non-leaky augmentation: the denoiser is told what was done and does not imitate it.

    Mirrors half of the images; mirrors vertically, scales, rotates, stretches and shifts each image
    with a probability of its own. The 9 numbers of Karras et al. (2022, table 6) go to the
    backbone, which has to have `augment_dim = 9`.
    """

    condition_dim = 9

    @settings
    class Settings:
        """Keys of `use = "edm-augment"`."""

        chance: float = setting(0.12, help="probability of each change but x_flip", ge=0, le=1)
        x_flip: bool = setting(True, help="mirror half of all images, whatever the chance")
        y_flip: bool = setting(True, help="turn half of the chosen images upside down")
        scale: float = setting(0.2, help="standard deviation of log2 of the scale", ge=0, le=1)
        rotate: bool = setting(True, help="rotate by any angle")
        stretch: float = setting(
            0.2, help="standard deviation of log2 of the stretch in a random direction", ge=0, le=1
        )
        shift: float = setting(
            0.125, help="standard deviation of the shift, as a share of the image", ge=0, le=1
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        info = image_info(build, "edm-augment")
        self._domain = info.domain
        if min(info.shape[1:]) <= REACH:
            height, width = info.shape[1:]
            message = f"'edm-augment' needs more than {REACH} pixels a side, found {height}x{width}"
            refuse(build, "use", message, "take it out")

    def augment(self, batch: Augmented, rng: Draws) -> Augmented:
        """Moved copies and the 9 numbers of each; see `Augmentation.augment`."""
        size = len(batch.x)
        motion = self._motion(rng.uniform((size, 10)), rng.normal((size, 4)))
        x = moved(batch.x, motion, shift=self.settings.shift)
        if self._domain is not None:
            x = x.clamp(self._domain.low, self._domain.high)
        return batch._replace(x=x, c_augment=motion.told())

    def _motion(self, uniform: Tensor, normal: Tensor) -> Motion:
        """What is done, from uniform [B, 10] and normal [B, 4] numbers; zero where nothing is."""
        keys = self.settings
        on = (uniform[:, :5] < keys.chance).to(uniform.dtype)
        half = (uniform[:, 5:7] < 0.5).to(uniform.dtype)
        angles = (2 * uniform[:, 7:9] - 1) * math.pi
        return Motion(
            x_flip=half[:, 0] * float(keys.x_flip),
            y_flip=half[:, 1] * on[:, 0] * float(keys.y_flip),
            scale=normal[:, 0] * on[:, 1] * float(keys.scale > 0),
            angle=angles[:, 0] * on[:, 2] * float(keys.rotate),
            stretch=normal[:, 1] * on[:, 3] * float(keys.stretch > 0),
            direction=angles[:, 1],
            shift=normal[:, 2:] * on[:, 4:] * float(keys.shift > 0),
            log2_scale=keys.scale,
            log2_stretch=keys.stretch,
        )


@frozen(kw_only=True, eq=False)
class Motion:
    """A geometric change per image: mirror, scale, rotate, stretch, shift, in this order.

    Attributes:
        x_flip: 1 where left and right change places [B].
        y_flip: 1 where top and bottom do [B].
        scale: log2 of the scale in units of `log2_scale` [B].
        angle: Rotation, clockwise on the screen [B], in radians.
        stretch: log2 of the stretch along `direction` in units of `log2_stretch` [B].
        direction: Direction of the stretch [B], in radians.
        shift: Shift to the right and down [B, 2].
        log2_scale: Unit of `scale`.
        log2_stretch: Unit of `stretch`.
    """

    x_flip: Tensor
    y_flip: Tensor
    scale: Tensor
    angle: Tensor
    stretch: Tensor
    direction: Tensor
    shift: Tensor
    log2_scale: float = 0.2
    log2_stretch: float = 0.2

    def told(self) -> Tensor:
        """The numbers a denoiser gets [B, 9]."""
        columns = (
            self.x_flip, self.y_flip, self.scale, self.angle.cos() - 1, self.angle.sin(),
            self.stretch * self.direction.cos(), self.stretch * self.direction.sin(),
            self.shift[:, 0], self.shift[:, 1],
        )  # fmt: skip
        return torch.stack(columns, dim=1)

    def back(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Entries a, b, c, d of the matrices [[a, b], [c, d]] that undo all but flip and shift."""
        cos, sin = self.direction.cos(), self.direction.sin()
        # Not exp2, whose last bit depends on the size of the batch.
        along = (-math.log(2) * self.log2_stretch * self.stretch).exp()
        across = 1 / along
        p = cos.square() * along + sin.square() * across
        q = cos * sin * (along - across)
        r = sin.square() * along + cos.square() * across
        turn_cos, turn_sin = self.angle.cos(), self.angle.sin()
        shrink = (-math.log(2) * self.log2_scale * self.scale).exp()
        return (
            shrink * (turn_cos * p + turn_sin * q), shrink * (turn_cos * q + turn_sin * r),
            shrink * (turn_cos * q - turn_sin * p), shrink * (turn_cos * r - turn_sin * q),
        )  # fmt: skip

    def resamples(self) -> Tensor:
        """Images that more than a flip happens to [B], bool."""
        parts = torch.stack([self.scale, self.angle, self.stretch, *self.shift.unbind(1)])
        return (parts != 0).any(0)


def moved(x: Tensor, motion: Motion, *, shift: float = 0.125) -> Tensor:
    """Images `x` [B, C, H, W] after a motion; `shift` is the unit of shifts, as a share."""
    x = torch.where(motion.x_flip[:, None, None, None] > 0, x.flip(3), x)
    x = torch.where(motion.y_flip[:, None, None, None] > 0, x.flip(2), x)
    hit = motion.resamples()
    if x.device.type != "cpu":
        return torch.where(hit[:, None, None, None], _resampled(x, motion, shift), x)
    # Choosing images makes a GPU wait, and spares a CPU half of the work.
    rows = hit.nonzero().flatten()
    if len(rows):
        x[rows] = _resampled(x[rows], _rows(motion, rows), shift)
    return x


def _rows(motion: Motion, rows: Tensor) -> Motion:
    names = ("x_flip", "y_flip", "scale", "angle", "stretch", "direction", "shift")
    chosen = {name: getattr(motion, name)[rows] for name in names}
    return Motion(**chosen, log2_scale=motion.log2_scale, log2_stretch=motion.log2_stretch)


def _resampled(x: Tensor, motion: Motion, shift: float) -> Tensor:
    """Made twice as fine, read where pixels come from, and made coarse again [B, C, H, W]."""
    height, width = x.shape[2:]
    fine = _finer(_finer(x, 2), 3)
    # Places of the fine pixels relative to the centre, in pixels of the image.
    u, v = (
        (torch.arange(2 * n + 2 * FINE_REACH, device=x.device) - FINE_REACH - (n - 0.5)) / 2 + DRIFT
        for n in (width, height)
    )
    right = u[None, None, :] - (motion.shift[:, 0] * shift * width)[:, None, None]
    down = v[None, :, None] - (motion.shift[:, 1] * shift * height)[:, None, None]
    a, b, c, d = (entry[:, None, None] for entry in motion.back())
    # The last fine pixel lies n - 0.5 pixels of its own, that is (2 n - 1) / 4, from the centre.
    across = (a * right + b * down - DRIFT) * (4 / (2 * width - 1))
    along = (c * right + d * down - DRIFT) * (4 / (2 * height - 1))
    grid = torch.stack([across, along], dim=-1).to(x.dtype)
    read = F.grid_sample(fine, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
    return _coarser(_coarser(read, 3), 2)


def _finer(x: Tensor, axis: int) -> Tensor:
    """Twice as many pixels along an axis, by the lowpass filter; mirrored at the edges.

    A sum of shifted copies: convolutions round differently in batches of different size.
    """
    count = x.shape[axis]
    pads = (REACH, REACH, 0, 0) if axis == 3 else (0, 0, REACH, REACH)
    padded = F.pad(x, pads, mode="reflect")
    even, odd = (torch.zeros_like(x) for _ in range(2))
    for n in range(len(LOWPASS) // 2):
        even.add_(padded.narrow(axis, REACH + 2 - n, count), alpha=2 * LOWPASS[2 * n + 1])
        odd.add_(padded.narrow(axis, REACH + 3 - n, count), alpha=2 * LOWPASS[2 * n])
    return torch.stack([even, odd], dim=axis + 1).flatten(axis, axis + 1)


def _coarser(y: Tensor, axis: int) -> Tensor:
    """Half as many pixels along an axis, by the mirrored filter, which undoes `_finer`."""
    count = (y.shape[axis] - 2 * FINE_REACH) // 2
    shape = list(y.shape)
    shape[axis] = count
    out = y.new_zeros(shape)
    pairs = y.reshape(*y.shape[:axis], -1, 2, *y.shape[axis + 1 :])
    even, odd = pairs.unbind(axis + 1)
    for m, weight in enumerate(LOWPASS):
        out.add_((odd if m % 2 else even).narrow(axis, m // 2, count), alpha=weight)
    return out
