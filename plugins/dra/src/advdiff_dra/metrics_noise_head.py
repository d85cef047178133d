"""Whether the robustness of a head on noisy features rests on its noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from attrs import evolve, frozen
from torch import Tensor

from advdiff_core import Build, Draws, Evaluation, Metric, SampleDraws
from advdiff_core.settings import setting, settings
from advdiff_dra.images import Images, refusal
from advdiff_dra.judged import Attacker, AttackSettings, Classifier, Judged

__all__ = ["NoiseHeadEOT", "NoisyVictim"]


@frozen(kw_only=True, eq=False)
class NoisyVictim:
    """A head whose noise is drawn anew for every question; see `Victim`.

    Outputs are those of all draws. The loss is the mean over draws of the cross-entropy, whose
    gradient is the mean of the gradients: expectation over transformation (Athalye et al. 2018,
    section 4.2). With one draw it is what an attack sees that takes the head for deterministic.

    Attributes:
        classifier: The head.
        labels: True classes [B].
        draws: Numbers of each sample, which go on from question to question.
        samples: Draws per question.
    """

    classifier: Classifier
    classes: Tensor
    draws: Draws
    samples: int
    labels: Tensor | None = None

    def outputs(self, x: Tensor) -> Tensor:
        """Logits [B, samples, K] at `x` [B, ...]."""
        found = []
        for _ in range(self.samples):
            eps = self.draws.normal(x.shape).to(x.device)
            found.append(self.classifier.logits(x, eps))
        return torch.stack(found, dim=1)

    def loss(self, outputs: Tensor) -> Tensor:
        """Mean cross-entropy [B] of `outputs` [B, samples, K]."""
        wanted = self.classes[:, None].expand(-1, outputs.shape[1])
        return F.cross_entropy(outputs.transpose(1, 2), wanted, reduction="none").mean(1)

    def broken(self, outputs: Tensor) -> Tensor:
        """Samples that more than half of the draws name wrong [B], of [B, samples, K]."""
        return outputs.argmax(2).ne(self.classes[:, None]).float().mean(1) > 0.5

    def rows(self, rows: Tensor) -> NoisyVictim:
        """The same for the samples `rows` [N]."""
        left = self.draws.rows(rows.cpu())
        return evolve(self, classes=self.classes[rows], draws=left)


class NoiseHeadEOT(Metric):
    """Robust accuracy of a head on noisy features, as three attacks see it; higher is better.

    Heads on diffusion features that draw noise when they answer look robust to attacks that take a
    single draw for the whole: 46.0 % fell to 17.3 % under averaged gradients (FOUND, appendix C of
    arXiv 2602.19931, of another head). The same attack is run three times: `noise_head_single`, its
    gradient from one draw a question; `noise_head_eot`, from the mean of `samples` draws;
    `noise_head_frozen`, on the head whose noise belongs to the image. The first two are scored by
    the mean share of `verdicts` fresh draws that name the image right, `noise_head_accuracy`
    without attack; images are never credited for a lucky draw of the attack. `noise_head_gap` is
    single minus eot: what the noise hides. With a gap above `flag` a note says that the single
    figure is not to be quoted.
    """

    needs_samples: ClassVar[bool] = False
    decoded: ClassVar[bool] = False
    source: ClassVar[str] = "Athalye et al. (2018, section 4.2); arXiv 2602.19931, appendix C"

    @settings
    class Settings(AttackSettings):
        """Keys of `use = "noise-head-eot"`."""

        eps: float = setting(8 / 255, ge=0, help="radius, on the [0, 1] scale of the data")
        samples: int = setting(20, ge=2, help="draws whose gradients are averaged")
        verdicts: int = setting(10, ge=1, help="fresh draws that score an image")
        flag: float = setting(
            0.02, ge=0, help="gap from which the single figure is not to be quoted"
        )

    settings: Settings

    def __init__(self, settings: Settings, build: Build) -> None:
        super().__init__(settings, build)
        self.judged = Judged(settings, build, probe=True)
        self.attacker = Attacker(settings, build)
        if not self.judged.reader.denoiser:
            message = f"{settings.role!r} is a classifier and gets no noise"
            raise refusal(build, "role", message, "name a denoiser")
        if self.attacker.attack is None:
            message = "there is no attack to compare"
            raise refusal(build, "attack", message, 'write attack = { use = "pgd" }')

    def protocol(self) -> Mapping[str, object]:
        """Data, head, attack, draws."""
        s = self.settings
        return {
            **self.judged.protocol(), **self.attacker.protocol(s.eps),
            "noise": "fresh for every question; frozen: one draw per image",
            "eot": f"mean gradient of {s.samples} draws", "scored by": f"{s.verdicts} fresh draws",
        }  # fmt: skip

    def compute(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Shares in [0, 1] by name."""
        found, s = self.judged.bind(evaluation), self.settings
        shares: dict[str, list[Tensor]] = {}
        for images in found.scored.batches(s.batch):
            clean = self._fresh(found, images, images.x, "clean")
            shares.setdefault("accuracy", []).append(clean)
            for name, samples in {"single": 1, "eot": s.samples}.items():
                victim = self._victim(found, images, samples, name)
                moved = self.attacker.run(victim, images, s.eps, evaluation)
                shares.setdefault(name, []).append(self._fresh(found, images, moved, name))
            fixed = found.victim(images)
            moved = self.attacker.run(fixed, images, s.eps, evaluation)
            frozen = found.right(fixed, images.x) & found.right(fixed, moved)
            shares.setdefault("frozen", []).append(frozen.double())
        numbers = {f"noise_head_{k}": float(torch.cat(v).mean()) for k, v in shares.items()}
        gap = numbers["noise_head_single"] - numbers["noise_head_eot"]
        if gap > s.flag:
            evaluation.note(
                f"attacked by single draws the head looks {100 * gap:.1f} points more robust than "
                "by averaged gradients: do not quote noise_head_single"
            )
        numbers["noise_head_gap"] = gap
        return {self.judged.name(name): value for name, value in numbers.items()}

    def _victim(
        self, found: Classifier, images: Images, samples: int, *words: object
    ) -> NoisyVictim:
        device = found.evaluation.device
        draws = SampleDraws((self.settings.seed, "dra fresh noise", *words), images.ids)
        assert images.y is not None, "checked when they were read"
        return NoisyVictim(
            classifier=found, classes=images.y.to(device), draws=draws, samples=samples
        )

    @torch.no_grad()
    def _fresh(self, found: Classifier, images: Images, x: Tensor, name: str) -> Tensor:
        """Share of fresh draws that name each image right [B]."""
        victim = self._victim(found, images, self.settings.verdicts, name, "verdict")
        outputs = victim.outputs(x.to(found.evaluation.device))
        return outputs.argmax(2).eq(victim.classes[:, None]).double().mean(1).cpu()
