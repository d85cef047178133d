"""A plain DDPM step against the loops people write, with one U-Net for 32x32 colour images.

Peers: a hand-written loop; denoising-diffusion-pytorch's `GaussianDiffusion` and its EMA, as its
trainer steps them; diffusers' training example (`DDPMScheduler.add_noise`, the squared error,
`EMAModel`). All have AdamW, gradients clipped at 1 and an average of weights, the images in memory,
and copies of one network. The loss of one of our steps is first computed again by each peer from
the same noisy images. In bfloat16 our side also has its memory format; the peers stay as they are,
in float32, which is what their users run by default.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from advdiff_core.engine.distributed import World
from advdiff_core.engine.memory import keep_freed_memory
from advdiff_core.engine.trainer import Trainer
from tests.bench.duel import Agreement, duel, rounds_of
from tests.bench.peers import denoising_diffusion
from tests.bench.sides import pictures, trainer_of

BATCH, ROUNDS, WARM_UP, LEARNING_RATE, DECAY = 16, 15, 2, 1e-4, 0.999
CHANNELS = 64
LOOP = "a loop by hand"
BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
#: Of a mean over a batch, in single precision and in bfloat16.
ROUNDING = {"fp32": 1e-5, "bf16": 3e-2}
#: Our seconds over those of a library: as fast, and 1.8 times as fast with bfloat16. The loop by
#: hand has nothing but the work itself: 2 % more are ours to spend.
TARGET, BY_HAND = {"fp32": 1.0, "bf16": 1 / 1.8}, {"fp32": 1.02, "bf16": 1 / 1.8}


def trainer(precision: str, images: Path) -> Trainer:
    """Our side."""
    return trainer_of(
        {
            "advdiff": 1,
            "run": {"seed": 1, "batch": BATCH, "micro_batch": BATCH, "precision": precision,
                    "images": 10**9, "threads": 1},
            "data": {"use": "tensor-file", "path": str(images)},
            "schedule": {"use": "vp-linear"},
            "models": {"student": {"use": "unet", "channels": CHANNELS, "channel_mult": [1, 2, 2],
                                   "blocks": 1, "attention": [16]}},
            "terms": {"denoise": {"use": "denoise"}},
            "players": {"student": {
                "terms": ["denoise"], "optimizer": {"use": "adamw", "lr": LEARNING_RATE},
                "lr_schedule": {"law": "constant"}, "ema": [DECAY], "clip": 1.0}},
        }
    )  # fmt: skip


class Peer:
    """What all peers share: a copy of the network in float32, and its optimizer."""

    def __init__(self, net: nn.Module, data: Tensor) -> None:
        # As a user has it: float32, contiguous.
        self.net = copy.deepcopy(net).float().to(memory_format=torch.contiguous_format).train()
        self.net.requires_grad_(True)
        self.data = data
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=LEARNING_RATE)

    def batch(self) -> Tensor:
        """Images [B, 3, 32, 32] on [-1, 1]."""
        return self.data[torch.randint(len(self.data), (BATCH,))]

    def update(self, loss: Tensor) -> None:
        """Backward, clip, step."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def squared_alphas() -> Tensor:
    """Squares of the data's scale on the linear schedule, float64 [1000]."""
    return (1 - torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64)).cumprod(0)


class ByHand(Peer):
    """A loop without a library."""

    def __init__(self, net: nn.Module, data: Tensor) -> None:
        super().__init__(net, data)
        self.shadow = [one.detach().clone() for one in self.net.parameters()]
        kept = squared_alphas()
        self.alpha, self.sigma = kept.sqrt().float(), (1 - kept).sqrt().float()

    def loss(self, x0: Tensor, index: Tensor, eps: Tensor) -> Tensor:
        """The squared error at these times and this noise."""
        alpha, sigma = self.alpha[index, None, None, None], self.sigma[index, None, None, None]
        found = self.net(alpha * x0 + sigma * eps, (index + 1).float()).output
        return F.mse_loss(found, eps)

    def step(self) -> None:
        """One training step."""
        x0 = self.batch()
        self.update(self.loss(x0, torch.randint(1000, (BATCH,)), torch.randn_like(x0)))
        with torch.no_grad():
            torch._foreach_lerp_(self.shadow, list(self.net.parameters()), 1 - DECAY)


class Diffusers(Peer):
    """The loop of diffusers' unconditional training example."""

    def __init__(self, net: nn.Module, data: Tensor) -> None:
        super().__init__(net, data)
        self.scheduler = DDPMScheduler(**BETAS)
        self.average = EMAModel(self.net.parameters(), decay=DECAY)

    def loss(self, x0: Tensor, index: Tensor, eps: Tensor) -> Tensor:
        """The squared error at these times and this noise."""
        noisy = self.scheduler.add_noise(x0, eps, index)
        return F.mse_loss(self.net(noisy, (index + 1).float()).output.float(), eps.float())

    def step(self) -> None:
        """One training step."""
        x0 = self.batch()
        self.update(self.loss(x0, torch.randint(1000, (BATCH,)), torch.randn_like(x0)))
        self.average.step(self.net.parameters())


class Called(nn.Module):
    """Our network as denoising-diffusion-pytorch calls its own."""

    channels = out_dim = 3
    self_condition = random_or_learned_sinusoidal_cond = False

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, index: Tensor, _: None = None) -> Tensor:
        """Noise that it predicts."""
        output: Tensor = self.net(x, (index + 1).float()).output
        return output


class DenoisingDiffusion(Peer):
    """denoising-diffusion-pytorch, with its average of weights every ten updates."""

    def __init__(self, net: nn.Module, data: Tensor, library: Any) -> None:
        super().__init__(net, data)
        from ema_pytorch import EMA

        self.diffusion = library.GaussianDiffusion(
            Called(self.net), image_size=32, objective="pred_noise", beta_schedule="linear",
            auto_normalize=False,
        )  # fmt: skip
        self.average = EMA(self.diffusion, beta=DECAY, update_every=10)

    def loss(self, x0: Tensor, index: Tensor, eps: Tensor) -> Tensor:
        """The squared error at these times and this noise."""
        found: Tensor = self.diffusion.p_losses(x0, index, noise=eps)
        return found

    def step(self) -> None:
        """One training step."""
        self.update(self.diffusion(self.batch()))
        self.average.update()


def peers_of(net: nn.Module, data: Tensor) -> dict[str, Any]:
    """All that are installed."""
    found: dict[str, Any] = {
        LOOP: ByHand(net, data), "diffusers": Diffusers(net, data),
    }  # fmt: skip
    if (library := denoising_diffusion()) is not None:
        found["denoising-diffusion-pytorch"] = DenoisingDiffusion(net, data, library)
    return found


class Seen:
    """What our network was given in one step, and the loss that the step logged."""

    def __init__(self, ours: Trainer) -> None:
        net = ours.scene.roles["student"].module
        inputs: list[tuple[Tensor, Tensor]] = []
        hook = net.register_forward_pre_hook(
            lambda _, told: inputs.append((told[0].detach().float(), told[1].detach()))
        )
        self.weights = copy.deepcopy(net.state_dict())
        self.x0 = ours.feed.batch(ours.nimg, BATCH).x
        ours.train_step()
        hook.remove()
        (self.x_t, c_noise), = inputs  # fmt: skip
        self.index = c_noise.round().long() - 1
        self.loss = ours.stats.means(World())["loss/denoise"]

    def again(self, peer: Any) -> float:
        """The loss that a peer has for the same samples, times and noise."""
        kept = squared_alphas()[self.index]
        alpha, sigma = kept.sqrt()[:, None, None, None], (1 - kept).sqrt()[:, None, None, None]
        eps = ((self.x_t - alpha * self.x0) / sigma).float()
        held = copy.deepcopy(peer.net.state_dict())
        peer.net.load_state_dict(self.weights)
        with torch.no_grad():
            found = float(peer.loss(self.x0, self.index, eps))
        peer.net.load_state_dict(held)
        return found


def compare(precision: str, images: Path) -> list[dict[str, object]]:
    """The entries of one precision of ours."""
    ours = trainer(precision, images)
    with torch.no_grad():
        for parameter in ours.scene.roles["student"].module.parameters():
            # The last layer starts at zero: as it is, nothing would be there to compare.
            if not parameter.any():
                parameter.normal_(std=0.02)
    data = ours.feed.batch(0, 512).x
    seen = Seen(ours)
    peers = peers_of(ours.scene.roles["student"].module, data)
    agreements = {
        name: Agreement(abs(seen.again(peer) - seen.loss), ROUNDING[precision])
        for name, peer in peers.items()
    }
    sides: dict[str, Callable[[], object]] = {"ours": ours.train_step}
    sides |= {name: peer.step for name, peer in peers.items()}
    times = rounds_of(sides, rounds=ROUNDS, warm_up=WARM_UP)
    name = f"DDPM step, U-Net of {CHANNELS} channels, batch {BATCH}, {precision}"
    targets = {**dict.fromkeys(peers, TARGET[precision]), LOOP: BY_HAND[precision]}
    return duel(name, times, agreements, target=targets)


def run() -> list[dict[str, object]]:
    """The suite's entries."""
    torch.set_num_threads(1)
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        images = pictures(Path(folder))
        return [entry for precision in ("fp32", "bf16") for entry in compare(precision, images)]
