#!/usr/bin/env bash
# Sets up .venv with the test extras, then runs lint, types, import contracts, docs and all tests.
#
#   bash tests/run.sh                       everything; what CI runs
#   bash tests/run.sh tests/unit -k norms   pytest alone, with these arguments
#   bash tests/run.sh --lint                format, lint, types, import contracts, spelling, tests/lint
#   bash tests/run.sh --docs                the documentation alone, warnings as errors
#
# Every check runs even if an earlier one failed; the exit status is 1 if any failed. The last line printed
# is pytest's closing line.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_env.sh"
setup_env test
cd -- "$root"

# Two cores are enough: two processes of one thread, and processes that tests start inherit it.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Tests start `advdiff`, `torchrun` and each other from .venv.
export PATH=$venv/bin:$PATH

summary=()
failed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

check() {
    local name=$1 begin=$SECONDS verdict=ok
    shift
    printf '\n== %s\n' "$name"
    "$@" || { verdict=FAILED && failed=1; }
    summary+=("$(printf '%-8s %4d s  %s' "$verdict" $((SECONDS - begin)) "$name")")
}

types() {
    local sources=(plugins/*/src examples/third_party/*/src)
    [ -d "${sources[0]}" ] || sources=()
    # Sources of plugins are namespaces of their own: each has to be on mypy's path.
    MYPYPATH=$(IFS=: && printf '%s' "${sources[*]}") "$python" -m mypy advdiff_core ${sources[@]+"${sources[@]}"}
}

contracts() { "$python" -c 'from importlinter.cli import lint_imports_command as main; main()'; }

docs() {
    # -E: pages made from the components must not come from an earlier build.
    "$python" -m sphinx -W --keep-going -E -q -b html docs docs/_build/html
}

tests() { "$python" -m pytest -q "$@" 2>&1 | tee "$log"; }

# A file stays with one process: what its tests share is made once.
all_tests() { tests -n 2 --dist loadfile; }

lint() {
    check "ruff format" "$python" -m ruff format --check .
    check "ruff check" "$python" -m ruff check .
    check "mypy --strict" types
    check "import contracts" contracts
    check "codespell" "$python" -m codespell_lib
}

case ${1-} in
    "") lint && check "docs" docs && check "pytest" all_tests ;;
    --lint) lint && check "pytest tests/lint" tests tests/lint ;;
    --docs) check "docs" docs ;;
    *) tests "$@" && exit ;;
esac

printf '\n== summary\n'
printf '%s\n' "${summary[@]}"
grep -E ' in [0-9.]+s( \([0-9:]+\))?$' "$log" | tail -n 1 || true
exit "$failed"
