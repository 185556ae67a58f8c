# shellcheck shell=bash
# The cases: a file each, cases/NAME.sh, whose first comment line says what it pins.

# all_cases: their names, in the order in which they run.
all_cases() {
    local file
    for file in "$HERE"/cases/*.sh; do basename "$file" .sh; done
}

# describe NAME
describe() { sed -n '1s/^# *//p' "$HERE/cases/$1.sh"; }

# list_cases: for people.
list_cases() {
    local name width=0
    for name in $(all_cases); do [ "${#name}" -le "$width" ] || width=${#name}; done
    for name in $(all_cases); do printf "%-${width}s  %s\n" "$name" "$(describe "$name")"; done
}

# xenstored_of NAME: "ours" for a case with "# xenstored: ours" in its head, or else "stock".
xenstored_of() {
    local named
    named=$(sed -n 's/^# xenstored: *//p;/^[^#]/q' "$HERE/cases/$1.sh")
    echo "${XENSTORED:-${named:-stock}}"
}

# cases_on XENSTORED: the chosen ones that are to be run on it.
cases_on() {
    local name
    for name in "${CHOSEN[@]}"; do [ "$(xenstored_of "$name")" != "$1" ] || echo "$name"; done
}

# check_case NAME: ends the run if there is no such case.
check_case() {
    [ -e "$HERE/cases/$1.sh" ] && return
    say "tests/system/run: there is no case '$1'. There are:"
    list_cases >&2
    exit 2
}
