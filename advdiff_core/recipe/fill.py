"""What a recipe means where it says nothing: tables and keys whose default depends on others.

The least recipe that trains is

    [data]
    use = "digits"
    [models.student]
    use = "unet"

and stands for a `vp-linear` schedule, one term `denoise`, one player `student` with `adamw` and an
average of rate 0.999, sampled by `ddim`. Filling happens on plain tables, before anything is
judged; whatever has another shape than expected is left as it is, for the judgement to find.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["OPTIMIZER", "denoisers", "filled", "run_name"]

#: Rate of the average a denoiser gets if the recipe names none.
EMA_RATE = 0.999
#: Optimizer of a player that names none.
OPTIMIZER = "adamw"


def filled(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The tables of a recipe with every dependent default written out.

    Args:
        data: Tables as merged.
        name: Name of the run if the recipe gives none.
    """
    full = {key: dict(value) if isinstance(value, dict) else value for key, value in data.items()}
    run = full.setdefault("run", {})
    if isinstance(run, dict):
        run.setdefault("name", name)
    schedule = full.setdefault("schedule", {})
    if isinstance(schedule, dict):
        schedule.setdefault("use", "vp-linear")
    full["models"] = _models(full.get("models", {}))
    _terms(full)
    _players(full)
    _sample(full)
    return full


def run_name(path: Path) -> str:
    """A run's name from its recipe's file name, with only what names may hold."""
    stem = path.name.removesuffix(".toml").removesuffix(".recipe").removesuffix(".lock")
    text = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in stem)
    return text.strip("-")[:64] or "run"


def denoisers(models: Any) -> list[str]:
    """Roles that predict noise or samples, sorted: backbones with a parametrization."""
    if not isinstance(models, dict):
        return []
    return sorted(
        role
        for role, model in models.items()
        if isinstance(model, dict)
        and model.get("kind", "backbone") == "backbone"
        and model.get("parametrization", "eps") != "none"
    )


def _models(models: Any) -> Any:
    """Only backbones have a parametrization."""
    if not isinstance(models, dict):
        return models
    return {
        role: {"parametrization": "none", **model}
        if isinstance(model, dict) and model.get("kind", "backbone") != "backbone"
        else model
        for role, model in models.items()
    }


def _terms(full: dict[str, Any]) -> None:
    """Without any term, a recipe with a denoiser learns to denoise."""
    found = denoisers(full["models"])
    if "terms" not in full and found:
        role = {} if "student" in found else {"role": found[0]}
        full["terms"] = {"denoise": {"use": "denoise", **role}}


def _players(full: dict[str, Any]) -> None:
    models, terms = full["models"], full.get("terms", {})
    if not isinstance(models, dict) or not isinstance(terms, dict):
        return
    if "players" not in full:
        trained = [role for role, model in models.items() if not _is_frozen(model)]
        full["players"] = {trained[0]: {}} if len(trained) == 1 else {}
    players = full["players"]
    if not isinstance(players, dict):
        return
    full["players"] = {
        name: _player(name, player, full, alone=len(players) == 1)
        for name, player in players.items()
    }


def _is_frozen(model: Any) -> bool:
    """Alignment targets are frozen by their contract."""
    if not isinstance(model, dict):
        return False
    return model.get("frozen") is True or model.get("kind") == "alignment_target"


def _player(name: str, player: Any, full: Mapping[str, Any], *, alone: bool) -> Any:
    if not isinstance(player, dict):
        return player
    terms = full.get("terms", {})
    made: dict[str, Any] = {"models": [name], **player}
    if alone:
        made.setdefault("terms", sorted(terms))
    optimizer = made.setdefault("optimizer", {"use": OPTIMIZER})
    if isinstance(optimizer, dict) and "use" not in optimizer:
        made["optimizer"] = {"use": OPTIMIZER, **optimizer}
    models = made["models"]
    trains_denoiser = isinstance(models, list) and any(
        role in denoisers(full["models"]) for role in models
    )
    made.setdefault("ema", [EMA_RATE] if trains_denoiser else [])
    return made


def _sample(full: dict[str, Any]) -> None:
    """Where there is a denoiser, there are samples; the first average if there is one."""
    found = denoisers(full["models"])
    sample = full.get("sample", {})
    if not isinstance(sample, dict) or ("sample" not in full and not found):
        return
    made = {"use": "ddim", **sample}
    if found and "role" not in made:
        made["role"] = "student" if "student" in found else found[0]
    if "ema" not in made:
        made["ema"] = 0 if _averages(full.get("players"), made.get("role")) else -1
    full["sample"] = made


def _averages(players: Any, role: Any) -> int:
    """How many averages of a role are kept."""
    if not isinstance(players, dict):
        return 0
    for player in players.values():
        if isinstance(player, dict) and isinstance(player.get("models"), list):
            ema = player.get("ema")
            if role in player["models"] and isinstance(ema, list):
                return len(ema)
    return 0
