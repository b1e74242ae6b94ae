#!/bin/sh
# Run a command where 169.254.169.254 is this machine's own, port 80 of it being port 8000 of 127.0.0.1.
# Usage: unshare --net sh namespace.sh COMMAND [ARGUMENT...]
# Never outside a network namespace of its own: on a cloud machine the address is the machine's metadata service.
set -eu

ADDRESS=169.254.169.254/32
PATH=$PATH:/usr/sbin:/sbin  # ip and iptables, which a user of Debian does not find

die() {
    echo "namespace.sh: $*" >&2
    exit 1
}

need_own_namespace() {
    [ -z "$(ip -o link show up)" ] || die "this network is in use; run me by: unshare --net sh $0 COMMAND"
}

main() {
    [ $# -gt 0 ] || die "usage: unshare --net sh namespace.sh COMMAND [ARGUMENT...]"
    need_own_namespace
    ip link set lo up
    ip addr add "$ADDRESS" dev lo scope host
    iptables -t nat -A OUTPUT -p tcp -d "$ADDRESS" --dport 80 -j REDIRECT --to-ports 8000
    exec "$@"
}

main "$@"
