#!/bin/sh
# Install fake-metadata: from then on every AWS SDK on this box finds an instance metadata service at
# http://169.254.169.254/.
#
# usage: sudo sh install.sh [OPTIONS]
#   --check        change nothing; say what is not as it should be and what to do about it
#   --dry-run      print every change, make none
#   --no-start     install, but do not start the service
#   --supervise    run under daemontools or runit (/service or /etc/service)
#   --force        install even on a real EC2 instance, whose own metadata service is hidden then
#   --deb [FILE]   only make the Debian package, for other boxes and images; needs no root
#   --help         print this
#
# environment:
#   APP_DIR   folder of the program                  /apps/fake-metadata
#   LOG_DIR   folder of server.log                   /mnt/logs/fake-metadata
#   PORT      port of the service on 127.0.0.1       8000
#
# examples:
#   scp -r fake-metadata box: && ssh box sudo sh fake-metadata/install.sh
#   sudo PORT=8001 sh install.sh
#   sh install.sh --deb && sudo apt install ./fake-metadata_*_all.deb
#   sudo sh uninstall.sh
#
# Run again it upgrades or repairs; what you edited below /etc stays. Exit codes: 0 done, 1 not done
# (the last line says why), 2 usage.
set -eu

# It makes a Debian package of this folder and installs that. In the package it is preinst (checks
# that dpkg does not do, and what an install.sh before 1.2 left) and postinst (user, log folder,
# registration, start), and knows by DPKG_MAINTSCRIPT_NAME which. Beside the installed program it is
# for --check.

NAME=fake-metadata
CONFIG=/etc/$NAME.conf
DEFAULTS=/etc/default/$NAME
INIT=/etc/init.d/$NAME
STATE_DIR=/var/lib/$NAME
LINK=/usr/lib/$NAME # to APP_DIR: what is below /etc finds the rest by it
FORMER=$STATE_DIR/installed # what an install.sh before 1.2 did, as lines of KEY VALUE
ACTION=install
DRY_RUN='' ASKED_SUPERVISE='' DEB='' FRESH=''
SOURCE_DIR='' # stays empty in a package

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() {
    echo "$*"
}

die() {
    echo "${DPKG_MAINTSCRIPT_PACKAGE:-${0##*/}}: $*" >&2
    exit 1
}

is_root() {
    [ "$(id -u)" -eq 0 ]
}

# What root can do is not always what the service can do. (Through sh: setpriv itself looks for the
# command with root's rights.)
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

# Print what dpkg knows of the package: installed, config-files, half-installed ...; or nothing.
package_status() {
    dpkg-query --show --showformat '${db:Status-Status}' "$NAME" 2>/dev/null | sed 's/^not-installed$//'
}

# ---- settings: of the environment, for an installation; else of what is installed, else the usual

SETTINGS="LOG_DIR PORT PYTHON SUPERVISE ADDRESSES CONTAINERS"

# In a package they stand here:
# SETTINGS

load_settings() {
    SOURCE_DIR=$(cd "$(dirname "$0")" && pwd)
    unset PYTHON
    # shellcheck disable=SC2086 # names
    [ "$ACTION" != check ] || unset APP_DIR $SETTINGS
    [ -z "$ASKED_SUPERVISE" ] || SUPERVISE=$(supervise_folder)
    for name in APP_DIR $SETTINGS; do
        eval "$name=\${$name-\$(setting $name)}"
    done
    case $ACTION in
        install) PYTHON=$(find_python) ;;
        deb) PYTHON=/usr/bin/python3 ;;
    esac
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
    elif [ -e "$FORMER" ]; then
        former "$1"
    elif [ "$1" = APP_DIR ]; then
        readlink "$LINK" || true
    else
        sed -n "s/^$1=//p" "$LINK/settings" 2>/dev/null || true
    fi
}

# Print a value of an installation before 1.2.
former() {
    sed -n "s|^$1 ||p" "$FORMER" | tail -n 1
}

supervise_folder() {
    if [ -d /service ]; then
        echo /service
    else
        echo /etc/service
    fi
}

# Print the first Python that the service can run: not one in a home of root's. One word, please.
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
    [ -n "$1" ] && as_service "$1" -I -c "import sys; sys.exit(sys.version_info < (3, 7))" </dev/null >/dev/null 2>&1
}

# ---- checks before the first change; each says what is wrong and what to do

check_box() {
    check_settings
    check_commands
    check_python
    check_folders
    check_foreign
    check_config
    if starts_now; then
        check_ec2
        check_supervisor
        check_port
        [ -n "$DRY_RUN" ] || check_network
    fi
}

check_settings() {
    for folder in "$APP_DIR" "$LOG_DIR" "${SUPERVISE:-/}"; do
        case $folder in
            *[!A-Za-z0-9._/-]* | *//* | */../* | */..) die "$folder: use letters, digits and . _ - / for folders" ;;
            /*) ;;
            *) die "$folder: give folders as absolute paths" ;;
        esac
    done
    case $LOG_DIR/ in
        "$APP_DIR"/*) die "LOG_DIR=$LOG_DIR is in APP_DIR, which goes with the package: choose another" ;;
    esac
    case $PORT in
        "" | *[!0-9]* | 0* | ??????*) die "PORT=$PORT: use a number from 1 to 65535" ;;
    esac
    [ "$PORT" -le 65535 ] || die "PORT=$PORT: use a number from 1 to 65535"
    [ "$ADDRESSES" = 169.254.169.254 ] || die "ADDRESSES=$ADDRESSES: this version has 169.254.169.254 only"
    [ -z "$CONTAINERS" ] || die "CONTAINERS=$CONTAINERS: this version does not serve containers"
}

# What cannot change while it is installed.
check_same_settings() {
    [ -e "$LINK/settings" ] || [ -e "$FORMER" ] || return 0
    for name in APP_DIR LOG_DIR SUPERVISE; do
        eval "value=\$$name"
        before=$(setting "$name")
        [ "$before" = "$value" ] ||
            die "it is installed with $name=${before:-(none)}, not ${value:-none}: run uninstall.sh first"
    done
}

check_commands() {
    need ip iproute2
    need iptables iptables
    need iptables-restore iptables
    need useradd passwd
    need setpriv util-linux
    need flock util-linux
}

# need COMMAND PACKAGE
need() {
    command -v "$1" >/dev/null || die "$1 is missing: apt-get install $2"
}

check_python() {
    python_is_good "$PYTHON" ||
        die "there is no Python 3.7 or later that the service, which is not root, can run: apt-get install python3"
}

# Who can write in a folder on the way to the program is root at the next start.
check_folders() {
    for folder in "$APP_DIR" "$LOG_DIR" $(realpath -m "$APP_DIR" "$LOG_DIR"); do
        while [ "$folder" != / ]; do
            is_roots "$folder" || die "$folder $(writers "$folder"): $(remedy "$folder"), or choose another folder"
            folder=$(dirname "$folder")
        done
    done
}

is_roots() {
    [ ! -e "$1" ] || [ -n "$(find -H "$1" -prune -user root ! -perm -o+w \( -group root -o ! -perm -g+w \))" ]
}

writers() {
    stat --dereference --format "belongs to %U:%G with mode %a, but only root may write there" "$1"
}

remedy() {
    echo "chown root:root $1 && chmod go-w $1"
}

# dpkg would keep a file that somebody else put at one of our places, and delete it at the purge.
check_foreign() {
    [ -n "$FRESH" ] && [ ! -e "$FORMER" ] || return 0
    [ "$SOURCE_DIR" != "$APP_DIR" ] || die "run me from another folder than $APP_DIR, where the package has its own"
    [ -z "$(ls -A "$APP_DIR" 2>/dev/null)" ] ||
        die "$APP_DIR has files that are not of this program: move them away, or choose another APP_DIR"
    for path in $(paths) "$LINK"; do
        ! is_there "$path" || die "$path is not of this program: move it away (and what uses it), then run me again"
    done
}

is_there() {
    [ -e "$1" ] || [ -L "$1" ]
}

# With the program that is about to come.
check_config() {
    [ ! -r "$CONFIG" ] || complaint=$(program | "$PYTHON" -I - --config "$CONFIG" --test-config 2>&1) ||
        die "$complaint: correct that, then run me again"
}

# Print the program. In a preinst, where it is not unpacked yet, it stands here itself.
program() {
    if [ -n "$SOURCE_DIR" ]; then
        cat "$SOURCE_DIR/fake_metadata.py"
    else
        base64 --decode <<'PROGRAM' | gunzip
PROGRAM
    fi
}

# Tell whether a start is due now: not in a chroot or an image that is being built.
starts_now() {
    [ -z "${FAKE_METADATA_NO_START-}" ] && init_runs && policy_allows
}

init_runs() {
    [ -z "$SUPERVISE" ] || return 0
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

check_ec2() {
    [ -n "${FAKE_METADATA_FORCE-}" ] || ! grep -qs "Amazon EC2" /sys/class/dmi/id/*vendor ||
        die "this is a real EC2 instance, with a metadata service of its own: --force hides that behind the fake one"
}

check_supervisor() {
    [ -z "$SUPERVISE" ] || [ -d "$SUPERVISE" ] ||
        die "$SUPERVISE is not there: install daemontools or runit first"
}

check_options() {
    [ -z "$SUPERVISE" ] || [ -z "${FAKE_METADATA_NO_START-}" ] ||
        die "under a supervisor a service starts once it is registered: leave --no-start out"
}

check_port() {
    [ -z "$(listeners)" ] || port_is_ours ||
        die "port $PORT is taken by $(port_owner): stop that, or choose another with PORT=$((PORT + 1))"
}

# Print who listens where the redirect leads, each with its pid if root asks.
listeners() {
    ss -Hltnp "sport = :$PORT" 2>/dev/null | grep -E " (127\.0\.0\.1|0\.0\.0\.0|\*|\[::\]):$PORT " || true
}

listener_pid() {
    listeners | sed -n 's/.*pid=\([0-9]*\).*/\1/p' | head -n 1
}

port_is_ours() {
    pid=$(listener_pid)
    [ -n "$pid" ] && [ "$(stat -c %U "/proc/$pid")" = "$NAME" ]
}

# Print who listens on the port: "python3", pid 12.
port_owner() {
    owner=$(listeners | sed -n 's/.*users:((\(".*"\),pid=\([0-9]*\).*/\1, pid \2/p' | head -n 1)
    echo "${owner:-another program}"
}

# All that a start does to the network, done and taken back: in an unprivileged container it fails.
# The rule comes and goes at once, so that none is left if this is killed.
check_network() {
    complaint=$(try_address 2>&1 && try_rule 2>&1) ||
        die "this box does not let root set addresses and packet rules ($(echo "$complaint" | head -n 1)):" \
            "run it where that is allowed (NET_ADMIN)"
}

alias_is_set() {
    [ -n "$(ip -4 addr show dev lo to "$ADDRESSES/32" 2>/dev/null)" ]
}

try_address() {
    alias_is_set || { ip addr add "$ADDRESSES/32" dev lo && ip addr del "$ADDRESSES/32" dev lo; }
}

try_rule() {
    rule="-d $ADDRESSES/32 -p tcp -m tcp --dport 80 -m comment --comment $NAME-trial -j REDIRECT --to-ports $PORT"
    printf '%s\n' '*nat' "-A OUTPUT $rule" "-D OUTPUT $rule" COMMIT | iptables-restore -w --noflush
}

# ---- the package

# Print MODE SOURCE DESTINATION of each file that is as it is in this folder.
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
    for file in $(files | cut -d' ' -f2) CHANGELOG.md; do
        [ -f "$SOURCE_DIR/$file" ] || die "$file is missing beside install.sh: copy the whole folder to this box"
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
    # The same files make the same package, to the byte.
    SOURCE_DATE_EPOCH=$(stat -c %Y "$SOURCE_DIR/fake_metadata.py") \
        dpkg-deb --root-owner-group -Zxz --build "$tree" "$1" >/dev/null
}

packaged_settings() {
    echo "# Chosen when $NAME was installed. A line in $DEFAULTS wins."
    for name in $SETTINGS; do
        eval "echo \"$name=\$$name\""
    done
}

# The log may be on a mount of its own, at any folder on its way.
order_after_mounts() {
    folder='' units=''
    for name in $(echo "$LOG_DIR" | tr / ' '); do
        folder=$folder${folder:+-}$(echo "$name" | sed 's/-/\\\\x2d/g')
        units="$units $folder.mount"
    done
    sed -i "s/^After=mnt\.mount .*/After=${units# }/" "$1"
}

write_documents() {
    mkdir -p "$1/doc/$NAME" "$1/lintian/overrides"
    gzip -9 -n <"$SOURCE_DIR/CHANGELOG.md" >"$1/doc/$NAME/changelog.gz"
    echo "$NAME: see the folder that it was built from." >"$1/doc/$NAME/copyright"
    cat >"$1/lintian/overrides/$NAME" <<'OVERRIDES'
# Made on a box for that box: whoever is root there is to be asked.
fake-metadata: bogus-mail-host Maintainer root@localhost
fake-metadata: root-in-contact Maintainer root <root@localhost>
# People know the program by this place, which APP_DIR changes.
fake-metadata: non-standard-toplevel-dir *
OVERRIDES
}

# The settings go into the scripts: at a purge nothing else is there any more.
write_scripts() {
    { echo "APP_DIR=$APP_DIR"; packaged_settings | tail -n +2; } >"$WORK/settings"
    for script in preinst postinst prerm postrm; do
        source=install.sh
        case $script in *rm) source=uninstall.sh ;; esac
        sed "/^# SETTINGS\$/r $WORK/settings" "$SOURCE_DIR/$source" >"$1/$script"
        chmod 755 "$1/$script"
    done
    gzip -9 -n <"$SOURCE_DIR/fake_metadata.py" | base64 >"$WORK/program"
    sed -i "/^ *base64 --decode <<'PROGRAM'/r $WORK/program" "$1/preinst"
}

write_control() {
    conffiles >"$1/conffiles"
    (cd "$tree" && find . -path ./DEBIAN -prune -o -path ./etc -prune -o -type f -printf '%P\0' |
        sort -z | xargs -0 md5sum) >"$1/md5sums"
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
 Answers at http://169.254.169.254/ as on an EC2 instance, with rotating credentials, so that an
 application which takes its keys from there runs on this box as it does on EC2.
CONTROL
}

# Not Depends: preinst asks all three. A box that has them from elsewhere may go without packages.
dependencies() {
    for package in "python3 (>= 3.7)" iproute2 iptables; do
        [ "$ACTION" != deb ] && ! is_from_package "${package%% *}" || echo "$package"
    done | paste -sd, | sed 's/,/, /g'
}

is_from_package() {
    [ "$1" != python3 ] || [ "$PYTHON" = /usr/bin/python3 ] || return 1
    [ "$(dpkg-query --show --showformat '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# Tells one build from another of the same version: by what is in it.
digest() {
    (cd "$tree" && find . -type f -print0 | sort -z | xargs -0 sha256sum) | sha256sum | cut -c 1-16
}

# ---- preinst: an installation before 1.2 makes room

take_over() {
    [ -e "$FORMER" ] || return 0
    app=$(former APP_DIR)
    app=${app:-/apps/$NAME}
    end_supervision
    free_unit
    for_each_former_file free_file
    rm -rf "$app/init.d" "$app/logrotate.d" "$app/service"
    rm -f "$app/iptables.rules" "$app/fake_metadata.py" "$app/install.sh" "$app/uninstall.sh" "$app/logs"
    rmdir "$app" 2>/dev/null || true
    free_interfaces
    { grep -E "^(user|group|alias|folder) " "$FORMER" || true; echo "log $(former LOG_DIR)"; } >>"$STATE_DIR/made"
    sync "$STATE_DIR/made"
    rm "$FORMER"
}

end_supervision() {
    for folder in /service /etc/service; do
        [ ! -L "$folder/$NAME" ] || rm "$folder/$NAME"
    done
    control=$app/service/supervise/control
    [ ! -p "$control" ] || timeout 5 sh -c "printf dx >'$control'" || true
    [ ! -e "$app/service/supervise/lock" ] || timeout 10 flock "$app/service/supervise/lock" true || true
}

# Its unit in /etc would hide the packaged one. What was disabled stays so.
free_unit() {
    unit=/etc/systemd/system/$NAME.service
    wanted=/etc/systemd/system/multi-user.target.wants/$NAME.service
    [ -L "$wanted" ] || ! grep -qx "unit enabled" "$FORMER" || echo "unit disabled" >>"$STATE_DIR/made"
    [ "$(readlink "$wanted")" != "$unit" ] || rm "$wanted"
    free_or_keep "$unit" "init.d/$NAME.service"
}

for_each_former_file() {
    "$1" "$CONFIG" "init.d/$NAME.conf"
    "$1" "$DEFAULTS" "init.d/$NAME.default"
    "$1" /etc/network/iptables.rules iptables.rules
    "$1" "/etc/logrotate.d/$NAME" "logrotate.d/$NAME"
    free_or_keep "$INIT" "init.d/$NAME"
}

# Take a file away that nobody edited, or that is empty; an edited one stays.
free_file() {
    ! is_unedited "$@" || rm -f "$1"
}

# The same for what would not work with this version: an edited one stands beside it.
free_or_keep() {
    free_file "$@"
    [ ! -e "$1" ] || { say "$NAME: your edited $1 is $1.dpkg-old now"; mv "$1" "$1.dpkg-old"; }
}

is_unedited() {
    [ -s "$1" ] || return 0
    listen=127.0.0.1:$(former PORT)
    [ "$listen" != 127.0.0.1:8000 ] || listen=
    sed -e "s|/apps/$NAME|$app|g" -e "s|/mnt/logs/$NAME|$(former LOG_DIR)|g" -e "s|/usr/bin/python3|$(former PYTHON)|g" \
        -e "s|LISTEN=\$|LISTEN=$listen|" -e "s|--to-ports 8000|--to-ports $(former PORT)|" "$app/$2" 2>/dev/null |
        cmp -s - "$1"
}

# Take our lines out of /etc/network/interfaces, which a box needs to boot: every other byte stays.
free_interfaces() {
    file=$(readlink -f /etc/network/interfaces)
    case $(sed -n "s/^# $NAME \(begin\|end\).*/\1/p" "$file" 2>/dev/null | tr '\n' ' ') in
        "") return ;;
        "begin end ") ;;
        *) say "$NAME: take the lines of $NAME out of $file by hand"; return ;;
    esac
    new=$file.$NAME
    cp -p "$file" "$new"
    without_block "$file" >"$new"
    sync "$new"
    mv "$new" "$file"
    sync "$(dirname "$file")"
}

# Where the line above the block had no end, it gets none again.
without_block() {
    begin=$(sed -n "/^# $NAME begin/=" "$1")
    end=$(sed -n "/^# $NAME end/=" "$1")
    if [ "$end" -eq "$(wc -l <"$1")" ] && grep -q "^# $NAME begin.*; the line above had no end" "$1"; then
        head -n "$((begin - 1))" "$1" | head -c -1
    else
        head -n "$((begin - 1))" "$1"
        tail -n "+$((end + 1))" "$1"
    fi
}

# ---- postinst

configure() {
    make_user
    share "$CONFIG"
    share "$DEFAULTS"
    alias_is_set || made alias "$ADDRESSES/32"
    "$INIT" prepare-files
    register
    sync "$STATE_DIR/made"
    start
}

# Let the service read a file that is as it was shipped, and nobody else.
share() {
    [ "$(stat -c '%G %a' "$1" 2>/dev/null)" != "root 640" ] || chgrp "$NAME" "$1"
}

make_user() {
    mkdir -p "$STATE_DIR"
    has_group || { groupadd --system "$NAME" && made group "$NAME"; }
    has_user || {
        useradd --system --gid "$NAME" --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin \
            --no-log-init --comment "fake EC2 instance metadata service" "$NAME" && made user "$NAME"
    }
}

# Note what a purge has to take away again.
made() {
    grep -qxFs "$1 $2" "$STATE_DIR/made" || echo "$1 $2" >>"$STATE_DIR/made"
}

# With what starts services. What the admin disabled stays so.
register() {
    if [ -n "$SUPERVISE" ]; then
        mkdir -p "$SUPERVISE"
        ln -sfn "/etc/sv/$NAME" "$SUPERVISE/$NAME"
        return
    fi
    deb-systemd-helper unmask "$NAME.service" >/dev/null
    if ! grep -qxs "unit disabled" "$STATE_DIR/made" && deb-systemd-helper --quiet was-enabled "$NAME.service"; then
        deb-systemd-helper enable "$NAME.service" >/dev/null
    else
        deb-systemd-helper update-state "$NAME.service" >/dev/null
    fi
    sed -i "/^unit disabled\$/d" "$STATE_DIR/made"
    update-rc.d "$NAME" defaults >/dev/null
}

# A fault in the configuration must not leave dpkg with half a package: it is said, and no more.
start() {
    if ! starts_now; then
        say "$NAME: not started now; it starts at the next boot"
        return
    fi
    [ ! -d /run/systemd/system ] || systemctl daemon-reload
    code=0
    service_action restart || code=$?
    case $code in
        0) ;;
        101) say "$NAME: not started, since it is disabled; next: service $NAME start" ;;
        *) say "$NAME: does not start; the reason stands above, or in $LOG_DIR/server.log" ;;
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

# ---- install.sh: make the package for this box, install it, and prove that it works

install_package() {
    is_root || [ -n "$DRY_RUN" ] || die "only root can install: sudo sh $0"
    need dpkg-deb dpkg
    need update-rc.d init-system-helpers
    check_sources
    check_options
    check_settings
    check_same_settings
    [ -n "$(package_status)" ] || FRESH=yes
    check_box
    build "$WORK/$NAME.deb"
    if is_current; then
        say "$NAME $VERSION is installed: nothing to do"
        [ -n "$DRY_RUN" ] || repair
    else
        say "$NAME $VERSION: $(what_comes)"
        if [ -n "$DRY_RUN" ]; then say_changes; else run_dpkg; fi
    fi
    [ -n "$DRY_RUN" ] || finish
}

# Once it is installed a line in /etc/default wins.
apply_defaults() {
    for name in $SETTINGS; do
        value=$(sed -n "s/^$name=//p" "$DEFAULTS" 2>/dev/null | tail -n 1)
        [ -z "$value" ] || eval "$name=\$value"
    done
}

what_comes() {
    now=$(dpkg-query --show --showformat '${Version}' "$NAME" 2>/dev/null || true)
    [ ! -e "$FORMER" ] || now=$(version_of "$(former APP_DIR)/fake_metadata.py")
    if [ -z "$now" ] || [ "$(package_status)" = config-files ]; then
        echo "installing"
    elif [ "$now" != "$VERSION" ]; then
        echo "upgrading from $now"
    else
        echo "installing again, since something is missing or other than before"
    fi
}

version_of() {
    sed -n 's/^VERSION = "\(.*\)"/\1/p' "$1" 2>/dev/null || true
}

# Tell whether this very package is installed, and nothing of it missing. Empty is missing, too.
is_current() {
    [ "$(dpkg-query --show --showformat '${db:Status-Status} ${Build}' "$NAME" 2>/dev/null)" = \
        "installed $(dpkg-deb --field "$WORK/$NAME.deb" Build)" ] &&
        ! dpkg --verify "$NAME" | grep -qv '^..5...... c ' && [ -z "$(empty_files)" ]
}

empty_files() {
    for path in $(conffiles); do
        [ ! -f "$path" ] || [ -s "$path" ] || echo "$path"
    done
}

# Without a question: an edited configuration stays, the new one beside it as .dpkg-dist.
run_dpkg() {
    # shellcheck disable=SC2046 # paths without blanks
    [ -z "$(package_status)" ] || rm -f $(empty_files)
    code=0
    dpkg --force-confdef,confold,confmiss --install "$WORK/$NAME.deb" </dev/null >"$WORK/said" 2>&1 || code=$?
    [ "$code" -eq 0 ] || { cat "$WORK/said" >&2; die "dpkg could not install it: see above, then run me again"; }
    sed -n "s/^$NAME: //p" "$WORK/said"
    for path in $(conffiles); do
        [ -z "$(find "$path.dpkg-dist" -cnewer "$WORK/settings" 2>/dev/null)" ] ||
            say "your edited $path stays; the new one is $path.dpkg-dist"
    done
}

# What a flushed firewall or an emptied disk took away.
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

# It runs what was there when it started.
service_is_outdated() {
    find "$APP_DIR/fake_metadata.py" "$APP_DIR/settings" -cnewer "/run/$NAME/private/started" 2>/dev/null | grep -q .
}

# Print what an installation would change.
say_changes() {
    has_user || say "would create the user $NAME"
    (cd "$WORK/tree" && find . -path ./DEBIAN -prune -o ! -type d -printf '/%P\n' | sort) | while read -r path; do
        if ! is_there "$path"; then
            say "would write $path"
        elif ! cmp -s "$WORK/tree$path" "$path" && [ -f "$path" ]; then
            say "would replace $path$(kept_if_edited "$path")"
        fi
    done
    [ -d "$LOG_DIR" ] || say "would make the folder $LOG_DIR"
    "$INIT" network-status >/dev/null 2>&1 ||
        say "would lead 169.254.169.254:80 to 127.0.0.1:$PORT: address on lo, rule in iptables"
    starts_at_boot || say "would register it to start at boot"
    ! starts_now || say "would start it, or start it anew"
}

kept_if_edited() {
    case $1 in /etc/*) echo ", unless you edited it" ;; esac
}

finish() {
    apply_defaults
    if [ -n "${FAKE_METADATA_NO_START-}" ]; then
        say "Installed, not started."
        say "Next: service $NAME start"
    elif ! starts_now; then
        say "Installed; it starts at the next boot (no init runs here, or policy-rc.d forbids a start)."
        say "Next: service $NAME start"
    elif ! service_runs && ! starts_at_boot; then
        say "Installed; it stays disabled, as it was."
        say "Next: service $NAME start"
    else
        prove
        say "$NAME runs on port $PORT and answers every AWS client on this box; also after the next boot."
        say "Configuration: $CONFIG, then: service $NAME reload. Log: $LOG_DIR/server.log."
        say "Next: curl http://169.254.169.254/latest/meta-data/"
        say "In doubt: service $NAME check"
    fi
}

# ---- proof: an IMDSv2 round-trip through the address

# Print what came back, waiting up to PATIENCE seconds for the port. Exit 1: no way through; 2: but
# no credentials.
round_trip() {
    "$PYTHON" -I -B - "$1" "$APP_DIR" <<'PYTHON'
import json, sys, time, urllib.error, urllib.request

BASE = "http://169.254.169.254/latest/"
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask(path, method, headers):
    request = urllib.request.Request(BASE + path, method=method, headers=headers)
    with direct.open(request, timeout=5) as answer:
        return answer.read(100000).decode()


def token(patience):
    try:
        return ask("api/token", "PUT", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
    except urllib.error.HTTPError as error:
        sys.exit("the token was refused with %d" % error.code)
    except OSError:
        if patience <= 0:
            raise
        time.sleep(0.1)
        return token(patience - 0.1)


def describe(found):
    if found["Code"] != "Success":
        return "%s %s" % (found["Code"], found.get("Message", ""))
    sys.path.insert(0, sys.argv[2])
    from fake_metadata import refresh_window, timestamp, utc
    until = timestamp(found["Expiration"])
    rotation = until - refresh_window(until - timestamp(found["LastUpdated"]))
    return "...%s, until %s, new ones at %s" % (found["AccessKeyId"][-4:], utc(until), utc(rotation))


path, found = "meta-data/iam/security-credentials/", {"Code": "none"}
try:
    headers = {"X-aws-ec2-metadata-token": token(float(sys.argv[1]))}
    path += ask(path, "GET", headers).split("\n")[0]
    found = json.loads(ask(path, "GET", headers))
    print("credentials of %s: %s" % (path.split("/")[-1], describe(found)))
except urllib.error.HTTPError as error:
    print("a token, but no credentials: GET %s says %d" % (path, error.code))
except (OSError, ValueError, KeyError) as error:
    sys.exit("no answer: %s" % error)
sys.exit(0 if found["Code"] == "Success" else 2)
PYTHON
}

prove() {
    code=0
    proof=$(round_trip 10 2>&1) || code=$?
    say "IMDSv2 through http://169.254.169.254/: $proof"
    [ "$code" -ne 1 ] || die "that is not right: service $NAME check says more"
}

# ---- --check: the package, and what else keeps an SDK from its credentials

PROBLEMS=0
UNSEEN=''
REPAIR="sudo sh install.sh, in the folder that you copied to this box"

good() {
    say "ok        $1"
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
    fi
    [ "$PROBLEMS" -eq 0 ] || die "problems: $PROBLEMS"
    say "all is well${UNSEEN:+, as far as it could be seen}"
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

# dpkg says "missing     /path", "??5??????   /path", and with a c between what is an edited conffile.
check_files() {
    for path in $(missing_files); do
        problem "$path is missing" "$REPAIR"
    done
    for path in $(changed_files); do
        problem "$path is not as it was installed" "$REPAIR"
    done
    for path in $(edited_files); do
        good "$path (edited)"
    done
    judge has_user "user $NAME" "there is no user $NAME" "$REPAIR"
    judge log_is_there "log folder $LOG_DIR" "the log folder $LOG_DIR or the link $APP_DIR/logs is missing" \
        "service $NAME restart"
}

missing_files() {
    dpkg --verify "$NAME" 2>/dev/null | sed -n 's/^missing  .* \(\/\)/\1/p' | sed 's/ (.*//'
    empty_files
}

changed_files() {
    dpkg --verify "$NAME" 2>/dev/null | sed -n 's/^..5......   \(\/\)/\1/p'
}

edited_files() {
    dpkg --verify "$NAME" 2>/dev/null | sed -n 's/^..5...... c \(\/\)/\1/p'
}

log_is_there() {
    [ -d "$LOG_DIR" ] && [ "$(readlink "$APP_DIR/logs")" = "$LOG_DIR" ]
}

check_folder_owners() {
    complaint=$(check_folders 2>&1) || problem "${complaint#*.sh: }" "as it says"
}

# It is read by a shell; what is no plain NAME=value would mean something else to another reader.
check_defaults() {
    if [ -e "$DEFAULTS" ] && [ ! -r "$DEFAULTS" ]; then
        unseen "$DEFAULTS (only root can read it)"
        return
    fi
    odd=$(grep -nvE "^(#.*|[A-Za-z_][A-Za-z0-9_]*=[A-Za-z0-9_.,:/@%+-]*|[A-Za-z_][A-Za-z0-9_]*=(\"[^\"\`\$\\]*\"|'[^']*'))?\$" \
        "$DEFAULTS" 2>/dev/null | cut -d: -f1 | tr '\n' ' ')
    [ -z "$odd" ] || problem "$DEFAULTS, line ${odd% }: not a plain NAME=value" \
        "no export, no comment behind a value, no blank outside quotes, no CR at the end"
}

check_configuration() {
    if [ -e "$CONFIG" ] && [ ! -r "$CONFIG" ]; then
        unseen "what $CONFIG says (only root can read it)"
    elif complaint=$("$INIT" test-config 2>&1); then
        good "configuration $CONFIG"
    else
        problem "$complaint" "correct that, then: service $NAME reload"
    fi
}

check_registration() {
    judge starts_at_boot "starts at boot" "does not start at boot" "update-rc.d $NAME defaults; update-rc.d $NAME enable"
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
        0) good "service is running" ;;
        1) problem "the service died" "service $NAME start; the reason is at the end of $LOG_DIR/server.log" ;;
        *) problem "the service is stopped" "service $NAME start" ;;
    esac
    if [ "$code" -eq 0 ] && service_is_outdated; then
        problem "the service runs an older version than is installed" "service $NAME restart"
    fi
}

check_listener() {
    if [ -z "$(listeners)" ]; then
        problem "nothing listens on port $PORT, where the redirect leads" \
            "service $NAME start, and no other port in bind"
    elif [ -z "$(listener_pid)" ]; then
        unseen "who owns port $PORT (only root can see it)"
    elif port_is_ours; then
        good "port $PORT is the service's, pid $pid"
    else
        problem "port $PORT belongs to $(port_owner)" "stop that, then: service $NAME restart"
    fi
}

check_address() {
    if ! is_root; then
        judge alias_is_set "$ADDRESSES is on lo" "$ADDRESSES is not on lo" "service $NAME restart"
        unseen "the redirect (only root can see iptables)"
    elif complaints=$("$INIT" network-status); then
        good "$ADDRESSES is on lo; redirect to port $PORT, once"
    else
        while read -r complaint; do
            problem "$complaint" "service $NAME restart"
        done <<LINES
$complaints
LINES
    fi
}

# Without the address of its own a cloud machine would ask its real metadata service.
check_round_trip() {
    alias_is_set || return 0
    code=0
    proof="IMDSv2 through http://169.254.169.254/: $(round_trip 0 2>&1)" || code=$?
    case $code in
        0) good "$proof" ;;
        2) problem "$proof" "see [credentials] in $CONFIG, and $LOG_DIR/server.log" ;;
        *) problem "$proof" "mend what stands above, or see [metadata-options] and [faults] in $CONFIG" ;;
    esac
}

# Rotation: logrotate passes over a folder in which others may write, and says so to cron alone.
check_log() {
    log=$LOG_DIR/server.log
    if ! is_root; then
        unseen "whether the service writes to $log (only root can see it)"
    elif pid=$(listener_pid) && [ -n "$pid" ] && ! writes_to "$pid" "$log"; then
        problem "the service does not write to $log" "make room or take away what is in its place, then: service $NAME reload"
    fi
    if ! is_roots "$LOG_DIR"; then
        problem "logrotate passes over $LOG_DIR: it $(writers "$LOG_DIR")" "$(remedy "$LOG_DIR")"
    fi
}

writes_to() {
    for file in /proc/"$1"/fd/*; do
        [ "$(readlink "$file")" != "$(readlink -f "$2")" ] || return 0
    done
    return 1
}

check_source() {
    if [ ! -r "$LOG_DIR/server.log" ]; then
        unseen "$LOG_DIR/server.log (only root and the group adm can read it)"
        return
    fi
    last=$(grep -a "Z $NAME: .*new credentials for" "$LOG_DIR/server.log" | tail -n 1)
    case $last in
        *": no new credentials for"*) problem "${last#*: }" "see [credentials] in $CONFIG" ;;
    esac
}

# The names of variables that come before instance metadata in every SDK.
SHADOWS="AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_PROFILE AWS_WEB_IDENTITY_TOKEN_FILE
    AWS_CONTAINER_CREDENTIALS_RELATIVE_URI AWS_CONTAINER_CREDENTIALS_FULL_URI
    AWS_EC2_METADATA_SERVICE_ENDPOINT AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"

check_variables() {
    [ -n "${HOME-}" ] ||
        unseen "the variables and ~/.aws of your shell (service hides them): sh $APP_DIR/install.sh --check"
    [ -z "${SUDO_USER-}" ] || unseen "variables that sudo hides: sh $APP_DIR/install.sh --check without sudo"
    for name in $SHADOWS; do
        eval "value=\${$name-}"
        [ -z "$value" ] || problem "$name is set in this shell, and SDKs follow it" "unset $name"
    done
    case ${AWS_EC2_METADATA_DISABLED-} in
        [Tt][Rr][Uu][Ee]) problem "AWS_EC2_METADATA_DISABLED is true in this shell" "unset AWS_EC2_METADATA_DISABLED" ;;
    esac
    check_proxy
}

check_proxy() {
    [ -n "${http_proxy-}${HTTP_PROXY-}${all_proxy-}${ALL_PROXY-}" ] || return 0
    case ${no_proxy-},${NO_PROXY-} in
        *169.254.* | *"*"*) ;;
        *) problem "a proxy is set in this shell, and NO_PROXY does not name 169.254.169.254" \
            "export NO_PROXY=169.254.169.254 no_proxy=169.254.169.254" ;;
    esac
}

check_shadowing_files() {
    for home in $(homes | sort -u); do
        check_default_profile "$home/.aws/credentials"
        check_default_profile "$home/.aws/config"
        for file in .profile .bashrc .bash_profile .zshrc; do
            check_settings_in "$home/$file"
        done
    done
    for file in /etc/environment /etc/profile /etc/profile.d/*.sh; do
        check_settings_in "$file"
    done
}

homes() {
    echo "${HOME-}"
    getent passwd "${SUDO_USER-}" | cut -d: -f6
}

check_default_profile() {
    ! awk '/^\[/ { here = /^\[ *default *\]/ }
            here && /^ *(aws_access_key_id|credential_process|sso_|role_arn|web_identity_token_file)/ { found = 1 }
            END { exit !found }' "$1" 2>/dev/null ||
        problem "the profile [default] of $1 comes before instance metadata" "move it away, or give the profile a name"
}

check_settings_in() {
    ! grep -qsE "^[^#]*AWS_(ACCESS_KEY_ID|PROFILE|EC2_METADATA_DISABLED)=" "$1" ||
        problem "$1 sets AWS variables that come before instance metadata" "take them out, then log in anew"
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
    need dpkg-deb dpkg
    check_settings
    check_sources
    build "${DEB:=${NAME}_${VERSION}_all.deb}"
    say "$DEB: sudo apt install $(realpath "$DEB")"
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
