# shellcheck shell=sh disable=SC2154
# (case_name is set by whoever sources this.)
# The words of cases, for busybox sh with -eu. The lines that begin with ## are the reference.

export PATH=/opt/parapet:/bin
mkdir -p /run/case/daemons /run/shared /run/guests

## fail REASON           the case fails, for this reason
fail() {
    echo "FAILED: $*"
    [ -e /run/case/reason ] || echo "$*" >/run/case/reason
    exit 1
}

# ended STATUS: the last thing of a case.
ended() {
    [ "$1" = 0 ] || [ -e /run/case/reason ] ||
        echo "a command gave status $1, the last word was: $(head -n 1 /run/case/word)" >/run/case/reason
    exit "$1"
}

# word TEXT: what the case is about to do, for its log, and for the reason of a failure.
word() {
    echo "$*"
    echo "$*" >/run/case/word
}

# related LOG: a log, by its name in the results, to be shown if the case fails.
related() { echo "$1" >>"/results/case-$case_name.logs"; }

## check WORDS COMMAND...    the command must succeed
check() {
    _words=$1
    shift
    word "check: $_words"
    "$@" || fail "$_words: '$*' gave status $?"
}

## refuse WORDS COMMAND...   the command must fail
refuse() {
    _words=$1
    shift
    word "refuse: $_words"
    if "$@"; then fail "$_words: '$*' succeeded"; fi
}

## expect WORDS A = B        compares, with any operator of test(1)
expect() {
    word "expect: $1: $2 $3 $4"
    test "$2" "$3" "$4" || fail "$1: expected $3 $4, got $2"
}

## quietly WORDS COMMAND...  the command must succeed, and complain of nothing: xl often does both
quietly() {
    _words=$1
    shift
    word "check: $_words"
    _status=0
    "$@" >/run/case/said 2>&1 || _status=$?
    cat /run/case/said
    [ "$_status" = 0 ] || fail "$_words: '$*' gave status $_status"
    ! _complaint=$(grep -m 1 -iE 'error|timed out|fail' /run/case/said) || fail "$_words: '$*' said: $_complaint"
}

## wait_for SECONDS WORDS COMMAND...   until the command succeeds
wait_for() {
    now
    _deadline=$((_now + $1))
    _limit=$1
    _words=$2
    shift 2
    word "wait for: $_words"
    until "$@" >/dev/null 2>&1; do
        now
        [ "$_now" -lt "$_deadline" ] || fail "not within $_limit s: $_words"
        sleep 0.1
    done
}
# now: sets _now to the seconds since power-on, without a process.
now() {
    read -r _now _ </proc/uptime
    _now=${_now%.*}
}

## guest NAME pv|pvh [LINE...]   creates a guest, with lines of xl's configuration, and waits for it
guest() {
    create_guest "$@"
    guest_is_up "$1"
}

## create_guest NAME pv|pvh [LINE...]   as guest, without waiting; VCPUS says how many it has
create_guest() {
    _guest=$1
    {
        printf 'name = "%s"\ntype = "%s"\n' "$1" "$2"
        printf 'kernel = "/images/guest.vmlinuz"\nramdisk = "/images/guest.cpio"\n'
        printf 'extra = "console=hvc0 quiet loglevel=4 mitigations=off"\n'
        printf 'memory = 128\nvcpus = %d\non_crash = "destroy"\non_reboot = "destroy"\n' "${VCPUS:-1}"
        shift 2
        [ $# = 0 ] || printf '%s\n' "$@"
    } >"/run/guests/$_guest.cfg"
    related "console/guest-$_guest.log"
    quietly "xl creates the guest $_guest" xl create -q "/run/guests/$_guest.cfg"
}

## guest_is_up NAME      waits until the guest takes commands
guest_is_up() {
    _tty=$(tty_of "$1") || fail "the guest $1 has no console"
    read_console "$_tty" 150 "@ready" </dev/null || fail "the guest $1 did not come up"
}

## shared_guest pv|pvh   a guest without devices, for any case that does it no harm: named as its kind
shared_guest() {
    related "console/guest-$1.log"
    [ ! -e "/run/shared/$1" ] || return 0
    guest "$1" "$1"
    : >"/run/shared/$1"
}

# tty_of NAME: waits for xenconsoled to make it.
tty_of() {
    _domid=$(xl domid "$1") || return 1
    for _ in $(seq 300); do
        xenstore-read "/local/domain/$_domid/console/tty" 2>/dev/null && return
        sleep 0.1
    done
    return 1
}

# read_console TTY SECONDS LINE [SEND]: sends a line, and copies what the guest prints from the
# line "@begin" on, up to one that begins with LINE, which is left in /run/case/last.
# A process of its own: the case itself must not have the guest's console open.
read_console() (
    exec 3<>"$1"
    [ -z "${4:-}" ] || printf '%s\n' "$4" >&3
    now
    _deadline=$((_now + $2))
    while :; do
        now
        _left=$((_deadline - _now))
        [ "$_left" -gt 0 ] || exit 1
        # shellcheck disable=SC3045 # busybox has it
        IFS= read -t "$_left" -r _line <&3 || exit 1
        case $_line in
        "$3"*)
            echo "$_line" >/run/case/last
            exit 0
            ;;
        "|"*) echo "${_line#|}" ;;
        esac
    done
)

## in_guest NAME COMMANDS [SECONDS]   runs them in the guest; gives their output and status
in_guest() {
    # Not by word(): what this prints is the guest's.
    echo "in_guest $1: $2" >/run/case/word
    read -r _id _ </proc/uptime
    _tty=$(tty_of "$1") || fail "the guest $1 has no console"
    read_console "$_tty" "${3:-90}" "@end $_id " "$_id $(printf '%s' "$2" | base64 -w 0)" ||
        fail "the guest $1 did not finish within ${3:-90} s: $2"
    read -r _ _ _status </run/case/last
    return "$_status"
}

## start_in_guest NAME COMMANDS       runs them in the background of the guest
start_in_guest() {
    in_guest "$1" "{ $2
    } </dev/null >/tmp/background.log 2>&1 &"
}

## guest_off NAME        shuts the guest down, and waits until it is gone
guest_off() {
    quietly "xl shuts $1 down" timeout -s KILL 150 xl shutdown -w "$1"
    wait_for 30 "$1 is gone" gone "$1"
    rm -f "/run/shared/$1"
}

## destroy NAME          destroys the guest, and waits until it is gone
destroy() {
    quietly "xl destroys $1" timeout -s KILL 60 xl destroy "$1"
    wait_for 30 "$1 is gone" gone "$1"
    rm -f "/run/shared/$1"
}
gone() { ! xl domid "$1"; }

# guests: the names of those that run.
guests() { xl list | awk 'NR > 1 && $1 != "Domain-0" { print $1 }'; }

## disk NAME MIB         an empty disk in memory: the file /disks/NAME
disk() { truncate -s "$2M" "/disks/$1"; }

## daemon NAME COMMAND...    starts one of our daemons; its log is daemon-NAME.log; it ends with the case
daemon() {
    _daemon=$1
    shift
    command -v "$1" >/dev/null || fail "the program $1 was not built (see tests/system/lib/programs.sh)"
    related "daemon-$_daemon.log"
    word "daemon $_daemon: $*"
    "$@" </dev/null >>"/results/daemon-$_daemon.log" 2>&1 &
    echo $! >"/run/case/daemons/$_daemon"
}

## pid_of NAME           the process of a daemon of this case
pid_of() { cat "/run/case/daemons/$1"; }

## end_daemon NAME [SIGNAL]  ends it, and gives its status
end_daemon() {
    _pid=$(pid_of "$1")
    rm "/run/case/daemons/$1"
    kill "-${2:-TERM}" "$_pid" || fail "the daemon $1 has ended before"
    wait "$_pid"
}

## try PROGRAM [COMMAND...]   runs a daemon of ours that is not to begin, by COMMAND
try() {
    _program=$1
    shift
    _status=0
    timeout -s KILL 30 "$@" "$_program" >/run/case/said 2>&1 || _status=$?
    echo $_status >/run/case/ended
}

## not_ready WORDS PATTERN   what try led to: status 2, and one line that says so
not_ready() {
    cat /run/case/said
    expect "exit status: $1" "$(cat /run/case/ended)" = 2
    expect "lines: $1" "$(wc -l </run/case/said)" = 1
    check "$1: the line says so" grep -qE "^$_program: .*$2" /run/case/said
}

## without DEVICE COMMAND... with the device hidden; it is there again whatever comes of it
without() {
    mv "/dev/xen/$1" /dev/hidden
    _hidden=$1
    shift
    "$@"
    mv /dev/hidden "/dev/xen/$_hidden"
}

# xen_says KEY: what Xen prints for one of its debug keys.
xen_says() {
    xl dmesg -c >/dev/null
    xl debug-keys "$1"
    xl dmesg
}

## grants_mapped [DOMID] how many pages granted by guests, or that one, domain 0 has mapped
# The first eight references are reserved for the toolstack: console and xenstore.
grants_mapped() {
    xen_says g | awk -v wanted="${1:+d$1}" '
        /grant-table for remote/ { ours = wanted == "" || $5 == wanted }
        ours && $1 == "(XEN)" && $2 ~ /^\[0x[0-9a-f]+\]$/ && $3 == 0 && $2 !~ /^\[0x0*[0-7]\]$/ { n++ }
        END { print n + 0 }'
}

## ports_bound [DOMID]   how many ports of domain 0 are bound to ports of guests, or that one
ports_bound() {
    xen_says e | awk -v wanted="${1:-[0-9]+}" '
        /Event channel information for domain/ { dom0 = /domain 0/ }
        dom0 && / s=3 / && !/ d=0 / && $0 ~ " d=" wanted " " { n++ }
        END { print n + 0 }'
}

## backends [DOMID]      how many nodes of backends there are in domain 0, for that guest
backends() {
    xenstore-ls -f /local/domain/0/backend 2>/dev/null |
        grep -cE "^/local/domain/0/backend/[^/]*/${1:-[0-9]*}[ /]" || :
}

## leftovers [DOMID]     the three of them: "grants=0 ports=0 backends=0"
leftovers() { echo "grants=$(grants_mapped "$@") ports=$(ports_bound "$@") backends=$(backends "$@")"; }
