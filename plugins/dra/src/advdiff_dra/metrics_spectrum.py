"""Frequencies that a classifier is sensitive to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from safetensors.torch import save
from torch import Tensor

from advdiff_core import Build, Evaluation, Metric
from advdiff_core.hooks.curves import write_curves
from advdiff_core.hooks.files import write_file
from advdiff_core.hooks.pictures import grid_png
from advdiff_core.interfaces.query import input_gradient
from advdiff_core.settings import setting, settings
from advdiff_dra.images import Images, refusal
from advdiff_dra.judged import Attacker, AttackSettings, Classifier, Judged
from advdiff_dra.metrics_probe import stem
from advdiff_dra.spectrum import BANDS, Spectrum, radial

__all__ = ["FrequencySaliency"]


class FrequencySaliency(Metric):
    """Shares of low, mid and high frequencies in what moves a classifier's loss.

    Without an attack of the input gradients of the cross-entropy (Figure 10 of arXiv 2602.19931),
    with one of its perturbations (Figure 3(a)). Per image and channel `|FFT2|`, mean over channels,
    scaled to sum 1, mean over images: `saliency_low`, `_mid` and `_high` are its sums below 1/6,
    1/3 and above, in cycles per pixel; `saliency_energy_...` those of squared magnitudes. A
    denoiser is judged by a linear probe. `frequency-saliency-<role>.png` shows the map (logarithm,
    zero frequency in the middle), `-radial.csv` and `.png` its mean over rings, `.safetensors`
    holds both maps, for differences of two models. DERIVED: the definition; the paper's figures
    come without one. On the training data, if `data` is left out, names begin with `train_`.
    """

    needs_samples: ClassVar[bool] = False
    decoded: ClassVar[bool] = False
    source: ClassVar[str] = "arXiv 2602.19931, Figures 3(a) and 10"

    @settings
    class Settings(AttackSettings):
        """Keys of `use = "frequency-saliency"`."""

        eps: float = setting(8 / 255, gt=0, help="radius, on the [0, 1] scale of the data")

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        if build.data is not None and not build.data.is_image:
            message = f"samples of shape {list(build.data.shape)} have no spectrum"
            raise refusal(build, "data", message, "name a dataset of images")
        self.judged = Judged(settings, build)
        self.attacker = Attacker(settings, build)

    def protocol(self) -> Mapping[str, object]:
        """Data, classifier, what is transformed, bands."""
        what = "perturbation" if self.attacker.attack is not None else "gradient of cross-entropy"
        return {
            **self.judged.protocol(), **self.attacker.protocol(self.settings.eps), "of": what,
            "map": "|FFT2| per image, mean over channels, scaled to sum 1, mean over images",
            "bands": {name: f"from {low:.4g} cycles per pixel" for name, (low, _) in BANDS.items()},
        }  # fmt: skip

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Shares by name."""
        found, spectrum = self.judged.bind(evaluation), None
        for images in found.scored.batches(self.settings.batch):
            moved = self._moved(found, images)
            spectrum = spectrum or Spectrum(*moved.shape[2:])
            spectrum.add(moved)
        assert spectrum is not None, "there are images"
        if spectrum.empty:
            evaluation.note(f"{spectrum.empty} images were not moved, and left out")
        self._write(evaluation, spectrum)
        numbers = {f"saliency_{k}": v for k, v in spectrum.bands(spectrum.magnitude).items()}
        numbers |= {f"saliency_energy_{k}": v for k, v in spectrum.bands(spectrum.energy).items()}
        return {self.judged.name(name): value for name, value in numbers.items()}

    def _moved(self, found: Classifier, images: Images) -> Tensor:
        """Perturbations, or gradients, of a batch [B, C, H, W] on the CPU."""
        victim, device = found.victim(images), found.evaluation.device
        if self.attacker.attack is not None:
            moved = self.attacker.run(victim, images, self.settings.eps, found.evaluation)
            return (moved - images.x.to(device)).cpu()
        x = images.x.to(device).requires_grad_()
        return input_gradient(victim.loss(victim.outputs(x)), x).cpu()

    def _write(self, evaluation: Evaluation, spectrum: Spectrum) -> None:
        s, plane = self.settings, spectrum.magnitude
        path = evaluation.folder / stem("frequency-saliency", s.role, s.tap)
        maps = {"magnitude": plane, "energy": spectrum.energy}
        write_file(path.with_suffix(".safetensors"), save(maps))
        log = plane.clamp_min(1e-12).log10()
        low, high = float(log.min()), float(log.max())
        shown = [("log10 of the magnitude", log[None, None].float())]
        write_file(path.with_suffix(".png"), grid_png(shown, low=low, high=max(high, low + 1e-6)))
        curve = {"magnitude": radial(plane), "energy": radial(spectrum.energy)}
        name = path.with_name(f"{path.name}-radial")
        write_curves(name, "cycles per pixel", curve, title="mean over rings")
