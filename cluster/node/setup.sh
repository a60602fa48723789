#!/usr/bin/env bash
# Makes a machine ready for Windrose: Python packages in ~/windrose/venv, the checkpoint on disk.
# settings.env, beside this file, says which. For Ubuntu 24.04. Run again, it does what is missing.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=settings.env
. "$here/settings.env"

fail() {
    echo "setup.sh: $*" >&2
    exit 1
}

case "$WINDROSE_SOURCE" in
    *example.com*) fail "WINDROSE_SOURCE in cluster/node/settings.env is still the example" ;;
    git+*)
        [[ "${WINDROSE_SOURCE##*/}" == *@?* ]] ||
            fail "WINDROSE_SOURCE=$WINDROSE_SOURCE names no version: end it in @TAG or @COMMIT"
        requirement="windrose @ $WINDROSE_SOURCE"
        ;;
    /*) requirement="$WINDROSE_SOURCE" ;;
    *) fail "WINDROSE_SOURCE=$WINDROSE_SOURCE begins neither with git+ nor with /" ;;
esac

# The first line: Ubuntu's .bashrc returns early in shells that are not interactive.
touch ~/.bashrc
if ! grep -qxF ". $here/settings.env" ~/.bashrc; then
    { echo ". $here/settings.env"; cat ~/.bashrc; } > ~/.bashrc.new
    mv ~/.bashrc.new ~/.bashrc
fi

venv="$HOME/windrose/venv"
if [[ ! -x "$venv/bin/python" ]]; then
    # A machine that has just booted may still be installing its updates.
    sudo apt-get -o DPkg::Lock::Timeout=600 update -qq
    sudo apt-get -o DPkg::Lock::Timeout=600 install -y -qq python3-venv python3-dev g++ git
    python3 -m venv "$venv"
fi
if [[ "$(cat "$venv/windrose-source" 2> /dev/null)" != "$WINDROSE_SOURCE" ]]; then
    "$venv/bin/python" -m pip install --upgrade "$requirement"
    echo "$WINDROSE_SOURCE" > "$venv/windrose-source"
fi

case "$WINDROSE_WEIGHTS" in
    s3://*) command -v aws > /dev/null || "$venv/bin/python" -m pip install 'awscli>=1.40,<2' ;;
    hf://*) command -v hf > /dev/null || "$venv/bin/python" -m pip install 'huggingface_hub>=1,<3' ;;
esac
sudo install -d -o "$(id -un)" "$(dirname "$WINDROSE_MODEL_DIR")"
bash "$here/fetch_weights.sh" "$WINDROSE_WEIGHTS" "$WINDROSE_MODEL_DIR"
