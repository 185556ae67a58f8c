# What a frontend's nodes may say wrongly closes that disk, with an error node; other disks are served on.
blkback
known_disk good 8
for disk in b c d; do disk $disk 1; done
shared_guest pv
attach pv xvda rw /disks/good
paused_guest hostile "$(line xvdb rw /disks/b)" "$(line xvdc rw /disks/c)" "$(line xvdd rw /disks/d)"
domid=$(xl domid hostile)
store=$(xenstore-read "/local/domain/$domid/store/port")

front=/local/domain/$domid/device/vbd
backend_is() { [ "$(xenstore-read "/local/domain/0/backend/vbd/$domid/$(vbd "$1")/state")" = "$2" ]; }

# answer VDEV NODE=VALUE...: what a frontend answers; all else is not there.
answer() {
    _front=$front/$(vbd "$1")
    shift
    for _node in ring-ref event-channel protocol ring-page-order num-ring-pages; do
        xenstore-rm "$_front/$_node" 2>/dev/null || :
    done
    for _node in "$@"; do xenstore-write -- "$_front/${_node%%=*}" "${_node#*=}"; done
    xenstore-write "$_front/state" 3
}

# closed VDEV PATTERN WORDS: it is closed, for a reason of that pattern.
closed() {
    wait_for 20 "$1 is closed: $3" backend_is "$1" 5
    _reason=$(xenstore-read "/local/domain/0/error/backend/vbd/$domid/$(vbd "$1")/error") ||
        fail "no error node: $3"
    echo "$_reason" | grep -qE "^[0-9]+ $2" || fail "the reason for $3 is '$_reason'"
}

# reopened VDEV: the frontend goes, and comes back, as one that was reset does.
reopened() {
    xenstore-write "$front/$(vbd "$1")/state" 6
    wait_for 20 "$1 is let go" backend_is "$1" 6
    xenstore-write "$front/$(vbd "$1")/state" 1
    wait_for 20 "$1 waits for a frontend" backend_is "$1" 2
}

# A reason's pattern, and what the frontend says. Reference 0 is its console, which it does grant to
# domain 0; port $store is there, and is xenstored's.
while read -r pattern nodes; do
    # shellcheck disable=SC2086 # a word each
    answer xvdb $nodes
    closed xvdb "$pattern" "$nodes"
    reopened xvdb
done <<TABLE
EINVAL:.*ring-ref.*missing
EINVAL:.*ring-ref.*missing event-channel=9
EINVAL:.*event-channel.*missing ring-ref=8
EINVAL:.*ring-ref.*number ring-ref=x event-channel=9
EINVAL:.*ring-ref.*number ring-ref=-1 event-channel=9
EINVAL:.*ring-ref.*number ring-ref=4294967296 event-channel=9
EINVAL:.*ring-ref.*number ring-ref=99999999999999999999 event-channel=9
EINVAL:.*event-channel.*number ring-ref=0 event-channel=
EINVAL:.*event-channel.*number ring-ref=0 event-channel=-1
EINVAL:.*event-channel.*number ring-ref=0 event-channel=4294967296
EINVAL:.*protocol ring-ref=0 event-channel=9 protocol=sparc-abi
EINVAL:.*ring-page-order ring-ref0=8 event-channel=9 ring-page-order=5
EINVAL:.*num-ring-pages ring-ref0=8 event-channel=9 num-ring-pages=3
EACCES:.*ring ring-ref=20 event-channel=9
EACCES:.*ring ring-ref=4294967295 event-channel=9
EACCES:.*port ring-ref=0 event-channel=$store
EACCES:.*port ring-ref=0 event-channel=9
EACCES:.*port ring-ref=0 event-channel=4294967295
TABLE

# Several at once, while the other guest is at work.
io_under_way pv xvda
answer xvdb ring-ref=x event-channel=9
answer xvdc ring-ref=0 event-channel=9
answer xvdd ring-ref=20
closed xvdb EINVAL "one of three"
closed xvdc EACCES "one of three"
closed xvdd EINVAL "one of three"

moved=$(counters pv xvda)
wait_for 30 "the good disk is served on" moves pv xvda "$moved"
expect "what the backend has of the hostile guest" "$(grants_mapped "$domid")" = 0
destroy hostile
expect "what is left of it" "$(leftovers "$domid")" = "grants=0 ports=0 backends=0"
stop_io pv
expect "what its disk holds" "$(sum_in pv /dev/xvda)" = "$(sum /disks/good)"
detach pv xvda
refuse "the errors are forgotten" xenstore-list "/local/domain/0/error/backend/vbd/$domid"
