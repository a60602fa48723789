#!/usr/bin/env bash
# fetch_weights.sh SOURCE DIRECTORY: brings a checkpoint to DIRECTORY; run again, only what is missing.
# SOURCE: s3://BUCKET/PATH, gs://BUCKET/PATH, hf://OWNER/NAME[@REVISION], or a /PATH that is there.
set -euo pipefail

fail() {
    echo "fetch_weights.sh: $*" >&2
    exit 1
}

[[ $# -eq 2 ]] || fail "usage: fetch_weights.sh SOURCE DIRECTORY"
source="$1" directory="$2"

need() {
    command -v "$1" > /dev/null || fail "$source: $1 is not installed"
}

case "$source" in
    s3://?*)
        need aws
        mkdir -p "$directory"
        aws s3 sync "${source%/}" "$directory" --no-progress \
            --exclude '*' --include '*.json' --include '*.safetensors' --include 'tokenizer.model' --include 'chat_template.jinja'
        ;;
    gs://?*)
        need gcloud
        mkdir -p "$directory"
        gcloud storage rsync "${source%/}" "$directory"
        ;;
    hf://?*/?*)
        need hf
        name="${source#hf://}"
        revision=()
        if [[ "$name" == *@* ]]; then
            revision=(--revision "${name##*@}")
        fi
        # A repository may hold the same weights in other formats as well.
        hf download "${name%%@*}" "${revision[@]}" --local-dir "$directory" \
            --include '*.json' --include '*.safetensors' --include 'tokenizer.model' --include 'chat_template.jinja'
        ;;
    /*)
        [[ -d "$source" ]] || fail "$source: no such directory on this machine"
        if [[ "${source%/}" != "${directory%/}" && ! "$source" -ef "$directory" ]]; then
            mkdir -p "$(dirname "$directory")"
            ln -sfn "${source%/}" "$directory"
        fi
        ;;
    *) fail "$source: begins with none of s3://, gs://, hf:// and /" ;;
esac

[[ -f "$directory/config.json" ]] || fail "$source: no config.json there"
