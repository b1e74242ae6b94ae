#!/bin/sh
# Run a command on what looks like an EC2 instance to those who look first: cloud-init, facter, ohai.
# Usage: unshare --mount --pid --fork --mount-proc sh like_ec2.sh COMMAND [ARGUMENT...]
set -eu

UUID=ec2e1916-9099-7caf-fd21-012345abcdef

die() {
    echo "like_ec2.sh: $*" >&2
    exit 1
}

tell() {
    mkdir -p "$(dirname "/sys/$1")"
    echo "$2" >"/sys/$1"
}

main() {
    [ $$ -eq 1 ] || die "usage: unshare --mount --pid --fork --mount-proc sh like_ec2.sh COMMAND [ARGUMENT...]"
    mount -t tmpfs tmpfs /sys
    tell hypervisor/uuid "$UUID"
    tell class/dmi/id/product_uuid "$UUID"
    tell class/dmi/id/product_serial "$UUID"
    tell class/dmi/id/product_name t3.micro
    tell class/dmi/id/sys_vendor "Amazon EC2"
    tell class/dmi/id/bios_vendor "Amazon EC2"
    tell class/dmi/id/bios_version 1.0
    exec "$@"
}

main "$@"
