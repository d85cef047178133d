# shellcheck shell=bash
# Makes .venv in the repository root and installs core and every plugin into it, editable.
#
# Sourced by tests/run.sh and examples/quickstart.sh. `setup_env core` installs what running needs,
# `setup_env test` adds the test extras. Sets `root` and `python` (the interpreter of .venv).
# A second call takes about 0.1 s: a stamp in .venv holds the hash of every pyproject.toml.
#
# A plugin's tests/no-deps.txt names distributions that its tests need and that cannot be resolved beside
# the rest because of what they pin: they are installed last, without their dependencies.
#
# torch and torchvision (needed by plugins that bring it) must come from the same index, or torchvision
# does not import. One pip call for everything lets pip's resolver keep the pair together.

unset CDPATH PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
python=$venv/bin/python

say() { printf 'advdiff: %s\n' "$*" >&2; }

die() {
    say "$@"
    exit 1
}

# The first interpreter that is new enough and can make a virtual environment.
# It is asked rather than looked up: a pyenv shim exists for versions that are switched off.
find_python() {
    local candidate answer complaint=""
    for candidate in ${ADVDIFF_PYTHON:+"$ADVDIFF_PYTHON"} python3.13 python3.12 python3.11 python3 python; do
        answer=$("$candidate" -I -c '
import sys
if sys.version_info < (3, 11):
    print("old %d.%d.%d" % sys.version_info[:3])
else:
    try:
        import ensurepip, venv
        print("good")
    except ImportError:
        print("bare %d.%d" % sys.version_info[:2])
' 2>/dev/null) || continue
        case $answer in
            good) printf '%s\n' "$candidate" && return ;;
            old*) : "${complaint:=$candidate is Python ${answer#old }, and 3.11 or newer is needed - install it, or name one in ADVDIFF_PYTHON}" ;;
            bare*) complaint="$candidate cannot make a virtual environment (no ensurepip) - apt install python${answer#bare }-venv, or name another in ADVDIFF_PYTHON" ;;
        esac
    done
    die "${complaint:-no Python found, and 3.11 or newer is needed - install it, or name one in ADVDIFF_PYTHON}"
}

# What an installation depends on: interpreter, place (scripts hold it), every pyproject.toml and no-deps.txt.
wanted_stamp() {
    "$python" -I -c '
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
digest = hashlib.sha256(f"{sys.version}\n{root}\n".encode())
plugins = sorted(root.glob("plugins/*/pyproject.toml"))
judges = sorted(root.glob("plugins/*/tests/no-deps.txt"))
for path in [root / "pyproject.toml", *plugins, *root.glob("tests/toys/pyproject.toml"), *judges]:
    digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
print(digest.hexdigest())
' "$root"
}

# Distributions installed from a plugin folder that is gone, for example after a change of branch.
forgotten_plugins() {
    "$python" -I -c '
import importlib.metadata, json, pathlib, sys, urllib.parse
for dist in importlib.metadata.distributions():
    url = json.loads(dist.read_text("direct_url.json") or "{}").get("url", "")
    folder = pathlib.Path(urllib.parse.unquote(urllib.parse.urlparse(url).path))
    if folder.parent == pathlib.Path(sys.argv[1], "plugins") and not (folder / "pyproject.toml").exists():
        print(dist.metadata["Name"])
' "$root"
}

make_venv() {
    local base
    if "$python" -I -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then return; fi
    base=$(find_python) || exit 1
    say "making .venv with $("$base" -V 2>&1)"
    # --clear also mends an environment whose interpreter is gone or whose making was interrupted.
    "$base" -m venv --clear "$venv" || die "$base could not make $venv - see its message above"
}

install_all() {
    local extras=$1 manifest forgotten packages=()
    rm -f "$venv/.advdiff-core" "$venv/.advdiff-test"
    for manifest in "$root"/pyproject.toml "$root"/plugins/*/pyproject.toml; do
        if [ -f "$manifest" ]; then packages+=(-e "$(dirname -- "$manifest")$extras"); fi
    done
    say "installing advdiff and $((${#packages[@]} / 2 - 1)) plugins into .venv (the first time fetches torch: minutes)"
    # The tests' own components are a distribution like anyone else's.
    if [ -n "$extras" ] && [ -f "$root/tests/toys/pyproject.toml" ]; then packages+=(-e "$root/tests/toys"); fi
    forgotten=$(forgotten_plugins)
    # Names of distributions hold no spaces.
    # shellcheck disable=SC2086
    [ -z "$forgotten" ] || "$python" -m pip uninstall --yes $forgotten >&2
    "$python" -m pip install --disable-pip-version-check --no-input "${packages[@]}" >&2 \
        || die "pip could not install advdiff - see its message above; run this again once it is mended"
    if [ -n "$extras" ]; then install_without_dependencies; fi
    if ! "$python" -c 'import importlib.util as u; u.find_spec("torchvision") and __import__("torchvision")' 2>/dev/null; then
        die "torch and torchvision in .venv do not match - delete .venv and run this again"
    fi
}

install_without_dependencies() {
    local list
    for list in "$root"/plugins/*/tests/no-deps.txt; do
        [ -f "$list" ] || continue
        "$python" -m pip install --disable-pip-version-check --no-input --no-deps -r "$list" >&2 \
            || die "pip could not install what $list names - see its message above"
    done
}

# True if the stamp of `level`, or of the larger installation, is what is wanted now.
is_installed() {
    local level=$1 stamp
    stamp=$(wanted_stamp 2>/dev/null) || return 1
    [ "$stamp" = "$(cat "$venv/.advdiff-test" 2>/dev/null)" ] \
        || { [ "$level" = core ] && [ "$stamp" = "$(cat "$venv/.advdiff-core" 2>/dev/null)" ]; }
}

setup_env() {
    local level=$1 extras="[test]"
    if is_installed "$level"; then return; fi
    if [ "$level" = core ]; then extras=""; fi
    # One installation at a time; the second one then finds the stamp of the first.
    exec 9<"$root"
    if command -v flock >/dev/null; then flock 9; fi
    if ! is_installed "$level"; then
        make_venv
        install_all "$extras"
        # Written last and by rename: an interrupted installation leaves no stamp.
        wanted_stamp >"$venv/.advdiff-$level.part"
        mv "$venv/.advdiff-$level.part" "$venv/.advdiff-$level"
    fi
    exec 9<&-
}
