# shellcheck shell=bash
# Words for the terminal. Everything but the table goes to stderr, so that stdout can be piped.

say() { printf '%s\n' "$*" >&2; }

# step TITLE: something that takes a while begins.
step() { say "== $* (${SECONDS}s)"; }

# unable REASON...: the harness itself cannot go on; no case is to blame.
unable() {
    say "tests/system/run: $*"
    exit 2
}

# json_string TEXT: TEXT as a JSON string, quotes included.
json_string() {
    local text=$1
    text=${text//\\/\\\\}
    text=${text//\"/\\\"}
    text=${text//$'\n'/\\n}
    text=${text//$'\t'/\\t}
    text=$(printf '%s' "$text" | tr -d '\000-\037')
    printf '"%s"' "$text"
}
