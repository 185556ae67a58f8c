# shellcheck shell=sh
# Keeps a NAT network of the host: sets it up, says so, and undoes all of it when its standard input
# ends, however whoever holds the other end of that has ended.
#
# $1: the device. $2: its address with prefix length. $3: the subnet. $4: the folder that has
# dnsmasq's configuration, and gets the number of its process.
set -eu
# Whoever is at the terminal means the one that started this.
trap '' INT
forwarding=/proc/sys/net/ipv4/ip_forward
before=$(cat "$forwarding")

undo() {
    trap - EXIT
    set +e
    [ ! -s "$2/pid" ] || kill "$(cat "$2/pid")"
    nft delete table ip "$1" 2>/dev/null
    # Another one may need it by now, if it was on already when this one began.
    [ "$before" = 1 ] || echo "$before" > "$forwarding"
}
trap 'undo "$1" "$4"' EXIT

# Guests have IPv4 here: what they say of IPv6, such as that they were routers, the host does not hear.
no_v6="/proc/sys/net/ipv6/conf/$1/disable_ipv6"
[ ! -e "$no_v6" ] || echo 1 > "$no_v6"
ip address add "$2" dev "$1"
nft -f - <<RULES
table ip $1 {
    chain postrouting {
        type nat hook postrouting priority srcnat;
        ip saddr $3 oifname != "$1" masquerade
    }
    chain forward {
        type filter hook forward priority filter;
        oifname "$1" ct state established,related accept
        oifname "$1" drop
    }
}
RULES
echo 1 > "$forwarding"
# When it returns its daemon serves, or it has said why not.
dnsmasq --conf-file="$4/dnsmasq.conf" </dev/null >/dev/null
echo ready
# Ends with the pipe.
read -r _ || true
