"""Whether an attack leaves the network and torch's random state as they were."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from advdiff_core.draws import keyed_generator
from advdiff_core.engine.robust.watch import Tally
from advdiff_core.errors import UnsoundError

__all__ = ["Guard", "digest_of", "keyed_randomness", "own_randomness"]


def digest_of(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, by name."""
    whole = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        whole.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        whole.update(_bytes(tensor))
    return whole.hexdigest()


class Guard:
    """Holds what a network was like, to find what changed.

    Args:
        module: The network.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._before = dict(_facts(module))

    def check(self, attack: str) -> None:
        """Compare with what it was.

        Raises:
            UnsoundError: E17, naming attack and tensor, if anything is different.
        """
        now = dict(_facts(self.module))
        changed = [
            name for name in {**self._before, **now} if self._before.get(name) != now.get(name)
        ]
        if changed:
            message = f"changed the network: {changed[0]} is not what it was"
            raise _refusal(attack, message)


def _facts(module: nn.Module) -> Iterator[tuple[str, object]]:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        yield f"tensor {name}", hashlib.blake2b(_bytes(tensor)).digest()
        yield f"requires_grad of {name}", tensor.requires_grad
        yield f"gradient of {name}", tensor.grad is not None
    for name, part in module.named_modules():
        yield f"the mode of {name or 'the network'}", part.training


def _bytes(tensor: Tensor) -> memoryview:
    plain = tensor.detach().cpu().contiguous().flatten()
    return memoryview(plain.view(torch.uint8).numpy() if plain.numel() else b"")  # type: ignore[arg-type]


@contextmanager
def keyed_randomness(key: tuple[object, ...], device: torch.device) -> Iterator[None]:
    """Run the body with torch's random state keyed, and put back afterwards.

    Args:
        key: Words that key the state.
        device: Device of the network.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(keyed_generator(*key, "global").initial_seed())
        yield


@contextmanager
def own_randomness(
    key: tuple[object, ...], device: torch.device, tally: Tally, attack: str
) -> Iterator[None]:
    """Run a search with torch's random state keyed and put back.

    A network that draws random numbers is then attacked in the same way when the evaluation is
    repeated or resumed.

    Args:
        key: Words that key the state.
        device: Device of the network.
        tally: Says whether the network itself draws.
        attack: Name, for the message.

    Raises:
        UnsoundError: E17 if the attack draws from the global generator, not from its own draws.
    """
    with keyed_randomness(key, device):
        before = torch.get_rng_state()
        yield
        if not tally.drew and not torch.equal(before, torch.get_rng_state()):
            raise _refusal(attack, "drew from torch's global random generator")


def _refusal(attack: str, message: str) -> UnsoundError:
    fix = "report it to the authors of the attack; leave it out meanwhile"
    return UnsoundError(message, code="E17", where=f"attack {attack}", fix=fix)
