"""Runs and measurements of the experiments, each made once: what is there already is read."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Lab", "arguments", "commit", "toml"]


def toml(value: Any) -> str:
    """A value as TOML, in one line."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{key} = {toml(each)}" for key, each in value.items())
        return f"{{ {inner} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(str(value) if isinstance(value, Path) else value)


def commit() -> str:
    """The commit of these scripts, marked if code or recipes differ from it; records may."""
    git = ["git", "-C", str(Path(__file__).parents[2])]
    told = subprocess.run(
        [*git, "describe", "--always"], capture_output=True, text=True, check=True
    ).stdout.strip()
    same = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py", "*.toml"], check=False)
    return told if same.returncode == 0 else f"{told}-dirty"


class Lab:
    """Trains and measures by the command line, as a user would.

    Args:
        out: Folder of the runs.
        data: Folder of the data sets' files and of weights; see the page.
        records: Folder of the finished numbers, in git; runs themselves are not.
    """

    def __init__(self, out: Path, data: Path | None, records: Path) -> None:
        self.out, self.data, self.records = out, data, records
        out.mkdir(parents=True, exist_ok=True)

    def train(self, name: str, recipe: Path, keys: Mapping[str, Any]) -> Path:
        """The finished run of that name; trained, or gone on with, if it is not there."""
        found = sorted(self.out.glob(f"[0-9]*-{name}"))
        if found and (found[-1] / "evaluation.json").exists():
            return found[-1]
        if found and list(found[-1].glob("checkpoints/*/COMMIT")):
            self._advdiff("train", "--resume", found[-1])
            return found[-1]
        options = _options({"run.name": name, **keys})
        done = self._advdiff("train", recipe, *options, "--out", self.out)
        print(name, done["metrics"], file=sys.stderr, flush=True)
        return Path(done["run"])

    def measure(self, run: Path, keys: Mapping[str, Any], checkpoint: int = 0) -> dict[str, Any]:
        """Metrics of a run, measured in the way that `keys` say; its own if they say nothing.

        Args:
            run: Its folder.
            keys: Keys of the measurement.
            checkpoint: Images of the checkpoint that is measured; 0: the newest.
        """
        # The run's own evaluation is kept aside: another measurement takes its place.
        own = run / "measured" / "own.json"
        if not own.exists():
            own.parent.mkdir(exist_ok=True)
            own.write_text((run / "evaluation.json").read_text())
        if not keys:
            kept: dict[str, Any] = json.loads(own.read_text())
            return kept
        told = {**keys, "checkpoint": checkpoint} if checkpoint else keys
        digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
        place = run / "measured" / f"{digest.hexdigest()[:16]}.json"
        if not place.exists():
            at = ["--checkpoint", checkpoint] if checkpoint else []
            found = self._advdiff("evaluate", run, *at, *_options(keys))
            # Where it lies is no business of a record.
            found["run"] = run.name
            place.write_text(json.dumps(found))
            print(run.name, found["metrics"], file=sys.stderr, flush=True)
        result: dict[str, Any] = json.loads(place.read_text())
        return result

    def shards(self, run: Path, name: str, count: int, keys: Mapping[str, Any]) -> Path:
        """A folder of images that a run drew, drawn if it is not there; labels take turns."""
        place = self.out / name
        if not (place / "index.json").exists():
            options = ["--to", "shards", "--num", count, "--batch", 250, "--out", place]
            self._advdiff("sample", run, *options, *_options(keys))
        return place

    def attack(self, run: Path, name: str, words: Sequence[object]) -> dict[str, Any]:
        """The report of a run under attack, kept in the run by a name; attacked if there is none.

        Args:
            run: The run.
            name: Folder in `RUN/robust`.
            words: Options of `advdiff evaluate`.
        """
        place = run / "robust" / name / "report.json"
        if not place.exists():
            self._advdiff("evaluate", run, *words, "--name", name)
        found: dict[str, Any] = json.loads(place.read_text())
        return found

    def record(self, name: str, found: Any) -> None:
        """Keep numbers for the page, and the commit that made them."""
        self.records.mkdir(exist_ok=True)
        commits = self.records / "commits.json"
        known = json.loads(commits.read_text()) if commits.exists() else {}
        known[name] = commit()
        for path, content in ((self.records / f"{name}.json", found), (commits, known)):
            path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")

    def _advdiff(self, *words: object) -> Any:
        command = [sys.executable, "-m", "advdiff_core", *map(str, words), "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        # 6: the numbers of the run blew up, which is a result of the ablation.
        if done.returncode not in (0, 6):
            sys.exit(f"{' '.join(command)} ended with {done.returncode}")
        return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {"metrics": {}}


def _options(keys: Mapping[str, Any]) -> list[str]:
    return [word for key, value in keys.items() for word in ("-s", f"{key}={toml(value)}")]


def arguments(
    text: str | None, more: Sequence[str] = (), paths: Mapping[str, str] | None = None
) -> argparse.Namespace:
    """The options that the scripts share: `--out`, `--data`, and names that choose a part.

    Args:
        text: Description for `--help`.
        more: Parts that may be asked for; all if none is.
        paths: Further options that name a folder, and their help.
    """
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--data", type=Path, help="folder with the data sets' files and weights")
    for name, told in (paths or {}).items():
        parser.add_argument(f"--{name}", type=Path, help=told)
    parser.add_argument("parts", nargs="*", choices=[*more, []], help="all if left out")
    return parser.parse_args()
