#!/bin/sh
# Install fake-metadata: AWS SDKs on this box then find an instance metadata
# service at http://169.254.169.254/. Run it again to upgrade or to repair;
# what you have edited below /etc is kept.
#
# usage: sudo sh install.sh [OPTIONS]
#   --check        change nothing; print problems, each with its remedy
#   --dry-run      change nothing; print what would be changed
#   --no-start     install, but do not start the service
#   --supervise    run under daemontools or runit (/service or /etc/service)
#   --force        install even if it hides this machine's own metadata service
#   --deb [FILE]   only build the package, for other boxes; needs no root
#   --help         print this help
#
# Environment, with defaults:
#   APP_DIR=/apps/fake-metadata       folder of the program
#   LOG_DIR=/mnt/logs/fake-metadata   folder of server.log
#   PORT=8000                         port of the service on 127.0.0.1
#   ADDRESSES=169.254.169.254         also: fd00:ec2::254, 169.254.170.2 (ECS),
#                                     169.254.170.23, fd00:ec2::23 (EKS)
#   CONTAINERS=                       interfaces of containers: docker0 br-+
#
# Example: sudo PORT=8001 CONTAINERS="docker0 br-+" sh install.sh
# Exit status: 0 done, 1 failed (the last line says why), 2 usage.
set -eu

# This script builds a Debian package from its folder and installs that. In the package it serves as
# preinst (what dpkg does not check, and what an install.sh before 1.2 has left) and as postinst
# (user, log folder, registration, start); DPKG_MAINTSCRIPT_NAME says which. Its copy next to the
# installed program serves for --check.

NAME=fake-metadata
CONFIG=/etc/$NAME.conf
DEFAULTS=/etc/default/$NAME
INIT=/etc/init.d/$NAME
MADE=/var/lib/misc/$NAME.made # what a purge has to remove besides the package: KIND NAME
LINK=/usr/lib/$NAME # to APP_DIR, for the files below /etc
FORMER=/var/lib/$NAME/installed # what an install.sh before 1.2 has done, as lines of KEY VALUE
ACTION=install
DRY_RUN='' ASKED_SUPERVISE='' DEB='' FRESH=''
SOURCE_DIR='' # stays empty in a package

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# printf, because echo turns backslashes into control characters in dash.
say() {
    printf '%s\n' "$*"
}

die() {
    say "${DPKG_MAINTSCRIPT_PACKAGE:-${0##*/}}: $*" >&2
    exit 1
}

# Make the output of a log or a program safe to show: no control characters, lines not too long.
visible() {
    LC_ALL=C tr -c '[:print:]\n' '?' | cut -c -500
}

is_root() {
    [ "$(id -u)" -eq 0 ]
}

# Run a command as the service's user, who cannot do all that root can. (Through sh, because setpriv
# looks up the command while it is still root.)
as_service() {
    user=nobody group=nogroup
    ! has_user || ! has_group || user=$NAME group=$NAME
    if is_root; then
        set -- setpriv --reuid "$user" --regid "$group" --clear-groups sh -c 'exec "$@"' sh "$@"
    fi
    "$@"
}

has_user() {
    getent passwd "$NAME" >/dev/null
}

has_group() {
    getent group "$NAME" >/dev/null
}

# Print the package's state in dpkg: installed, config-files, half-installed ...; or nothing.
package_status() {
    dpkg-query --show --showformat '${db:Status-Status}' "$NAME" 2>/dev/null |
        sed 's/^not-installed$//'
}

# Tell whether an install.sh before 1.2 was here. Its record must be root's, because the folder is
# the service's by now.
is_former() {
    [ "$(stat -c %u "$FORMER" 2>/dev/null)" = 0 ]
}

# ---- settings: from the environment when installing, else those installed, else the defaults

SETTINGS="LOG_DIR PORT PYTHON SUPERVISE ADDRESSES CONTAINERS"
POSSIBLE_ADDRESSES=169.254.169.254,fd00:ec2::254,169.254.170.2,169.254.170.23,fd00:ec2::23

# In a package the settings follow here:
# SETTINGS

load_settings() {
    SOURCE_DIR=$(cd "$(dirname "$0")" && pwd)
    unset PYTHON
    # shellcheck disable=SC2086 # names
    [ "$ACTION" != check ] || unset APP_DIR $SETTINGS
    if [ -n "$ASKED_SUPERVISE" ]; then
        SUPERVISE=/etc/service
        [ ! -d /service ] || SUPERVISE=/service
    fi
    for name in APP_DIR $SETTINGS; do
        eval "$name=\${$name-\$(setting $name)}"
    done
    join_settings
    case $ACTION in
        install) PYTHON=$(find_python) ;;
        deb) PYTHON=/usr/bin/python3 ;;
    esac
}

# Join lists with commas: without blanks they need no quotes in any file.
join_settings() {
    ADDRESSES=$(words "$ADDRESSES")
    CONTAINERS=$(words "$CONTAINERS")
}

# Print words that are separated by blanks or commas, separated by one comma each.
words() {
    echo "$1" | tr -s ', \t\n' , | sed 's/^,//; s/,$//'
}

setting() {
    value=$(installed_setting "$1")
    echo "${value:-$(usual "$1")}"
}

usual() {
    case $1 in
        APP_DIR) echo "/apps/$NAME" ;;
        LOG_DIR) echo "/mnt/logs/$NAME" ;;
        PORT) echo 8000 ;;
        ADDRESSES) echo 169.254.169.254 ;;
    esac
}

installed_setting() {
    if [ "$ACTION" = deb ]; then
        return
    elif is_former; then
        former "$1"
    else
        # From dpkg's copy of postinst, which exists even without APP_DIR.
        postinst=$(dpkg-query --control-path "$NAME" postinst 2>/dev/null || true)
        sed -n "s/^$1=//p" "$postinst" 2>/dev/null | head -n 1
    fi
}

# Print a value of an installation before 1.2.
former() {
    sed -n "s|^$1 ||p" "$FORMER" | tail -n 1
}

# Print the first Python that the service can run, so none in root's home, and none with a path that
# would need quotes.
find_python() {
    { echo /usr/bin/python3; echo "$PATH" | tr : '\n' | sed 's|$|/python3|'; } |
        while IFS= read -r python; do
            case $python in
                *[!A-Za-z0-9._/+-]*) ;;
                *) ! python_is_good "$python" || { echo "$python"; break; } ;;
            esac
        done
}

python_is_good() {
    [ -n "$1" ] && as_service "$1" -I -c "import sys; sys.exit(sys.version_info < (3, 7))" \
        </dev/null >/dev/null 2>&1
}

# ---- checks before the first change; each failure says what is wrong and what to do

check_box() {
    check_settings
    check_commands
    check_python
    check_folders
    check_foreign
    check_config
    if starts_now; then
        say_foreign_rules
        check_own_service
        check_supervisor
        (apply_defaults && check_port)
        [ -n "$DRY_RUN" ] || check_network
    fi
}

check_settings() {
    for folder in "$APP_DIR" "$LOG_DIR" "${SUPERVISE:-/}"; do
        case $folder in
            *[!A-Za-z0-9._/-]* | *//* | */../* | */..)
                die "folder $folder: use only letters, digits and . _ - /" ;;
            /*) ;;
            *) die "folder $folder: use an absolute path, such as /opt/$NAME" ;;
        esac
    done
    case $LOG_DIR/ in
        "$APP_DIR"/*)
            die "LOG_DIR=$LOG_DIR is inside APP_DIR, which is removed with the package;" \
                "use another, such as /var/log/$NAME" ;;
    esac
    case $PORT in
        "" | *[!0-9]* | 0* | ??????*) bad_port ;;
    esac
    [ "$PORT" -le 65535 ] || bad_port
    is_in "$ADDRESSES" 169.254.169.254 ||
        die "ADDRESSES=$ADDRESSES: 169.254.169.254 must be one of them"
    each "$ADDRESSES" | while read -r address; do
        is_in "$POSSIBLE_ADDRESSES" "$address" ||
            die "ADDRESSES: $address is not one of $POSSIBLE_ADDRESSES"
    done
    each "$CONTAINERS" | while read -r interface; do
        is_interface "$interface" ||
            die "CONTAINERS: $interface does not name interfaces of containers;" \
                "use names such as docker0 br-+"
    done
}

bad_port() {
    die "PORT=$PORT: use a number from 1 to 65535, such as PORT=8000"
}

each() {
    echo "$1" | tr , '\n' | grep . || true
}

is_in() {
    each "$1" | grep -qxF "$2"
}

# Tell whether a word names an interface, or with a final + all that begin so, but not simply all.
is_interface() {
    case $1 in
        lo | + | -* | ????????????????* | *[!A-Za-z0-9._+-]* | *+?*) return 1 ;;
    esac
}

# Refuse to change what cannot change while the package is installed.
check_same_settings() {
    [ -n "$(installed_setting APP_DIR)" ] || return 0
    for name in APP_DIR LOG_DIR SUPERVISE; do
        eval "value=\$$name"
        before=$(setting "$name")
        [ "$before" = "$value" ] ||
            die "$NAME is installed with $name=${before:-(none)}, not ${value:-(none)};" \
                "to change that, run uninstall.sh first (it keeps the configuration)"
    done
}

check_commands() {
    need ip iproute2
    need iptables iptables
    need useradd passwd
}

need_dpkg() {
    command -v dpkg-deb >/dev/null ||
        die "dpkg-deb is missing; install.sh works on Debian, Ubuntu and Devuan only"
}

# need COMMAND PACKAGE
need() {
    command -v "$1" >/dev/null || die "$1 is missing: apt-get install $2"
}

check_python() {
    python_is_good "$PYTHON" ||
        die "there is no Python 3.7 or later that a user other than root can run:" \
            "apt-get install python3"
}

# A user who can write to a folder on the way to the program becomes root at the next start.
check_folders() {
    folder=$(open_folders | head -n 1)
    [ -z "$folder" ] || die "$folder $(writers "$folder"):" \
        "chown root:root $folder && chmod go-w $folder, or choose another folder"
}

# Print the folders on the way to which users other than root can write.
open_folders() {
    for folder in "$APP_DIR" "$LOG_DIR" $(realpath -m "$APP_DIR" "$LOG_DIR"); do
        while [ "${#folder}" -gt 1 ]; do
            find -H "$folder" -prune \( ! -user root -o -perm -o+w -o -perm -g+w ! -group root \) \
                2>/dev/null || true
            folder=$(dirname "$folder")
        done
    done
}

writers() {
    stat --dereference --format "belongs to %U:%G, mode %a, but must be writable by root only" "$1"
}

# dpkg would keep a file of somebody else at one of our paths, and delete it at the purge.
check_foreign() {
    [ -n "$FRESH" ] || return 0
    if is_former; then
        refuse_foreign "$APP_DIR/README.md" "$APP_DIR/settings"
        return
    fi
    [ "$SOURCE_DIR" != "$APP_DIR" ] ||
        die "$APP_DIR is where the package goes: run install.sh in another folder," \
            "or choose another APP_DIR"
    [ -z "$(ls -A "$APP_DIR" 2>/dev/null)" ] ||
        die "$APP_DIR has files that do not belong to $NAME:" \
            "move them away, or choose another APP_DIR"
    # shellcheck disable=SC2046 # paths without blanks
    refuse_foreign $(paths) "$LINK" "$LOG_DIR/server.log"
}

refuse_foreign() {
    for path in "$@"; do
        ! is_there "$path" ||
            die "$path exists, but does not belong to $NAME: move it away, then try again"
    done
}

is_there() {
    [ -e "$1" ] || [ -L "$1" ]
}

# Test the configuration, and what is set until the next boot, with the new program.
check_config() {
    program=$(dirname "$0")/fake_metadata.py # next to preinst, too: dpkg unpacks that folder first
    set --
    for file in "/run/$NAME/box.conf" "$CONFIG" "/run/$NAME/set.conf"; do
        [ ! -r "$file" ] || set -- "$@" --config "$file"
    done
    complaint=$("$PYTHON" -I "$program" "$@" --test-config 2>&1) ||
        die "${complaint#"$NAME: "}; correct the configuration, then try again"
}

# Tell whether to start the service now: not in a chroot or an image that is being built.
starts_now() {
    [ -z "${FAKE_METADATA_NO_START-}" ] && ! in_chroot && init_runs && policy_allows
}

# Not ischroot, which takes every separate mount namespace for a chroot.
in_chroot() {
    here=$(stat -c %d:%i /)
    [ "$(stat -Lc %d:%i /proc/1/root/ 2>/dev/null || echo "$here")" != "$here" ]
}

init_runs() {
    if [ -n "$SUPERVISE" ]; then
        grep -qsxE "svscan|runsvdir" /proc/[0-9]*/comm
        return
    fi
    for place in /run/systemd/system /run/initctl /run/openrc /run/runit.stopit; do
        [ ! -e "$place" ] || return 0
    done
    return 1
}

policy_allows() {
    [ -x /usr/sbin/policy-rc.d ] || return 0
    code=0
    /usr/sbin/policy-rc.d "$NAME" start >/dev/null 2>&1 || code=$?
    [ "$code" -ne 101 ]
}

# Refuse to hide a metadata service from which this machine may have its name, its keys, its DNS.
check_own_service() {
    [ -z "${FAKE_METADATA_FORCE-}" ] || return 0
    reason=$(own_service)
    if [ -z "$reason" ] && [ -z "$DRY_RUN" ] && is_answered; then
        reason="something already answers at 169.254.169.254"
    fi
    [ -z "$reason" ] ||
        die "$reason; to hide it behind $NAME:" \
            "sudo sh install.sh --force (with apt or dpkg: FAKE_METADATA_FORCE=yes)"
}

# Print why this machine must have a metadata service of its own, if so, without a request to it.
own_service() {
    cloud=$(own_cloud)
    nameserver=$(grep -lsE "^[[:space:]]*nameserver[[:space:]]+169\.254\.169\.254([[:space:]]|\$)" \
        /etc/resolv.conf /run/systemd/resolve/resolv.conf | head -n 1)
    if [ -n "$cloud" ]; then
        say "this machine runs on $cloud, which has a metadata service of its own"
    elif [ -n "$nameserver" ]; then
        say "169.254.169.254 is a nameserver of this machine, as on Google Cloud (in $nameserver)"
    fi
}

own_cloud() {
    clouds | while IFS="|" read -r cloud files pattern; do
        for file in /sys/$files; do
            value=''
            { read -r value <"$file" || true; } 2>/dev/null
            # shellcheck disable=SC2254 # a pattern
            case $value in $pattern) say "$cloud"; return ;; esac
        done
    done
}

# Print CLOUD|FILES|PATTERN for the clouds with a service at 169.254.169.254. ds-identify of
# cloud-init recognizes them by the same. (The vendor of Azure is that of every guest of Hyper-V.
# Scaleway, Alibaba and Tencent have their services at other addresses.)
clouds() {
    cat <<'LIST'
EC2|class/dmi/id/*vendor|Amazon EC2*
EC2|class/dmi/id/bios_version|*.amazon
EC2|class/dmi/id/product_uuid|[Ee][Cc]2*
EC2|hypervisor/uuid|[Ee][Cc]2*
Google Cloud|class/dmi/id/product_name|Google Compute Engine*
Google Cloud|class/dmi/id/product_serial|GoogleCloud-*
Azure|class/dmi/id/chassis_asset_tag|7783-7084-3265-9085-8269-3286-77
Oracle Cloud|class/dmi/id/chassis_asset_tag|OracleCloud.com*
OpenStack|class/dmi/id/product_name|OpenStack *
OpenStack|class/dmi/id/chassis_asset_tag|OpenStack *
Open Telekom Cloud|class/dmi/id/chassis_asset_tag|OpenTelekomCloud*
SAP Converged Cloud|class/dmi/id/chassis_asset_tag|SAP CCloud VM*
Huawei Cloud|class/dmi/id/chassis_asset_tag|HUAWEICLOUD*
DigitalOcean|class/dmi/id/sys_vendor|DigitalOcean
Hetzner Cloud|class/dmi/id/sys_vendor|Hetzner
Vultr|class/dmi/id/sys_vendor|Vultr
Akamai (Linode)|class/dmi/id/sys_vendor|Akamai
Akamai (Linode)|class/dmi/id/sys_vendor|Linode
UpCloud|class/dmi/id/sys_vendor|UpCloud
NWCS|class/dmi/id/sys_vendor|NWCS
Exoscale|class/dmi/id/product_name|Exoscale*
Outscale|class/dmi/id/sys_vendor|3DS Outscale
E24Cloud|class/dmi/id/sys_vendor|e24cloud
Brightbox|class/dmi/id/product_serial|*.brightbox.com
ZStack|class/dmi/id/chassis_asset_tag|*.zstack.io
LIST
}

# Tell whether a connection to port 80 of the address is accepted; nothing is sent. Once our address
# is on lo, only this service could accept it.
is_answered() {
    ! alias_is_set || { [ -n "$FRESH" ] && ! is_former; } || return 1
    connects
}

connects() {
    "$PYTHON" -I 2>/dev/null \
        -c "import socket; socket.create_connection(('169.254.169.254', 80), timeout=2)"
}

# Another tool for the same address may keep its rules, or what is left of them: ours come first.
say_foreign_rules() {
    foreign_rules | sed "s/^/another program has a packet rule for this address: /"
}

check_supervisor() {
    [ -z "$SUPERVISE" ] || [ -d "$SUPERVISE" ] ||
        die "$SUPERVISE does not exist: apt-get install runit-run (or daemontools-run)"
}

check_port() {
    [ -z "$(listeners)" ] || port_is_ours ||
        die "port $PORT is in use by $(port_owner): stop that program," \
            "or choose another port: sudo PORT=$((PORT < 65535 ? PORT + 1 : 8000)) sh install.sh"
}

# Print who listens at the target of the redirect, with user, and as root with pid.
listeners() {
    listeners_at "127.0.0.1:$PORT"
}

listeners_at() {
    at=:${1##*:}
    ss -Hltnpe "sport = $at" 2>/dev/null |
        grep -F -e " $1 " -e " 0.0.0.0$at " -e " *$at " -e " [::]$at " || true
}

listener_pid() {
    listeners | sed -n 's/.*pid=\([0-9]*\).*/\1/p' | head -n 1
}

port_is_ours() {
    listeners | is_service
}

is_service() {
    grep -q " uid:$(id -u "$NAME" 2>/dev/null) "
}

# Print who listens on the port: "python3", pid 12.
port_owner() {
    owner=$(listeners | sed -n 's/.*users:((\(".*"\),pid=\([0-9]*\).*/\1, pid \2/p' | head -n 1)
    say "${owner:-another program}" | visible
}

# Try all that a start does to the network, and undo it. In an unprivileged container that fails.
# Each rule is added and deleted in one step, so that none is left if this script is killed.
check_network() {
    complaint=$(try_network 2>&1) ||
        die "root cannot set addresses and packet rules here" \
            "(a container needs docker run --cap-add NET_ADMIN):" \
            "$(say "$complaint" | head -n 1 | visible)"
}

try_network() {
    for address in $(each "$ADDRESSES"); do
        try_address "$address" || return 1
    done
    try_rules iptables 169.254.169.254 || return 1
    case $ADDRESSES in
        *:*) try_rules ip6tables fd00:ec2::254 ;;
    esac
}

try_address() {
    is_on_lo "$1" && return
    case $1 in
        *:*) ip addr add "$1/128" dev lo nodad && ip addr del "$1/128" dev lo ;;
        *) ip addr add "$1/32" dev lo scope host && ip addr del "$1/32" dev lo ;;
    esac
}

is_on_lo() {
    [ -n "$(ip addr show dev lo to "$1" 2>/dev/null)" ]
}

# try_rules TOOL ADDRESS: one of each kind that $INIT makes (wanted_rules).
try_rules() {
    try_rule "$1" nat "OUTPUT -d $2 -p tcp --dport 80 -j REDIRECT --to-ports $PORT" &&
        try_rule "$1" filter "OUTPUT -s $2 -p tcp --sport $PORT --tcp-flags SYN,ACK SYN,ACK
            -m conntrack --ctstate DNAT -m owner ! --uid-owner 0 -j DROP" || return 1
    [ -n "$CONTAINERS" ] || return 0
    try_rule "$1" nat "PREROUTING -i lo -d $2 -p tcp --dport 80 -j DNAT --to-destination $2" &&
        try_rule "$1" filter "INPUT -i lo -d $2 -p tcp --dport $PORT
            -m conntrack ! --ctstate DNAT -j REJECT"
}

try_rule() {
    rule=$(say "$3 -m comment --comment $NAME-trial" | tr -s '\n' ' ')
    printf '%s\n' "*$2" "-A $rule" "-D $rule" COMMIT | "$1-restore" -w --noflush
}

alias_is_set() {
    is_on_lo 169.254.169.254
}

addresses_are_set() {
    for address in $(each "$ADDRESSES"); do
        is_on_lo "$address" || return 1
    done
}

# ---- rules of others

# Print the rules of others that name one of our addresses, in whatever table.
foreign_rules() {
    packet_rules | cut -f 2- | grep -wF "$(each "$ADDRESSES")" | visible
}

# Print the rules of others as PACKETS, a tab, and the command that adds the rule or sets the policy
# to drop; for tables of nftables that are not iptables' own, "nft TABLE CHAIN: RULE # handle N".
packet_rules() {
    for tool in iptables-nft iptables-legacy ip6tables-nft ip6tables-legacy; do
        "$tool-save" -c 2>/dev/null | awk -v tool="$tool" '
            /^\*/ { table = substr($0, 2) }
            /^:/ && $2 == "DROP" { print $3 "\t" tool " -t " table " -P " substr($1, 2) " DROP" }
            /^\[/ { packets = $1; sub(/^[^ ]* /, ""); print packets "\t" tool " -t " table " " $0 }
        ' | grep -vE -e "--comment \"?$NAME" || true
    done
    nft -a list ruleset 2>/dev/null | awk '

        $1 == "table" { table = $2 " " $3 }
        $1 == "chain" { chain = table " " $2 }
        table ~ /^ip6? (filter|nat|mangle|raw|security)$/ { next }
        $3 == "hook" && /policy drop;/ { print "-\tnft " chain ": hook " $4 ", policy drop" }
        / (drop|reject|redirect|dnat|tproxy|queue)( .*)? # handle / {
            sub(/^[ \t]*/, ""); print "-\tnft " chain ": " $0 }
    ' || true
}

# ---- the package

# Print MODE SOURCE DESTINATION of each file that is installed unchanged.
files() {
    cat <<LIST
640 init.d/$NAME.conf $CONFIG
640 init.d/$NAME.default $DEFAULTS
644 iptables.rules /etc/network/iptables.rules
755 init.d/$NAME.if-up /etc/network/if-up.d/$NAME
644 logrotate.d/$NAME /etc/logrotate.d/$NAME
755 init.d/$NAME $INIT
755 init.d/$NAME.run /etc/sv/$NAME/run
644 init.d/$NAME.service /lib/systemd/system/$NAME.service
644 init.d/$NAME.firewalld.conf /lib/systemd/system/firewalld.service.d/$NAME.conf
644 init.d/$NAME.nftables.conf /lib/systemd/system/nftables.service.d/$NAME.conf
644 init.d/$NAME.nftables.conf /lib/systemd/system/netfilter-persistent.service.d/$NAME.conf
755 fake_metadata.py $APP_DIR/fake_metadata.py
755 install.sh $APP_DIR/install.sh
755 uninstall.sh $APP_DIR/uninstall.sh
644 README.md $APP_DIR/README.md
LIST
}

paths() {
    files | cut -d' ' -f3
}

conffiles() {
    paths | grep ^/etc/
}

check_sources() {
    for file in $(files | cut -d' ' -f2) CHANGELOG.md "init.d/$NAME.8"; do
        [ -f "$SOURCE_DIR/$file" ] ||
            die "$file is missing next to install.sh: copy the whole folder to this box"
    done
}

# Make the package: build FILE
build() {
    tree=$WORK/tree
    mkdir -p "$tree/DEBIAN"
    files | while read -r mode source destination; do
        install -D -m "$mode" "$SOURCE_DIR/$source" "$tree$destination"
    done
    packaged_settings >"$tree$APP_DIR/settings"
    ln -s "$LOG_DIR" "$tree$APP_DIR/logs"
    mkdir -p "$tree/usr/lib"
    ln -s "$APP_DIR" "$tree$LINK"
    order_after_mounts "$tree/lib/systemd/system/$NAME.service"
    write_documents "$tree/usr/share"
    write_scripts "$tree/DEBIAN"
    write_control "$tree/DEBIAN"
    chmod -R g-s "$tree" # inherited from the temporary folder
    # The same files make the same package, to the byte.
    SOURCE_DATE_EPOCH=$(stat -c %Y "$SOURCE_DIR/fake_metadata.py") \
        dpkg-deb --root-owner-group -Zxz --build "$tree" "$1" >/dev/null
}

packaged_settings() {
    echo "# Chosen when $NAME was installed. A line in $DEFAULTS takes precedence."
    for name in $SETTINGS; do
        eval "echo \"$name=\$$name\""
    done
}

# Start after the mounts of log and program: any folder on the way may be one.
order_after_mounts() {
    units=$(mount_units "$LOG_DIR")$(mount_units "$APP_DIR")
    sed -i "s/^After=mnt\.mount .*/After=${units# }/" "$1"
}

mount_units() {
    folder=''
    for name in $(echo "$1" | tr / ' '); do
        folder=$folder${folder:+-}$(echo "$name" | sed 's/-/\\\\x2d/g')
        printf ' %s.mount' "$folder"
    done
}

write_documents() {
    mkdir -p "$1/doc/$NAME" "$1/lintian/overrides" "$1/man/man8"
    gzip -9 -n <"$SOURCE_DIR/CHANGELOG.md" >"$1/doc/$NAME/changelog.gz"
    gzip -9 -n <"$SOURCE_DIR/init.d/$NAME.8" >"$1/man/man8/$NAME.8.gz"
    ln -s "$APP_DIR/README.md" "$1/doc/$NAME/README.md"
    echo "$NAME: see the folder that it was built from." >"$1/doc/$NAME/copyright"
    cat >"$1/lintian/overrides/$NAME" <<'OVERRIDES'
# Built on a box for that box, whose root is the contact.
fake-metadata: bogus-mail-host Maintainer root@localhost
fake-metadata: root-in-contact Maintainer root <root@localhost>
# People know the program by this path, which APP_DIR can change.
fake-metadata: non-standard-toplevel-dir *
OVERRIDES
}

# The settings go into the scripts, which are all that is left at a purge.
write_scripts() {
    { echo "APP_DIR=$APP_DIR"; packaged_settings | tail -n +2; } >"$WORK/settings"
    sed "/^# SETTINGS\$/r $WORK/settings" "$SOURCE_DIR/install.sh" | tee "$1/preinst" >"$1/postinst"
    sed "/^# SETTINGS\$/r $WORK/settings" "$SOURCE_DIR/uninstall.sh" | tee "$1/prerm" >"$1/postrm"
    cp "$SOURCE_DIR/fake_metadata.py" "$1" # for check_config in preinst
    chmod 755 "$1"/*
}

write_control() {
    conffiles >"$1/conffiles"
    cat >"$1/control" <<CONTROL
Package: $NAME
Version: $VERSION
Architecture: all
Maintainer: root <root@localhost>
Section: net
Priority: optional
Pre-Depends: $(dependencies)
Build: $(digest)
Description: fake EC2 instance metadata service
 Answers at http://169.254.169.254/ as on an EC2 instance, with rotating
 credentials, so that an application that takes its keys from there runs on
 this box as it does on EC2.
CONTROL
}

# Pre-Depends, because preinst uses all three. Not required as packages where this box has them from
# elsewhere.
dependencies() {
    for package in "python3 (>= 3.7)" iproute2 iptables; do
        [ "$ACTION" != deb ] && ! is_from_package "${package%% *}" || echo "$package"
    done | paste -sd, | sed 's/,/, /g'
}

is_from_package() {
    [ "$1" != python3 ] || [ "$PYTHON" = /usr/bin/python3 ] || return 1
    [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# Print what tells one build from another of the same version: a digest of its files.
digest() {
    (cd "$tree" && find . -type f -print0 | sort -z | xargs -0 sha256sum) | sha256sum | cut -c 1-16
}

# ---- preinst: remove an installation before 1.2

take_over() {
    is_former || return 0
    app=$(former APP_DIR)
    app=${app:-/apps/$NAME}
    end_supervision
    free_unit
    free_file "$CONFIG" "init.d/$NAME.conf"
    free_file "$DEFAULTS" "init.d/$NAME.default"
    free_file /etc/network/iptables.rules iptables.rules
    free_file "/etc/logrotate.d/$NAME" "logrotate.d/$NAME"
    free_or_keep "$INIT" "init.d/$NAME"
    rm -f "$app/init.d/$NAME" "$app/init.d/$NAME".* "$app/logrotate.d/$NAME" "$app/service/run" \
        "$app/iptables.rules" "$app/fake_metadata.py" "$app/install.sh" "$app/uninstall.sh" \
        "$app/logs"
    rm -rf "$app/service/supervise"
    for folder in "$app/init.d" "$app/logrotate.d" "$app/service" "$app"; do
        rmdir "$folder" 2>/dev/null || true
    done
    free_interfaces
    grep -E "^(user|group|alias|folder) " "$FORMER" >>"$MADE" || true
    made log "$(former LOG_DIR)"
    sync "$MADE"
}

end_supervision() {
    for folder in /service /etc/service; do
        [ ! -L "$folder/$NAME" ] || rm "$folder/$NAME"
    done
    supervise=$app/service/supervise
    [ -p "$supervise/control" ] || return 0
    printf dx | timeout 5 dd status=none conv=notrunc of="$supervise/control" || true
    timeout 10 flock "$supervise/lock" true || true
}

# The old unit in /etc would hide the packaged one. A service that was disabled stays disabled.
free_unit() {
    unit=/etc/systemd/system/$NAME.service
    wanted=/etc/systemd/system/multi-user.target.wants/$NAME.service
    [ -L "$wanted" ] || ! grep -qx "unit enabled" "$FORMER" || made unit disabled
    sed -i "/^unit enabled\$/d" "$FORMER" # so that a second attempt does not take it for disabled
    [ "$(readlink "$wanted")" != "$unit" ] || rm "$wanted"
    free_or_keep "$unit" "init.d/$NAME.service"
}

# Remove a file that is unedited or empty; keep an edited one.
free_file() {
    ! is_unedited "$@" || rm -f "$1"
}

# The same for what would not work with this version: an edited one is renamed.
free_or_keep() {
    free_file "$@"
    [ ! -e "$1" ] || { say "$NAME: your edited $1 is now $1.dpkg-old"; mv "$1" "$1.dpkg-old"; }
}

is_unedited() {
    [ -s "$1" ] || return 0
    listen=127.0.0.1:$(former PORT)
    [ "$listen" != 127.0.0.1:8000 ] || listen=
    sed -e "s|/apps/$NAME|$app|g" -e "s|/mnt/logs/$NAME|$(former LOG_DIR)|g" \
        -e "s|/usr/bin/python3|$(former PYTHON)|g" -e "s|LISTEN=\$|LISTEN=$listen|" \
        -e "s|--to-ports 8000|--to-ports $(former PORT)|" "$app/$2" 2>/dev/null | cmp -s - "$1"
}

# Remove our lines from /etc/network/interfaces, and change nothing else: a box needs it to boot.
free_interfaces() {
    file=$(readlink -f /etc/network/interfaces) || return 0
    case $(sed -n "s/^# $NAME \(begin\|end\).*/\1/p" "$file" 2>/dev/null | tr '\n' ' ') in
        "") return ;;
        "begin end ") ;;
        *) say "$NAME: remove the lines of $NAME from $file by hand"; return ;;
    esac
    new=$file.$NAME
    cp -p "$file" "$new"
    sed "/^# $NAME begin/,/^# $NAME end/d" "$file" >"$new"
    ! had_no_end "$file" || truncate --size=-1 "$new"
    sync "$new"
    mv "$new" "$file"
    sync "$(dirname "$file")"
}

# Tell whether our lines are the last, and the line above them had no line feed, which is restored.
had_no_end() {
    tail -n 1 "$1" | grep -q "^# $NAME end" &&
        grep -q "^# $NAME begin.*; the line above had no end" "$1"
}

# ---- postinst

configure() {
    rm -f "$FORMER" # a second attempt would have needed it until here
    touch "$MADE"
    make_user
    share "$CONFIG"
    share "$DEFAULTS"
    "$INIT" prepare-files ||
        say "$NAME: $INIT is missing or broken; to restore it: sudo sh install.sh"
    register
    sync "$MADE"
    start
}

# Let the service read a file that root has not given another owner or mode.
share() {
    [ "$(stat -c '%G %a' "$1" 2>/dev/null)" != "root 640" ] || chgrp "$NAME" "$1"
}

# Note user and group before they are made: after a power cut in between a purge would leave them.
make_user() {
    has_group || { made group "$NAME"; groupadd --system "$NAME"; }
    has_user || {
        made user "$NAME"
        useradd --system --gid "$NAME" --no-create-home --home-dir /nonexistent --no-log-init \
            --shell /usr/sbin/nologin --comment "fake EC2 instance metadata service" "$NAME"
    }
}

# Note what a purge has to remove.
made() {
    grep -qxFs "$1 $2" "$MADE" || echo "$1 $2" >>"$MADE"
}

# Have the service started at boot, unless the admin has disabled it.
register() {
    if [ -n "$SUPERVISE" ]; then
        [ -d "$SUPERVISE" ] || { mkdir "$SUPERVISE" && made folder "$SUPERVISE"; }
        ln -sfn "/etc/sv/$NAME" "$SUPERVISE/$NAME"
        return
    fi
    deb-systemd-helper unmask "$NAME.service" >/dev/null
    if ! grep -qxs "unit disabled" "$MADE" &&
        deb-systemd-helper --quiet was-enabled "$NAME.service"; then
        deb-systemd-helper enable "$NAME.service" >/dev/null
    else
        deb-systemd-helper update-state "$NAME.service" >/dev/null
    fi
    sed -i "/^unit disabled\$/d" "$MADE"
    [ ! -x "$INIT" ] || update-rc.d "$NAME" defaults >/dev/null # an admin may delete it
}

# Start the service. Report a failure, but do not fail: that would leave the package half installed.
start() {
    if ! starts_now; then
        say "$NAME: not started now; starts at the next boot"
        return
    fi
    [ ! -d /run/systemd/system ] || systemctl daemon-reload
    code=0
    service_action restart || code=$?
    case $code in
        0) ;;
        101) say "$NAME: not started, because it is disabled; to start it: service $NAME start" ;;
        *) say "$NAME: does not start; see the messages above, or the end of $LOG_DIR/server.log" ;;
    esac
}

service_action() {
    if [ -n "$SUPERVISE" ]; then
        "$INIT" "$1"
    else
        invoke-rc.d --disclose-deny "$NAME" "$1"
    fi
}

maintain() {
    case "$DPKG_MAINTSCRIPT_NAME $1" in
        "preinst install" | "preinst upgrade")
            [ "$1,${2-}" != install, ] || FRESH=yes
            check_box
            take_over ;;
        "postinst configure" | "postinst abort-remove" | "postinst abort-deconfigure") configure ;;
    esac
}

# ---- install.sh: build the package for this box, install it, and prove that it works

install_package() {
    is_root || [ -n "$DRY_RUN" ] || die "only root can install: sudo sh $0"
    need_dpkg
    check_sources
    [ -z "$SUPERVISE" ] || [ -z "${FAKE_METADATA_NO_START-}" ] ||
        die "a supervisor starts the service as soon as it is registered: omit --no-start"
    check_same_settings
    [ -n "$(package_status)" ] || FRESH=yes
    check_box
    build "$WORK/$NAME.deb"
    if is_current; then
        say "$NAME $VERSION is already installed: nothing to do"
        [ -n "$DRY_RUN" ] || repair
    else
        say "$NAME $VERSION: $(what_comes)"
        if [ -n "$DRY_RUN" ]; then say_changes; else run_dpkg; fi
    fi
    [ -n "$DRY_RUN" ] || finish
}

# A line in /etc/default overrides the settings, as in the init script.
apply_defaults() {
    [ -r "$DEFAULTS" ] && sh -n "$DEFAULTS" 2>/dev/null || return 0
    for name in $SETTINGS; do
        eval "$name=\$(default $name)"
    done
    join_settings
}

default() {
    set +eu
    # shellcheck source=/dev/null
    . "$DEFAULTS" >/dev/null 2>&1
    eval "echo \"\$$1\""
}

what_comes() {
    now=$(dpkg-query --show --showformat '${Version}' "$NAME" 2>/dev/null || true)
    ! is_former || now=$(version_of "$(former APP_DIR)/fake_metadata.py")
    if [ -z "$now" ] || [ "$(package_status)" = config-files ]; then
        echo "installing"
    elif [ "$now" != "$VERSION" ]; then
        echo "upgrading from $now"
    else
        echo "repairing, or changing settings"
    fi
}

version_of() {
    sed -n 's/^VERSION = "\(.*\)"/\1/p' "$1" 2>/dev/null || true
}

# Tell whether this very package is installed, with no file missing or empty.
is_current() {
    [ "$(dpkg-query --show --showformat '${db:Status-Status} ${Build}' "$NAME" 2>/dev/null)" = \
        "installed $(dpkg-deb --field "$WORK/$NAME.deb" Build)" ] &&
        ! verify | grep -qv '^..[5?]...... c ' && [ -z "$(empty_files)" ]
}

# Some images exclude files below /usr/share (path-exclude of dpkg).
verify() {
    dpkg --verify "$NAME" 2>/dev/null | grep -v " /usr/share/"
}

empty_files() {
    for path in $(conffiles); do
        [ ! -f "$path" ] || [ -s "$path" ] || echo "$path"
    done
}

# Ask no questions: keep an edited configuration, and put the new version next to it as .dpkg-dist.
run_dpkg() {
    # shellcheck disable=SC2046 # paths without blanks
    [ -z "$(package_status)" ] || rm -f $(empty_files)
    code=0
    dpkg --force-confdef,confold,confmiss --install "$WORK/$NAME.deb" \
        </dev/null >"$WORK/said" 2>&1 || code=$?
    if [ "$code" -ne 0 ]; then
        cat "$WORK/said" >&2
        die "dpkg could not install $NAME; correct the error above, then: sudo sh install.sh"
    fi
    sed -n "s/^$NAME: //p" "$WORK/said"
    for path in $(conffiles); do
        [ -z "$(find "$path.dpkg-dist" -cnewer "$WORK/settings" 2>/dev/null)" ] ||
            say "your edited $path is kept; the new version is $path.dpkg-dist"
    done
}

# Restore what a flushed firewall or an emptied disk has removed.
repair() {
    if ! starts_now; then
        "$INIT" prepare-files
    elif ! service_runs || service_is_outdated; then
        service_action restart || true
    elif ! "$INIT" network-status >/dev/null || [ ! -e "$LOG_DIR/server.log" ]; then
        service_action reload || true
    fi
}

service_runs() {
    "$INIT" status >/dev/null 2>&1
}

# Tell whether program or settings have changed since the service was started.
service_is_outdated() {
    is_root || return 1 # only root can see when that was
    [ -e "/run/$NAME/private/started" ] || return 0
    find "$APP_DIR/fake_metadata.py" "$APP_DIR/settings" \
        -cnewer "/run/$NAME/private/started" 2>/dev/null | grep -q .
}

# Print what an installation would change.
say_changes() {
    ! is_former || say "would remove what an install.sh before 1.2 put in /etc/systemd/system" \
        "and /etc/network/interfaces"
    has_user || say "would create the user $NAME"
    (cd "$WORK/tree" && find . -path ./DEBIAN -prune -o ! -type d -printf '/%P\n') | sort |
        while read -r path; do
            if ! is_there "$path"; then
                say "would write $path"
            elif [ -f "$path" ] && [ -r "$path" ] && ! cmp -s "$WORK/tree$path" "$path"; then
                say "would replace $path, unless it is below /etc and edited"
            fi
        done
    [ -d "$LOG_DIR" ] || say "would create the folder $LOG_DIR"
    if is_root; then "$INIT" network-status >/dev/null 2>&1; else addresses_are_set; fi ||
        say "would redirect 169.254.169.254:80 to port $PORT: address on lo, rules in iptables" \
            "(ADDRESSES: $ADDRESSES; CONTAINERS: ${CONTAINERS:-none})"
    starts_at_boot || say "would enable the service at boot"
    ! starts_now || say "would start or restart the service"
}

finish() {
    apply_defaults
    if ! service_runs && ! { starts_now && starts_at_boot; }; then
        say "Installed, not started."
        say "Next: service $NAME start"
        return
    fi
    prove
    say "$NAME runs on port $PORT and answers AWS clients on this box."
    starts_at_boot || say "The service is disabled: it does not start at boot."
    say "Configuration: $CONFIG (after an edit: service $NAME reload)"
    say "Log: $LOG_DIR/server.log"
    say "Manual: $APP_DIR/README.md, or: man $NAME"
    say "Next: curl http://169.254.169.254/latest/meta-data/"
    say "If something does not work: service $NAME check"
}

# ---- proof: an IMDSv2 round-trip through the address

# Print the outcome. Exit 1 without an answer, 2 without credentials.
round_trip() {
    "$PYTHON" -I -B - "$APP_DIR" <<'PYTHON'
import json, signal, sys, urllib.request

BASE = "http://169.254.169.254/latest/"
ROLES = "meta-data/iam/security-credentials/"


class NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):  # urllib would read all of its body
        return None


def shown(words):
    return ascii(str(words))[1:-1][:300]  # an impostor must not control the terminal


signal.signal(signal.SIGALRM, lambda *_: sys.exit("no complete answer within 15 s"))
signal.alarm(15)
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect)


def ask(path, headers, method="GET"):
    request = urllib.request.Request(BASE + path, headers=headers, method=method)
    with direct.open(request, timeout=5) as answer:
        return answer.read(100000).decode()


try:
    token = ask("api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
except OSError as error:
    sys.exit("no session token: %s" % shown(error))
try:
    headers = {"X-aws-ec2-metadata-token": token}
    role = ask(ROLES, headers).split("\n")[0]
    found = json.loads(ask(ROLES + role, headers))
    if found["Code"] != "Success":
        raise ValueError("%s %s" % (found["Code"], found.get("Message", "")))
    sys.path.insert(0, sys.argv[1])
    from fake_metadata import refresh_window, timestamp, utc
    until = timestamp(found["Expiration"])
    rotation = until - refresh_window(until - timestamp(found["LastUpdated"]))
except (OSError, ValueError, KeyError, ImportError) as error:
    print("a session token, but no credentials: %s" % shown(error))
    sys.exit(2)
print("credentials of role %s: ...%s, valid until %s, next rotation at %s" % (
    shown(role), shown(found["AccessKeyId"][-4:]), utc(until), utc(rotation)))
PYTHON
}

prove() {
    code=0
    proof=$(round_trip 2>&1) || code=$?
    say "IMDSv2 at http://169.254.169.254/: $proof"
    [ "$code" -ne 1 ] ||
        die "no answer at http://169.254.169.254/; to find out why: service $NAME check"
}

# ---- --check: the package, and what else keeps an SDK from its credentials

PROBLEMS=0
UNSEEN=''
REPAIR="sudo sh install.sh (in the folder that you copied to this box)"

good() {
    say "ok        $1"
}

# note TEXT [REMEDY]: say what is worth knowing, but is not a problem.
note() {
    say "note      $1${2:+; remedy: $2}"
}

problem() {
    PROBLEMS=$((PROBLEMS + 1))
    say "PROBLEM   $1; remedy: $2"
}

unseen() {
    UNSEEN=yes
    say "not seen  $1"
}

check() {
    if [ "$(package_status)" = installed ]; then
        apply_defaults
        check_all
    else
        problem "$NAME is not installed" "$REPAIR"
        note_own_service
    fi
    [ "$PROBLEMS" -eq 0 ] || die "problems found: $PROBLEMS"
    say "all is well${UNSEEN:+, apart from what was not seen}"
}

check_all() {
    good "$NAME $(dpkg-query --show --showformat '${Version}' "$NAME") is installed"
    check_files
    check_folder_owners
    check_defaults
    check_configuration
    check_registration
    check_service
    check_listener
    check_address
    check_round_trip
    note_own_service
    note_arp
    note_bridges
    check_log
    check_source
    check_variables
    check_shadowing_files
}

# judge TEST GOOD PROBLEM REMEDY
judge() {
    if "$1"; then
        good "$2"
    else
        problem "$3" "$4"
    fi
}

# dpkg prints "missing     /path" or "??5??????   /path", with a "c" before the path of a conffile.
check_files() {
    while read -r state path; do
        case $state,$path in
            missing,*) problem "$path is missing" "$REPAIR" ;;
            ??5*,"c "*) good "${path#c } (edited)" ;;
            ??5*) problem "$path has changed since it was installed" "$REPAIR" ;;
        esac
    done <<VERIFIED
$(verify | sed 's/^\(missing *\) c /\1 /; s/ (.*//')
$(empty_files | sed 's/^/missing /')
VERIFIED
    judge has_user "user $NAME" "the user $NAME does not exist" "$REPAIR"
    judge log_is_there "log folder $LOG_DIR" \
        "the log folder $LOG_DIR or the link $APP_DIR/logs is missing" "service $NAME restart"
}

log_is_there() {
    [ -d "$LOG_DIR" ] && [ "$(readlink "$APP_DIR/logs")" = "$LOG_DIR" ]
}

# A user who can write there becomes root at the next start; and logrotate skips such a log folder.
check_folder_owners() {
    for folder in $(open_folders | sort -u); do
        problem "$folder $(writers "$folder") (logrotate requires that, too)" \
            "chown root:root $folder && chmod go-w $folder"
    done
}

# A shell reads this file; what is not a plain NAME=value means something else to other readers.
check_defaults() {
    if [ -e "$DEFAULTS" ] && [ ! -r "$DEFAULTS" ]; then
        unseen "$DEFAULTS (only root can read it)"
        load_applied
        return
    fi
    value="[A-Za-z0-9_.,:/@%+-]*|\"[^\"\`\$\\]*\"|'[^']*'"
    odd=$(grep -nvE "^(#.*|[A-Za-z_][A-Za-z0-9_]*=($value))?\$" "$DEFAULTS" 2>/dev/null |
        cut -d: -f1 | tr '\n' ' ')
    [ -z "$odd" ] || problem "$DEFAULTS, line ${odd% }: not a plain NAME=value" \
        "write it without export, without a comment after the value, without blanks outside" \
        "quotes, and without a CR at the end"
    check_applied
}

# The checks that follow compare with the settings in effect.
check_applied() {
    chosen="PORT=$PORT ADDRESSES=$ADDRESSES CONTAINERS=$CONTAINERS"
    load_applied
    [ "PORT=$PORT ADDRESSES=$ADDRESSES CONTAINERS=$CONTAINERS" = "$chosen" ] ||
        problem "these settings are not in effect yet: $chosen" "service $NAME reload"
}

load_applied() {
    # shellcheck source=/dev/null
    [ ! -r "/run/$NAME/settings" ] || . "/run/$NAME/settings"
    join_settings
}

check_configuration() {
    if [ -e "$CONFIG" ] && [ ! -r "$CONFIG" ]; then
        unseen "$CONFIG (only root can read it)"
    elif complaint=$("$INIT" test-config 2>&1); then
        good "configuration $CONFIG${complaint:+; but ${complaint#"$NAME: "}}"
    else
        problem "${complaint#"$NAME: "}" "correct the configuration, then: service $NAME reload"
    fi
    "$INIT" clients | while IFS= read -r words; do
        good "$words"
    done
    names=$("$INIT" overlay-names)
    [ -z "$names" ] || good "set until the next boot (service $NAME show): $names"
}

check_registration() {
    remedy="update-rc.d $NAME defaults; update-rc.d $NAME enable"
    [ -z "$SUPERVISE" ] || remedy="ln -sfn /etc/sv/$NAME $SUPERVISE/$NAME"
    judge starts_at_boot "starts at boot" "the service does not start at boot" "$remedy"
}

starts_at_boot() {
    if [ -n "$SUPERVISE" ]; then
        [ "$(readlink "$SUPERVISE/$NAME")" = "/etc/sv/$NAME" ]
    elif [ -d /run/systemd/system ]; then
        systemctl --quiet is-enabled "$NAME.service" 2>/dev/null
    else
        ls /etc/rc?.d/S??"$NAME" >/dev/null 2>&1
    fi
}

check_service() {
    code=0
    "$INIT" status >/dev/null 2>&1 || code=$?
    case $code in
        0) good "the service is running" ;;
        1) problem "the service has died" \
            "service $NAME start (the end of $LOG_DIR/server.log says why it died)" ;;
        *) problem "the service is stopped" "service $NAME start" ;;
    esac
    if [ "$code" -eq 0 ] && service_is_outdated; then
        problem "program or settings have changed since the service was started" \
            "service $NAME restart"
    fi
}

# The packet rules lead to the addresses in box.conf, whatever [server] bind says.
check_listener() {
    for address in $(bound_addresses); do
        if [ -z "$(listeners_at "$address")" ]; then
            problem "nothing listens at $address, the target of the redirect" "$(how_to_listen)"
        elif listeners_at "$address" | is_service; then
            good "the service listens at $address"
        else
            problem "port $PORT is in use by $(port_owner)" \
                "stop that program, or change PORT in $DEFAULTS; then: service $NAME restart"
        fi
    done
}

bound_addresses() {
    bound=$(sed -n 's/^bind *= *//p' "/run/$NAME/box.conf" 2>/dev/null | tr -d , || true)
    echo "${bound:-127.0.0.1:$PORT}"
}

how_to_listen() {
    if has_bind "/run/$NAME/set.conf"; then
        say "service $NAME unset server.bind"
    elif has_bind "$CONFIG"; then
        say "remove bind in [server] from $CONFIG (on a box, PORT and CONTAINERS in $DEFAULTS" \
            "take its place), then: service $NAME restart"
    else
        say "service $NAME restart"
    fi
}

has_bind() {
    awk '/^\[/ { here = /^\[server\]/ } here && /^bind *[=:]/ { found = 1 }
        END { exit !found }' "$1" 2>/dev/null
}

check_address() {
    if ! is_root; then
        judge addresses_are_set "on lo: $ADDRESSES" "not all of these are on lo: $ADDRESSES" \
            "service $NAME restart"
        unseen "the packet rules (only root can list them)"
    elif complaints=$("$INIT" network-status); then
        good "on lo: $ADDRESSES; redirected to port $PORT${CONTAINERS:+, also from $CONTAINERS}"
    else
        while read -r complaint; do
            problem "$complaint" "$(network_remedy "$complaint")"
        done <<LINES
$complaints
LINES
    fi
}

# A restart sets everything but what the admin has removed from the file of rules.
network_remedy() {
    case $1 in
        *" has no redirect "*) say "move that file away, then: $REPAIR" ;;
        *) say "service $NAME restart" ;;
    esac
}

# If our address is missing, a request could reach the real metadata service of a cloud machine.
check_round_trip() {
    if ! alias_is_set; then
        [ "$(nmcli -t networking 2>/dev/null)" != disabled ] ||
            note "\"nmcli networking off\" has removed 169.254.169.254 from lo" \
                "service $NAME reload"
        return
    fi
    end=$(stat -c %s "$LOG_DIR/server.log" 2>/dev/null || echo 0)
    code=0
    proof="IMDSv2 at http://169.254.169.254/: $(round_trip 2>&1)" || code=$?
    case $code in
        0) good "$proof" ;;
        2) problem "$proof" "see [credentials] in $CONFIG, and the end of $LOG_DIR/server.log" ;;
        *) check_way "$(refusal_since "$end")"; return ;;
    esac
    while read -r rule; do
        [ -z "$rule" ] ||
            note "another program has a packet rule for this address; $NAME comes first: $rule"
    done <<LINES
$(foreign_rules)
LINES
}

# Print why the service itself refused a session token: the last words of its line in the log.
refusal_since() {
    tail -c "+$(($1 + 1))" "$LOG_DIR/server.log" 2>/dev/null |
        sed -n 's|.* "PUT /latest/api/token HTTP/1.1" .*" \(.*\)|\1|p' | tail -n 1 | visible
}

# check_way REFUSAL: name what keeps the answer from the client.
check_way() {
    before=$PROBLEMS
    [ -z "$1" ] || problem "$proof; the log says: $1" \
        "remove that setting from $CONFIG and reload, or unset it (see: service $NAME show)"
    [ -n "$(ip link show dev lo up 2>/dev/null)" ] ||
        problem "$proof: lo is down" "ip link set dev lo up"
    while read -r rule; do
        [ -z "$rule" ] || problem "$proof; blocked by: $(say "$rule" | visible)" \
            "$(without "$rule" | visible) # and the same in the configuration of the firewall"
    done <<LINES
$(obstacles)
LINES
    [ "$PROBLEMS" -gt "$before" ] || problem "$proof" \
        "correct the problems above, if any, then see the end of $LOG_DIR/server.log"
}

# Print the rules that have stopped a packet of a connection to the address. Rules of nftables may
# have no counter: of them, print all that name address or port, and policies that drop.
obstacles() {
    counted=$(packet_rules)
    connects || true
    {
        packet_rules | grep -vxFe "$counted" | grep -E -e " -j ($VERDICTS)( |\$)| -P " || true
        say "$counted" | grep "^-" | grep -E "169\.254\.|port .*\<(80|$PORT)\>|policy drop"
    } | cut -f 2- | head -n 3
}

VERDICTS="DROP|REJECT|REDIRECT|DNAT|TPROXY|NFQUEUE"

# Print the command that deletes a rule of packet_rules, or that exempts lo from a policy.
without() {
    place=${1%%:*}
    case $1 in
        *" -P INPUT "*) say "${1%% -P *} -I INPUT -i lo -j ACCEPT" ;;
        *" -P OUTPUT "*) say "${1%% -P *} -I OUTPUT -o lo -j ACCEPT" ;;
        *" -A "*) say "${1%% -A *} -D ${1#* -A }" ;;
        *"input, policy drop") say "nft insert rule ${place#nft } iif lo accept" ;;
        *"policy drop") say "nft insert rule ${place#nft } oif lo accept" ;;
        *) say "nft delete rule ${place#nft } handle ${1##* }" ;;
    esac
}

note_own_service() {
    reason=$(own_service)
    [ -z "$reason" ] || note "$reason; $NAME hides it while it is installed" \
        "if that is not intended: sudo sh uninstall.sh"
}

# By default the kernel answers ARP for any address of the box on any interface.
note_arp() {
    [ "$(arp_ignore all)" = 0 ] || return 0
    open=''
    for interface in $(lan_interfaces); do
        [ "$(arp_ignore "$interface")" != 0 ] || open="$open $interface"
    done
    # shellcheck disable=SC2086 # names
    [ -z "$open" ] || note "this box answers ARP for 169.254.169.254 on these interfaces:$open" \
        "$(printf 'sysctl -w net.ipv4.conf.%s.arp_ignore=1; ' $open)# and the same in /etc/sysctl.d"
}

arp_ignore() {
    cat "/proc/sys/net/ipv4/conf/$1/arp_ignore" 2>/dev/null || echo 1
}

# Print the interfaces that speak ARP with others than containers: no bridge without a device
# (docker0, virbr0), and nothing that is part of a bridge.
lan_interfaces() {
    ip -o link show up | grep -vE "LOOPBACK|NOARP| master " | cut -d: -f2 | cut -d@ -f1 |
        while read -r interface; do
            is_for_containers "$interface" || say "$interface"
        done
}

# Containers behind a bridge that CONTAINERS does not name are refused, which looks like a fault.
note_bridges() {
    unnamed=''
    for folder in /sys/class/net/*/bridge; do
        interface=$(basename "${folder%/bridge}")
        case $interface in docker0 | br-* | podman* | virbr*)
            is_named "$interface" || unnamed="$unnamed $interface" ;;
        esac
    done
    [ -z "$unnamed" ] || note "containers and VMs behind these bridges have no access:$unnamed" \
        "to let them in, add the bridges to CONTAINERS in $DEFAULTS, then: service $NAME reload"
}

is_for_containers() {
    is_named "$1" && return
    [ -d "/sys/class/net/$1/bridge" ] && ! ls -d "/sys/class/net/$1/brif/"*/device >/dev/null 2>&1
}

# Does CONTAINERS have this interface?
is_named() {
    for name in $(each "$CONTAINERS"); do
        case $name,$1 in "$1,$1" | *+,"${name%+}"*) return 0 ;; esac
    done
    return 1
}

check_log() {
    log=$LOG_DIR/server.log
    pid=$(listener_pid)
    if ! is_root; then
        unseen "whether the service writes to $log (only root can see it)"
    elif [ -n "$pid" ] && [ -z "$(find -L "/proc/$pid/fd" -samefile "$log" 2>/dev/null)" ]; then
        problem "the service does not write to $log" \
            "free space on that disk, or move away what is at that path, then: service $NAME reload"
    fi
}

check_source() {
    if [ ! -r "$LOG_DIR/server.log" ]; then
        unseen "$LOG_DIR/server.log (only root and the group adm can read it)"
        return
    fi
    last=$(grep -aE "^[0-9T:-]+Z $NAME: (no )?new credentials for" "$LOG_DIR/server.log" |
        tail -n 1)
    case $last in
        *": no new credentials for"*)
            problem "$(say "${last#*: }" | visible)" \
                "correct [credentials] in $CONFIG, then: service $NAME reload" ;;
    esac
}

# Variables that take precedence over instance metadata in every SDK.
SHADOWS="AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_PROFILE AWS_WEB_IDENTITY_TOKEN_FILE
    AWS_CONTAINER_CREDENTIALS_RELATIVE_URI AWS_CONTAINER_CREDENTIALS_FULL_URI
    AWS_EC2_METADATA_SERVICE_ENDPOINT AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"

check_variables() {
    [ -n "${HOME-}" ] ||
        unseen "variables of your shell, and ~/.aws; to check them: sh $APP_DIR/install.sh --check"
    [ -z "${SUDO_USER-}" ] ||
        unseen "variables that sudo hides; to check them: sh $APP_DIR/install.sh --check (not sudo)"
    for name in $SHADOWS; do
        eval "value=\${$name-}"
        [ -z "$value" ] ||
            problem "$name is set in this shell and takes precedence over the service" "unset $name"
    done
    case ${AWS_EC2_METADATA_DISABLED-} in
        [Tt][Rr][Uu][Ee])
            problem "AWS_EC2_METADATA_DISABLED is true in this shell, so SDKs skip the service" \
                "unset AWS_EC2_METADATA_DISABLED" ;;
    esac
    check_proxy
}

check_proxy() {
    [ -n "${http_proxy-}${HTTP_PROXY-}${all_proxy-}${ALL_PROXY-}" ] || return 0
    case ${no_proxy-},${NO_PROXY-} in
        *169.254.* | *"*"*) ;;
        *) problem "a proxy is set in this shell, and NO_PROXY does not include 169.254.169.254" \
            "export NO_PROXY=169.254.169.254 no_proxy=169.254.169.254" ;;
    esac
}

check_shadowing_files() {
    files=''
    for home in $(homes | sort -u); do
        check_default_profile "$home/.aws/credentials"
        check_default_profile "$home/.aws/config"
        files="$files $home/.profile $home/.bashrc $home/.bash_profile $home/.zshrc"
    done
    # shellcheck disable=SC2086 # names
    for file in $files /etc/environment /etc/profile /etc/profile.d/*.sh; do
        ! grep -qsE "^[^#]*AWS_(ACCESS_KEY_ID|PROFILE|EC2_METADATA_DISABLED)=" "$file" ||
            problem "$file sets AWS variables that take precedence over the service" \
                "remove them from that file, then log in again"
    done
}

homes() {
    echo "${HOME-}"
    getent passwd "${SUDO_USER-}" | cut -d: -f6
}

check_default_profile() {
    keys="aws_access_key_id|credential_process|sso_|role_arn|web_identity_token_file"
    ! awk -v keys="^ *($keys)" '/^\[/ { here = /^\[ *default *\]/ }
        here && $0 ~ keys { found = 1 }
        END { exit !found }' "$1" 2>/dev/null ||
        problem "the profile [default] in $1 takes precedence over the service" \
            "rename the profile, or move the file away: mv $1 $1.off"
}

# ---- the command line

usage() {
    sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"
}

usage_error() {
    echo "${0##*/}: $*" >&2
    echo "usage: sudo sh install.sh [OPTIONS]; see --help" >&2
    exit 2
}

parse_options() {
    while [ $# -gt 0 ]; do
        case $1 in
            --help) usage; exit 0 ;;
            --check) ACTION=check ;;
            --dry-run) DRY_RUN=yes ;;
            --no-start) export FAKE_METADATA_NO_START=yes ;;
            --supervise) ASKED_SUPERVISE=yes ;;
            --force) export FAKE_METADATA_FORCE=yes ;;
            --deb)
                ACTION=deb
                case ${2--} in -*) ;; *) DEB=$2; shift ;; esac ;;
            *) usage_error "unknown option $1" ;;
        esac
        shift
    done
}

make_deb() {
    need_dpkg
    check_settings
    check_sources
    [ ! -d "${DEB:-.}" ] || DEB=${DEB:-.}/${NAME}_${VERSION}_all.deb
    build "$DEB"
    say "Next: sudo apt install '$(realpath "$DEB")'"
}

run() {
    parse_options "$@"
    load_settings
    VERSION=$(version_of "$SOURCE_DIR/fake_metadata.py")
    if [ "$ACTION" = check ]; then
        check
        return
    fi
    WORK=$(mktemp -d -t "$NAME.XXXXXX")
    trap 'rm -rf "$WORK"' EXIT
    trap 'exit 1' HUP INT PIPE TERM
    case $ACTION in
        install) install_package ;;
        deb) make_deb ;;
    esac
}

main() {
    umask 022
    export LC_ALL=C
    unset CDPATH
    case ${DPKG_MAINTSCRIPT_NAME-} in
        preinst | postinst) maintain "$@" ;;
        *) run "$@" ;;
    esac
}

main "$@"
