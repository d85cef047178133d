"""TopK sparse autoencoders of features (Gao et al. 2024)."""

from __future__ import annotations

from typing import Literal

import torch
from attrs import frozen
from torch import Tensor, nn

from advdiff_core.draws import keyed_generator, permutation

__all__ = ["Normaliser", "Plan", "TopKSAE", "fit_sae", "fvu", "relative_error"]

#: Adam's epsilon in the authors' code.
ADAM_EPS = 6.25e-10


@frozen(kw_only=True)
class Plan:
    """How an autoencoder is trained.

    Attributes:
        latents: Width L of the code.
        k: Latents that are not zero.
        steps: Updates.
        batch: Features per update.
        lr: Adam's learning rate.
        aux_k: Dead latents that reconstruct the residual.
        aux: Weight of that loss.
        dead_after: Features after which a latent that was never active is dead.
        ema: Decay of the average of the weights that is evaluated.
    """

    latents: int
    k: int
    steps: int = 2000
    batch: int = 256
    lr: float = 1e-4
    aux_k: int = 512
    aux: float = 1 / 32
    dead_after: int = 10_000_000
    ema: float = 0.999


@frozen(kw_only=True, eq=False)
class Normaliser:
    """What is done to features before they are coded; named, since errors depend on it.

    Attributes:
        kind: "none"; "scale": one factor that gives the training features a mean squared length of
            D; "layer": each feature vector is brought to mean 0 and deviation 1 over its entries.
        factor: The factor of "scale".
    """

    kind: Literal["none", "scale", "layer"]
    factor: float = 1.0

    @classmethod
    def of(cls, kind: Literal["none", "scale", "layer"], features: Tensor) -> Normaliser:
        """The one that training features [N, D] ask for."""
        mean_square = float(features.double().square().mean())
        return cls(kind=kind, factor=mean_square**-0.5 if mean_square > 0 else 1.0)

    def __call__(self, features: Tensor) -> Tensor:
        """Features [N, D] as the autoencoder sees them."""
        if self.kind == "scale":
            return features * self.factor
        if self.kind == "layer":
            centred = features - features.mean(1, keepdim=True)
            return centred / centred.std(1, keepdim=True, correction=0).clamp_min(1e-8)
        return features


class TopKSAE(nn.Module):
    """`z = TopK(relu(W_enc (a - b_pre) + b_lat))`, `a^ = W_dec z + b_pre`.

    The columns of W_dec have length 1; the encoder begins as its transpose (Gao et al. 2024,
    sections 2.3 and A.1), b_pre as the mean of the training features.

    Args:
        mean: Mean of the training features [D].
        latents: Width L of the code.
        k: Latents that are not zero.
        generator: Of the first directions.
    """

    def __init__(self, mean: Tensor, *, latents: int, k: int, generator: torch.Generator) -> None:
        super().__init__()
        self.k = min(k, latents)
        columns = torch.randn(latents, len(mean), generator=generator, dtype=mean.dtype)
        columns = (columns / columns.norm(dim=1, keepdim=True)).to(mean.device)
        self.decoder = nn.Parameter(columns)  # Rows are the columns of W_dec.
        self.encoder = nn.Parameter(columns.clone())
        self.b_pre = nn.Parameter(mean.clone())
        self.b_lat = nn.Parameter(mean.new_zeros(latents))

    def active(self, a: Tensor) -> Tensor:
        """All latents before the choice of k [N, L], of features [N, D]."""
        return ((a - self.b_pre) @ self.encoder.T + self.b_lat).relu()

    def encode(self, a: Tensor) -> Tensor:
        """The code [N, L], at most k entries of which are not zero, of features [N, D]."""
        return keep_top(self.active(a), self.k)

    def decode(self, z: Tensor) -> Tensor:
        """Features [N, D] of a code [N, L]."""
        return z @ self.decoder + self.b_pre

    def forward(self, a: Tensor) -> Tensor:
        """The reconstruction [N, D] of features [N, D]."""
        return self.decode(self.encode(a))

    @torch.no_grad()
    def straighten(self) -> None:
        """Leave the decoder's gradient no component along its columns."""
        gradient = self.decoder.grad
        if gradient is not None:
            along = (gradient * self.decoder).sum(1, keepdim=True)
            gradient -= along * self.decoder

    @torch.no_grad()
    def normalise(self) -> None:
        """Bring the decoder's columns to length 1."""
        self.decoder.div_(self.decoder.norm(dim=1, keepdim=True).clamp_min(1e-12))


def keep_top(latents: Tensor, k: int) -> Tensor:
    """Latents [N, L] with all but the k largest of each row set to zero."""
    found = latents.topk(min(k, latents.shape[1]), dim=1)
    return torch.zeros_like(latents).scatter(1, found.indices, found.values)


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean over rows of `|a^ - a|^2 / |a|^2` of [N, D]: the normalised error of the authors' code.

    Rows of zeros are left out.
    """
    length = wanted.square().sum(1)
    alive = length > 0
    error = (found - wanted).square().sum(1)
    return (error[alive] / length[alive]).sum() / max(int(alive.sum()), 1)


def fvu(found: Tensor, wanted: Tensor) -> Tensor:
    """`sum |a^ - a|^2 / sum |a - mean|^2` of [N, D]: fraction of variance unexplained.

    The error divided by that of predicting the mean, as in the text of Gao et al. (2024).
    """
    return (found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()


def fit_sae(features: Tensor, plan: Plan, *, key: tuple[object, ...]) -> TopKSAE:
    """Train an autoencoder of features [N, D]; the averaged weights are returned.

    O(steps * batch * D * L) operations. The same features, plan and key give the same weights.

    Args:
        features: Training features [N, D], normalised.
        plan: How.
        key: Words of the draws.
    """
    sae = TopKSAE(
        features.mean(0), latents=plan.latents, k=plan.k, generator=keyed_generator(*key, "init")
    )
    average = {name: p.detach().clone() for name, p in sae.named_parameters()}
    adam = torch.optim.Adam(sae.parameters(), lr=plan.lr, eps=ADAM_EPS)
    silent = torch.zeros(plan.latents, dtype=torch.int64)
    batches = _batches(len(features), plan, key)
    for step, rows in enumerate(batches, start=1):
        _update(sae, adam, features[rows], silent, plan)
        # The decay grows to its value, so that short trainings forget where they began.
        decay = min(plan.ema, (1 + step) / (10 + step))
        for name, p in sae.named_parameters():
            average[name].lerp_(p.detach(), 1 - decay)
    sae.load_state_dict(average)
    sae.normalise()
    return sae.requires_grad_(False)


def _batches(count: int, plan: Plan, key: tuple[object, ...]) -> list[Tensor]:
    """Rows of every update: whole passes in keyed orders."""
    size, turn = min(plan.batch, count), 0
    found: list[Tensor] = []
    while len(found) < plan.steps:
        order = permutation(count, *key, "pass", turn)
        found += [rows for rows in torch.split(order, size) if len(rows) == size]
        turn += 1
    return found[: plan.steps]


def _update(
    sae: TopKSAE, adam: torch.optim.Optimizer, a: Tensor, silent: Tensor, plan: Plan
) -> None:
    latents = sae.active(a)
    z = keep_top(latents, sae.k)
    found = sae.decode(z)
    loss = relative_error(found, a)
    fired = (z > 0).any(0)
    silent += len(a)
    silent[fired] = 0
    dead = silent > plan.dead_after
    if plan.aux and bool(dead.any()):
        wanted = (a - found).detach()
        revived = keep_top(latents * dead, plan.aux_k) @ sae.decoder
        loss = loss + plan.aux * relative_error(revived, wanted)
    adam.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    sae.straighten()
    adam.step()
    sae.normalise()
