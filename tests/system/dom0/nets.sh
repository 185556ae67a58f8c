# shellcheck shell=sh disable=SC2034,SC2119,SC2120
# The words of cases about vifs, on top of those of lib.sh. The lines that begin with ## are the
# reference.

## netback [OPTION...]   starts our backend, and waits until it serves
netback() {
    check "the modules of interfaces load" modprobe -a tun bridge
    daemon netback parapet-netback --log debug "$@"
    wait_for 30 "our backend serves" parapet-netback status
}

## bridge NAME ADDRESS   a bridge with an address of domain 0 on it, for packets of any size
bridge() {
    check "a bridge is made" ip link add "$1" type bridge
    check "it has an address" ip addr add "$2/24" dev "$1"
    ip link set "$1" mtu 9000
    check "it is on" ip link set "$1" up
}

## mac LAST              an Ethernet address of a guest
mac() { echo "00:16:3e:00:00:$1"; }

## plugged_in GUEST ETH ADDRESS [MTU]    gives a guest's interface an address
plugged_in() {
    check "$1 has its interface $2" in_guest "$1" "
        until [ -e /sys/class/net/$2 ]; do sleep 0.1; done
        ip addr add $3/24 dev $2 && ip link set $2 mtu ${4:-1500} up
        until [ \"\$(cat /sys/class/net/$2/carrier 2>/dev/null)\" = 1 ]; do sleep 0.1; done"
}

## pings GUEST ADDRESS [BYTES]   a guest reaches somebody by packets of that size
pings() { check "$1 reaches $2 by ${3:-56} bytes" in_guest "$1" "ping -c 2 -W 20 -s ${3:-56} $2"; }

## known_file MIB        a file with content that is nowhere else, which domain 0 serves; its sum
known_file() {
    mkdir -p /run/case/www
    dd if=/dev/urandom of=/run/case/www/file bs=1M "count=$1" 2>/dev/null
    if [ ! -e /run/case/daemons/httpd ]; then
        daemon httpd httpd -f -p 80 -h /run/case/www >&2
    fi
    sum /run/case/www/file
}

## fetch URL             as words for a guest: the sum of what is there
fetch() { echo "wget -q -O - $1 | md5sum"; }

## serve_in GUEST MIB    the same in a guest
serve_in() {
    in_guest "$1" "[ -e /tmp/www ] || { mkdir /tmp/www && httpd -p 80 -h /tmp/www; }
        dd if=/dev/urandom of=/tmp/www/file bs=1M count=$2 2>/dev/null; md5sum </tmp/www/file"
}

## vif GUEST NUMBER KEY  what our backend says of a vif: a number or a word of its status
vif() {
    parapet-netback status --json | sed 's/{"frontend"/\n&/g' |
        sed -n "s/^{\"frontend\":$(xl domid "$1"),\"number\":$2,.*\"$3\":\"\\?\\([a-z0-9.]*\\).*/\\1/p" | tail -n 1
}

## interfaces            those of domain 0 that are guests'
interfaces() { find /sys/class/net -name 'vif*' | wc -l; }

## talks GUEST PEER_SUM  TCP both ways between a guest and domain 0, each byte as it was
# $2: the sum of the file that domain 0 serves, $3 the guest's address
talks() {
    expect "what $1 is sent" "$(in_guest "$1" "$(fetch http://10.0.0.1/file)")" = "$2"
    _sum=$(serve_in "$1" 4)
    expect "what $1 sends" "$(wget -q -O - "http://$3/file" | md5sum)" = "$_sum"
}

## killed_under_traffic GUEST SUM [OPTION...]   our backend is killed in the middle of a transfer
killed_under_traffic() {
    _guest=$1
    _sum=$2
    shift 2
    start_in_guest "$_guest" "$(fetch http://10.0.0.1/file) >/tmp/fetched.new && mv /tmp/fetched.new /tmp/fetched"
    for _signal in KILL TERM KILL; do
        _before=$(received "$_guest")
        wait_for 60 "the transfer goes on" has_received_more "$_guest" "$_before"
        end_daemon netback $_signal || :
        netback "$@"
    done
    wait_for 120 "the transfer comes to its end" in_guest "$_guest" "[ -e /tmp/fetched ]"
    expect "what came of it" "$(in_guest "$_guest" "cat /tmp/fetched; rm /tmp/fetched")" = "$_sum"
}

# received GUEST: bytes that its kernel has counted.
received() { in_guest "$1" "cat /sys/class/net/eth0/statistics/rx_bytes"; }
has_received_more() { [ "$(received "$1")" -gt $(($2 + 1000000)) ]; }

## uses_its_vif KIND [OPTION...]   the whole of it, with a guest of that kind
uses_its_vif() {
    _kind=$1
    shift
    before="$(leftovers) interfaces=$(interfaces)"
    netback --queues 2 "$@"
    bridge xenbr0 10.0.0.1
    VCPUS=2 guest "net-$_kind" "$_kind" "vif = ['mac=$(mac 0a), bridge=xenbr0, mtu=9000']"
    plugged_in "net-$_kind" eth0 10.0.0.10 9000
    pings "net-$_kind" 10.0.0.1
    pings "net-$_kind" 10.0.0.1 8900
    expect "its queues" "$(vif "net-$_kind" 0 queues)" = 2
    sum=$(known_file 8)
    talks "net-$_kind" "$sum" 10.0.0.10
}
