#!/usr/bin/env bash
# Sets up .venv, then trains examples/quickstart.toml on real digits and makes its report.
#
#   bash examples/quickstart.sh                       about five minutes on two CPU cores
#   bash examples/quickstart.sh -s run.images=20_000  a short look; arguments go to `advdiff train`
#
# Needs Python 3.11 or newer, and the network only while packages are installed. The run lands in runs/.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../tests/setup_env.sh"
setup_env core

advdiff=$venv/bin/advdiff
# Whatever else is installed, this run sees the plugins of this repository alone.
plugins=("$root"/plugins/*/)
plugins=("${plugins[@]%/}")
ADVDIFF_PLUGINS=$(IFS=, && printf '%s' "${plugins[*]/#*\//advdiff-}")
export ADVDIFF_PLUGINS
result=$(mktemp)
trap 'rm -f "$result"' EXIT

# Not in a pipe: Ctrl-C must reach advdiff alone, which saves and says how to go on.
status=0
"$advdiff" train "$root/examples/quickstart.toml" --out "$root/runs" --json "$@" >"$result" || status=$?
if [ "$status" != 0 ]; then
    [ "$status" != 75 ] || say "advdiff is $advdiff, or: source '$venv/bin/activate'"
    exit "$status"
fi

# The last line is an object with the run folder and its metrics; `--help` prints none.
"$python" -I -c '
import json, sys
lines = sys.stdin.read().splitlines()
try:
    result = json.loads(lines[-1])
except (IndexError, ValueError):
    print(*lines, sep="\n", file=sys.stderr)
else:
    print(result["run"])
    for name, value in result["metrics"].items():
        print(f"  {name:32} {value:.4g}", file=sys.stderr)
    for name, protocol in result.get("protocols", {}).items():
        words = ", ".join(f"{key} {value}" for key, value in protocol.items())
        print(f"  {name}: {words}", file=sys.stderr)
' <"$result" | {
    read -r run || exit 0
    "$advdiff" report "$run" >/dev/null
    say "run      $run"
    say "picture  $(ls -1 "$run"/images/*.png | tail -n 1)"
    say "report   $run/report.html"
}
