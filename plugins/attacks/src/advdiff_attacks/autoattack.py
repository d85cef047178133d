"""AutoAttack: several attacks in turn, each on the samples that are left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from advdiff_attacks.apgd import APGDCE, APGDDLR, APGDT
from advdiff_attacks.best import Best
from advdiff_attacks.buckets import BUCKET, remaining, settled
from advdiff_attacks.fab import FAB, FABT
from advdiff_attacks.square import Square
from advdiff_core import Attack, Budget, Draws, SearchCost, Victim
from advdiff_core.settings import setting, settings
from advdiff_core.types import Domain

__all__ = ["AutoAttack"]

Version = Literal["standard", "plus", "rand", "fast"]

#: Attacks of each version, in order.
VERSIONS: Mapping[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
    "fast": ("apgd-ce", "apgd-t"),
}


class AutoAttack(Attack):
    """The ensemble of Croce and Hein (2020), and in L1 of Croce and Hein (2021).

    A sample counts as broken once any attack breaks it; each attack gets the samples left. "fast"
    leaves out FAB and Square, which cost most: the robust accuracy it finds is an upper bound of
    that of "standard".
    """

    @settings
    class Settings:
        """Keys of `use = "autoattack"`; the defaults are those of the reference."""

        version: Version = setting(
            "standard", help="standard; plus; rand, for random victims; fast: an upper bound"
        )
        steps: int = setting(100, ge=1, help="steps of auto-PGD and FAB")
        targets: int = setting(
            0, ge=0, help="classes that targeted attacks aim at; 0: nine, auto-PGD in L1 five"
        )
        restarts: int = setting(
            0, ge=0, help="restarts of untargeted attacks; 0: five in plus and L1, else one"
        )
        queries: int = setting(5000, ge=0, help="queries of Square")
        eot: int = setting(20, ge=1, help="forward passes per point in version rand")
        bucket: int = setting(0, ge=0, help=BUCKET)
        interval: int = setting(10, ge=0, help="steps between drops of broken samples; 0: none")

    settings: Any

    def members(self) -> Mapping[str, Attack]:
        """The attacks of the version, in the order they run."""
        return {name: getattr(self, f"_{name.replace('-', '_')}")() for name in self._names()}

    def cost(self) -> SearchCost:
        """What all members cost, and a forward to judge each of them and the clean inputs."""
        costs = [member.cost() for member in self.members().values()]
        judging = len(costs) + 1
        probes = sum(cost.probes for cost in costs) + judging
        return SearchCost(probes, sum(cost.input_backwards for cost in costs))

    def search(
        self, victim: Victim, x: Tensor, budget: Budget, domain: Domain | None, rng: Draws
    ) -> Tensor:
        """See `Attack.search`. Where nothing is broken the point of largest victim's loss wins."""
        best = Best(x, *_verdict(victim, x))
        radius = torch.as_tensor(budget.radius).to(x.device)
        for name, member in self.members().items():
            rows, part = remaining(victim, best.broken)
            if not len(rows):
                break
            draws = rng.child(name).rows(rows)
            here = budget._replace(radius=radius[rows])
            found = member.run(part, x[rows], here, domain=domain, rng=draws)
            loss, broken = _verdict(part, found)
            # Where samples cannot be left out, a broken one stays as it was.
            best.update(found, loss.masked_fill(best.broken[rows], -torch.inf), broken, rows)
        return best.x

    def _names(self) -> tuple[str, ...]:
        return VERSIONS[self.settings.version]

    def _apgd_ce(self) -> Attack:
        return self._made(APGDCE, restarts=self._restarts(), **self._common())

    def _apgd_dlr(self) -> Attack:
        return self._made(APGDDLR, restarts=self._restarts(), **self._common())

    def _apgd_t(self) -> Attack:
        targets = self.settings.targets or (9 if self.settings.version == "plus" else 0)
        return self._made(APGDT, targets=targets, **self._common())

    def _fab(self) -> Attack:
        s = self.settings
        return self._made(FAB, steps=s.steps, restarts=s.restarts or 5, settle=True)

    def _fab_t(self) -> Attack:
        s = self.settings
        return self._made(FABT, steps=s.steps, targets=s.targets or 9, settle=True)

    def _square(self) -> Attack:
        s = self.settings
        return self._made(Square, queries=s.queries, bucket=s.bucket, interval=s.interval)

    def _made(self, kind: type[Attack], **keys: Any) -> Attack:
        make: Any = kind.Settings
        return kind(make(**keys), self.build)

    def _restarts(self) -> int:
        return self.settings.restarts or (5 if self.settings.version == "plus" else 0)

    def _common(self) -> dict[str, Any]:
        s = self.settings
        return {
            "steps": s.steps, "bucket": s.bucket, "interval": s.interval,
            "eot": s.eot if s.version == "rand" else 1,
            "enlarge": s.version in ("standard", "fast"),
        }  # fmt: skip


@torch.no_grad()
def _verdict(victim: Victim, x: Tensor) -> tuple[Tensor, Tensor]:
    """The victim's loss [B] at `x` [B, ...], and which samples are broken there [B]."""
    outputs = victim.outputs(x)
    return victim.loss(outputs), settled(victim, outputs)
