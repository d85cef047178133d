"""K01: kill -9 again and again; nothing is lost."""

import json
import subprocess
import sys
from pathlib import Path

RECIPE = Path(__file__).parents[1] / "recipes" / "players.toml"


def test_twenty_kills_change_no_bit_of_weights_averages_optimizers_and_metrics(tmp_path):
    """K01: 20 SIGKILLs, half inside a save; two players, averages, an adversarial view."""
    program = Path(__file__).with_name("kill_rounds.py")
    command = [sys.executable, program, RECIPE, tmp_path, "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == 20
    assert found["inside_save"] >= 10
