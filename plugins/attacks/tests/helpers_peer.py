"""A classifier to attack, and pyautoattack's attacks made to draw the numbers that ours draw."""

from __future__ import annotations

import logging

import numpy as np
import torch
import torch.nn.functional as F
from advdiff_attacks.square_plan import Windows, bumps
from safetensors.torch import load_file
from torch import nn

from advdiff_core import Budget, Build, Domain, Draws

UNIT = Domain(0.0, 1.0)


class Victim:
    """A classifier's logits and labels; counts the samples it is asked about."""

    def __init__(self, net, labels, counts=None):
        self.net, self.labels = net, labels
        self.counts = {"samples": 0} if counts is None else counts

    def rows(self, rows):
        """The same network for some samples."""
        return Victim(self.net, self.labels[rows], self.counts)

    def outputs(self, x):
        """Logits."""
        self.counts["samples"] += len(x)
        return self.net(x)

    def loss(self, outputs):
        """Cross-entropy."""
        return F.cross_entropy(outputs, self.labels, reduction="none")

    def broken(self, outputs):
        """Misclassified samples."""
        return outputs.argmax(1) != self.labels


class TorchDraws(Draws):
    """Numbers as torch draws them one after the other, as pyautoattack does."""

    def __init__(self, seed):
        self.numbers = torch.Generator().manual_seed(seed)

    def child(self, *words):
        """Itself."""
        return self

    def rows(self, rows):
        """Itself."""
        return self

    def uniform(self, shape, low=0.0, high=1.0):
        """Numbers in [low, high)."""
        return low + (high - low) * torch.rand(shape, generator=self.numbers)

    def normal(self, shape):
        """Standard normal numbers."""
        return torch.randn(shape, generator=self.numbers)


def small_net(size=(3, 12, 12), classes=5, seed=0):
    """A convolutional classifier with drawn weights, frozen."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(size[0], 6, 3, stride=2), nn.Tanh(), nn.Flatten(),
        nn.Linear(6 * ((size[1] - 1) // 2) * ((size[2] - 1) // 2), classes),
    )  # fmt: skip
    with torch.no_grad():
        for one in net.parameters():
            scale = (2 / max(one[0].numel(), 1)) ** 0.5
            one.copy_(scale * torch.randn(one.shape, generator=generator))
        # Logits around zero, lest one class win everywhere.
        net[-1].bias -= net(pictures(64, size, seed=99)).mean(0)
    return net.requires_grad_(False).eval()


def pictures(count, size=(3, 12, 12), seed=1):
    """Images [B, C, H, W] on [0, 1]."""
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(seed))


def robust_net(folder):
    """The adversarially trained ResNet-2B of Wang et al. (2021), from its published tensors."""
    held = load_file(folder / "weights" / "cifar10_resnet2b_at_linf2.safetensors")
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).reshape(3, 1, 1)
    std = torch.tensor([0.2471, 0.2435, 0.2616]).reshape(3, 1, 1)

    def conv(h, name, stride, padding=1):
        return F.conv2d(h, held[f"{name}.weight"], held[f"{name}.bias"], stride, padding)

    def forward(x):
        h = F.relu(conv((x - mean) / std, "conv1", 2))
        for block, stride in (("layer1.0", 2), ("layer1.1", 1)):
            beside = conv(h, f"{block}.shortcut.0", stride, 0) if stride == 2 else h
            inner = F.relu(conv(h, f"{block}.conv1", stride))
            h = F.relu(conv(inner, f"{block}.conv2", 1) + beside)
        h = F.relu(F.linear(h.flatten(1), held["linear1.weight"], held["linear1.bias"]))
        return F.linear(h, held["linear2.weight"], held["linear2.bias"])

    return forward


def right_pictures(folder, net, count):
    """The first `count` test images of the small file of CIFAR-10 that are classified rightly."""
    with np.load(folder / "data" / "cifar10_mini.npz") as held:
        x = torch.from_numpy(held["x_test"]).permute(0, 3, 1, 2).float() / 255
        y = torch.from_numpy(held["y_test"].astype(np.int64))
    with torch.no_grad():
        right = (net(x).argmax(1) == y).nonzero().squeeze(1)[:count]
    return x[right].contiguous(), y[right]


def attacked(cls, keys, net, x, y, norm, radius, rng):
    """What one of our attacks finds [B, ...]."""
    attack = cls(cls.Settings(**keys), Build())
    return attack.run(Victim(net, y), x, Budget(norm, radius, "image"), domain=UNIT, rng=rng)


def beaten(net, x, y):
    """Which samples are misclassified [B]."""
    with torch.no_grad():
        return net(x).argmax(1) != y


def peer_apgd(kind, net, norm, radius, steps):
    """Pyautoattack's auto-PGD; `kind` is "ce", "dlr" or "t"."""
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
    common = {
        "n_iter": steps, "norm": name, "eps": radius, "seed": 0, "device": "cpu",
        "use_largereps": norm == "l1", "logger": logging.getLogger("peer"),
    }  # fmt: skip
    if kind == "t":
        return APGDAttack_targeted(net, n_target_classes=1, **common)
    return APGDAttack(net, loss=kind, **common)


def peer_square(net, norm, radius, plan: Windows, draws: Draws, count, channels, width, grid=25):
    """Pyautoattack's Square with our windows, signs and shapes, for `count` samples."""
    from pyautoattack.square import SquareAttack

    queries = len(plan.sizes)
    peer = SquareAttack(
        net, norm={"linf": "Linf", "l2": "L2", "l1": "L1"}[norm], n_queries=queries, eps=radius,
        seed=0, device="cpu", resc_schedule=False,
    )  # fmt: skip
    both = zip(plan.places, plan.seconds, strict=True)
    numbers = [n for one, two in both for n in ((*one,) if norm == "linf" else (*one, *two))]
    places = iter(numbers)
    peer.random_int = lambda low=0, high=1, shape=(1,): torch.tensor([next(places)])
    if norm == "linf":
        stripes = draws.uniform((count, channels, 1, width), -1.0, 1.0).sign()
        signs = iter([stripes, *(plan.signs.flatten(1).float() * 2 - 1)[:, :, None, None]])
        peer.random_choice = lambda shape: next(signs)
        return peer
    first = draws.uniform((count, channels, grid), -1.0, 1.0).sign().unbind(2)
    later = ((draws.uniform((count, queries, channels)) > 0.5).float() * 2 - 1).unbind(1)
    shapes = iter([*[False] * grid, *plan.turned])
    _follow(peer, iter([*first, *later]), shapes, 2 if norm == "l2" else 4, count)
    return peer


def _follow(peer, signs, shapes, power, count):
    """Give the peer signs of the samples that it has left, and bumps turned as ours are."""
    left, least = [torch.arange(count)], torch.full((count,), torch.inf)
    judge = peer.margin_and_loss

    def margin_and_loss(x, y):
        margin, loss = judge(x, y)
        rows = left[0]
        better = (margin < least[rows]) | (margin <= 0)
        least[rows] = torch.where(better, margin, least[rows])
        left[0] = (least > 0).nonzero().squeeze(1)
        return margin, loss

    def eta(side):
        bump = bumps(side, side, power).float()
        return bump.T if next(shapes) else bump

    peer.margin_and_loss = margin_and_loss
    peer.random_choice = lambda shape: next(signs)[left[0]][:, :, None, None]
    peer.eta = eta
