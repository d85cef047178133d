"""Features of a frozen denoiser as alignment targets."""

from __future__ import annotations

from torch import Tensor

from advdiff_core.draws import Draws
from advdiff_core.interfaces.alignment_target import AlignmentTarget
from advdiff_core.interfaces.component import Build
from advdiff_core.interfaces.frozen_network import FrozenNetwork
from advdiff_core.settings import setting, settings
from advdiff_dra.classifiers import refuse
from advdiff_dra.noise_levels import NoiseLevels
from advdiff_dra.ranges import Mover
from advdiff_dra.tap_reader import TapReader, TapSettings

__all__ = ["DiffusionFeatures"]


class DiffusionFeatures(AlignmentTarget):
    """Features that a frozen denoiser has of a noised clean image, at one of its taps.

    The teacher of DRA (arXiv 2602.19931, section 4): `E(x_t, t, c)` with `x_t` the noised image.
    The teacher runs up to the tap and no further. For a U-Net the paper takes a block of the
    bottleneck, averaged over space. Noise level, block and condition are not known from the paper's
    text; their defaults are ours. A denoiser of latents is read by `latent-diffusion-features`.
    """

    @settings
    class Settings(TapSettings):
        """Keys of `use = "diffusion-features"`."""

        teacher: str = setting("teacher", ref="role", help="frozen denoiser")
        domain: tuple[float, float] | None = setting(
            None, help="range of the images that the teacher knows; the data's own if left out"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.network = self._teacher()
        self.reader = TapReader(settings, build, self.network, name=settings.teacher)
        self.mover = Mover(build, settings.domain, self.network.trained_on)

    @property
    def width(self) -> int:
        """Channels of the tap."""
        return self.reader.width

    @property
    def levels(self) -> NoiseLevels:
        """At which noise levels the teacher looks at images."""
        return self.reader.levels

    def forward(self, x0: Tensor, labels: Tensor | None, rng: Draws) -> Tensor:
        """Features [B, D], or [B, N, D] without pooling; see `AlignmentTarget.forward`."""
        found: Tensor = self.reader(self.mover(x0), labels, rng)
        return found

    def _teacher(self) -> FrozenNetwork:
        """The denoiser.

        Raises:
            RecipeError: R10 if the role is none.
        """
        role = self.settings.teacher
        network = self.build.network(role, key="teacher")
        if network.info.parametrization == "none":
            message = f"model {role!r} is a classifier, not a denoiser"
            refuse(self.build, "teacher", message, "take noisy-classifier-features for it")
        return network
