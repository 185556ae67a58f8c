# shellcheck shell=bash
# Follows a run by the lines that domain 0 writes into RESULTS/progress, and says what came of it:
#
#   up SECONDS                          begin NAME
#   end NAME ok|failed SECONDS REASON   unable REASON          shell          done

STARTED=no
PASSED=0
FAILED=0
ROWS=()
NOTES=()

# follow: until domain 0 is done, the machine stops, or the time is up.
follow() {
    local seen=0 line now="" deadline=$((SECONDS + LIMIT))
    : >>"$RESULTS/progress"
    while :; do
        while IFS= read -r line; do
            seen=$((seen + 1))
            take "$line" || return 0
            case $line in
            begin\ *) now=${line#begin } ;;
            end\ *) now="" ;;
            shell)
                attach_terminal
                return 0
                ;;
            esac
        done < <(tail -n +$((seen + 1)) "$RESULTS/progress")
        if ! running; then
            lost "the machine stopped: $(crash || echo 'no reason on its console')" "$now"
            return
        fi
        if [ "$SECONDS" -ge "$deadline" ]; then
            lost "the machine was not done after $LIMIT s (--limit)" "$now"
            return
        fi
        sleep 0.2
    done
}

# take LINE: one line of progress; 1 when it is the last.
take() {
    local name result seconds reason
    case $1 in
    up\ *)
        STARTED=yes
        say "   Xen, domain 0 and its daemons are up (${1#up } s since power-on)"
        ;;
    end\ *)
        read -r _ name result seconds reason <<<"$1"
        row "$name" "$result" "$seconds" "$reason"
        ;;
    unable\ *)
        NOTES+=("${1#unable }")
        return 1
        ;;
    "done") return 1 ;;
    esac
}

# lost WHY CASE: the machine is gone, and with it what CASE was about.
lost() {
    NOTES+=("$1")
    [ -z "$2" ] || row "$2" failed - "$1"
}

# row NAME RESULT SECONDS REASON: one line of the table, printed as it comes.
row() {
    ROWS+=("$1"$'\t'"$2"$'\t'"$3"$'\t'"$4")
    table_line "$@"
}

# collect FILE: the rows that a machine has left there.
collect() {
    local row name result rest
    [ -e "$1" ] || return 0
    while IFS= read -r row; do
        ROWS+=("$row")
        IFS=$'\t' read -r name result rest <<<"$row"
        if [ "$result" = ok ]; then PASSED=$((PASSED + 1)); else FAILED=$((FAILED + 1)); fi
    done <"$1"
}

table_line() {
    [ "$JSON" = yes ] || printf '%-32s  %-6s  %7s  %s\n' "$@"
}

# add_missing [CASE...]: a row for each of these that was never run.
add_missing() {
    local name
    for name in "$@"; do
        [[ $'\n'$(printf '%s\n' "${ROWS[@]}") == *$'\n'"$name"$'\t'* ]] || row "$name" failed - "was not run"
    done
}

# show_failures [CASE...]: the last lines of the logs that each of these had to do with, if it failed.
show_failures() {
    local entry name result rest log
    for entry in "${ROWS[@]}"; do
        IFS=$'\t' read -r name result rest <<<"$entry"
        [ "$result" != ok ] && [[ " $* " == *" $name "* ]] || continue
        for log in "case-$name.log" $(sort -u "$RESULTS/case-$name.logs" 2>/dev/null); do
            show_tail "$log"
        done
    done
    if [ "${#NOTES[@]}" != 0 ]; then
        show_tail xen.log
        show_tail dom0.log
        [ ! -s "$RESULTS/qemu.log" ] || show_tail qemu.log
        printf 'tests/system/run: %s\n' "${NOTES[@]}" >&2
    fi
}

show_tail() {
    [ -s "$RESULTS/$1" ] || return 0
    say "--- $1, the last lines:"
    tail -n 20 "$RESULTS/$1" | sed 's/^/    /' >&2
}

# print_json
print_json() {
    local entry name result seconds reason comma=""
    printf '{"xen":%s,"dom0_kernel":%s,"guest_kernel":%s,"qemu":%s,"results":%s,"seconds":%s,"passed":%s,"failed":%s,"cases":[' \
        "$(json_string "$XEN_VERSION")" "$(json_string "$DOM0_VERSION")" "$(json_string "$GUEST_VERSION")" \
        "$(json_string "$QEMU_VERSION")" "$(json_string "$RESULTS")" "$SECONDS" "$PASSED" "$FAILED"
    for entry in "${ROWS[@]}"; do
        IFS=$'\t' read -r name result seconds reason <<<"$entry"
        [ "$seconds" != - ] || seconds=null
        printf '%s{"name":%s,"passed":%s,"seconds":%s,"reason":%s}' "$comma" "$(json_string "$name")" \
            "$([ "$result" = ok ] && echo true || echo false)" "$seconds" "$(json_string "$reason")"
        comma=,
    done
    printf ']}\n'
}
