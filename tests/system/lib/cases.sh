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

# Cases run on a machine of their kind, one after another: "# machine: NAME" in the head of a case says
# which. "ours" has parapet-xenstored in place of Xen's; "stock", for those that say nothing, and
# "pvh", whose cases need a PVH guest, have Xen's. Machines run beside each other.
machine_of() {
    local named
    named=$(sed -n 's/^# machine: *//p;/^[^#]/q' "$HERE/cases/$1.sh")
    echo "${XENSTORED:-${named:-stock}}"
}

# machines: those that the chosen cases need; the one with the most to do is first.
machines() {
    local machine
    for machine in stock pvh ours; do
        [ -z "$(cases_on $machine)" ] || echo $machine
    done
}

# xenstored_of MACHINE
xenstored_of() { if [ "$1" = ours ]; then echo ours; else echo stock; fi; }

# cases_on MACHINE: the chosen ones that are to be run on it.
cases_on() {
    local name
    for name in "${CHOSEN[@]}"; do [ "$(machine_of "$name")" != "$1" ] || echo "$name"; done
}

# check_case NAME: ends the run if there is no such case.
check_case() {
    [ -e "$HERE/cases/$1.sh" ] && return
    say "tests/system/run: there is no case '$1'. There are:"
    list_cases >&2
    exit 2
}
