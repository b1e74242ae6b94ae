#!/bin/sh
# Install fake-metadata: from then on every AWS SDK on this box finds an instance metadata service at 169.254.169.254.
#
# usage: sudo sh install.sh [OPTIONS]
#   --check      change nothing; say what is not as it should be and what to do about it; exit 0 if all is well
#   --dry-run    print every change, make none
#   --no-start   install, but do not start the service
#   --supervise  run under daemontools or runit (/service or /etc/service) instead of sysvinit or systemd
#   --force      install even on a real EC2 instance, whose own metadata service is hidden then
#   --help       print this
#
# environment:
#   APP_DIR   folder of the program                            /apps/fake-metadata
#   LOG_DIR   folder of server.log                             /mnt/logs/fake-metadata
#   PORT      port of the service, also in the redirect        8000
#   DESTDIR   put the files below this folder only: no user, no network, no service, no root needed
#
# examples:
#   scp -r fake-metadata box: && ssh box sudo sh fake-metadata/install.sh
#   sudo PORT=8001 sh install.sh
#   sh /apps/fake-metadata/install.sh --check
#   sudo sh /apps/fake-metadata/uninstall.sh
#
# Everything is a step with three functions: STEP_right tests whether there is anything to do, STEP_do does it, STEP_undo
# takes it back. So a second install does nothing, an aborted one is finished by the next, --check runs the tests alone,
# and uninstall.sh, which calls this with --uninstall, runs the undoing in reverse.
set -eu

NAME=fake-metadata
ALIAS=169.254.169.254/32
DESTDIR=${DESTDIR-}
STATE_DIR=$DESTDIR/var/lib/$NAME
STATE=$STATE_DIR/installed
ACTION=install
DRY_RUN='' NO_START='' ASKED_SUPERVISE='' FORCE='' PURGE=''
CHANGED='' KEPT='' DENIED=''
STEPS="user log files interfaces network registration service"

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

say() {
    echo "$*"
}

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# Say what is being changed and change it; with --dry-run only say it.
change() {
    CHANGED=yes
    if [ -n "$DRY_RUN" ]; then
        say "would $1"
    else
        say "$1"
        shift
        "$@"
    fi
}

live() {
    [ -z "$DESTDIR" ]
}

is_root() {
    [ "$(id -u)" -eq 0 ]
}

# ---- what was installed, and with which settings: lines of KEY VALUE, kept until all of it is gone

recorded() {
    sed -n "s|^$1 ||p" "$STATE" 2>/dev/null
}

is_recorded() {
    grep -qxF "$1 $2" "$STATE" 2>/dev/null
}

record() {
    is_recorded "$1" "$2" && return
    make_folder "$STATE_DIR"
    echo "$1 $2" >>"$STATE"
}

forget() {
    [ ! -e "$STATE" ] || sed -i "\\|^$1 $2\$|d" "$STATE"
}

# Make a folder and what is missing above it; recorded first, so that uninstall knows which were not there.
make_folder() {
    [ ! -d "$1" ] || return 0
    missing=$(missing_folders "$1")
    [ "$1" != "$STATE_DIR" ] || mkdir -p "$1"
    for folder in $missing; do
        record folder "${folder#"$DESTDIR"}"
    done
    mkdir -p "$1"
}

missing_folders() {
    [ -d "$1" ] || { missing_folders "$(dirname "$1")"; echo "$1"; }
}

# ---- settings: of the environment, else of the last install, else the usual ones

load_settings() {
    APP_DIR=${APP_DIR-$(setting APP_DIR "/apps/$NAME")}
    LOG_DIR=${LOG_DIR-$(setting LOG_DIR "/mnt/logs/$NAME")}
    PORT=${PORT-$(setting PORT 8000)}
    SUPERVISE=$(supervise_folder)
    PYTHON=$(command -v python3 || true)
    APP=$DESTDIR$APP_DIR
    LOGS=$DESTDIR$LOG_DIR
    CONFIG=$DESTDIR/etc/$NAME.conf
    INTERFACES=$DESTDIR/etc/network/interfaces
    SOURCE_DIR=$(cd "$(dirname "$0")" && pwd)
    INIT=$SOURCE_DIR/init.d/$NAME
    REPAIR="sudo sh $SOURCE_DIR/install.sh"
}

supervise_folder() {
    if [ -z "$ASKED_SUPERVISE" ]; then
        setting SUPERVISE ""
    elif [ -d /service ]; then
        echo /service
    else
        echo /etc/service
    fi
}

setting() {
    value=$(recorded "$1" | tail -n 1)
    echo "${value:-$2}"
}

record_setting() {
    eval "value=\$$1"
    is_recorded "$1" "$value" || { forget "$1" ".*"; record "$1" "$value"; }
}

# ---- checks before the first change; each says what is wrong and what to do

check_box() {
    ! live || check_root
    check_settings
    check_sources
    check_python
    check_interfaces
    check_rules_file
    check_log_link
    check_config
    if live; then
        check_commands
        check_ec2
        check_supervisor
        check_port
    fi
}

check_settings() {
    for folder in "$APP_DIR" "$LOG_DIR" "${DESTDIR:-/}"; do
        case $folder in
            *[!A-Za-z0-9._/-]* | *//* | */../* | */..) die "$folder: use letters, digits and . _ - / for folders" ;;
            /*) ;;
            *) die "$folder: give folders as absolute paths" ;;
        esac
    done
    case $PORT in
        "" | *[!0-9]* | 0* | ??????*) die "PORT=$PORT: use a number from 1 to 65535" ;;
    esac
    [ "$PORT" -le 65535 ] || die "PORT=$PORT: use a number from 1 to 65535"
    for name in APP_DIR LOG_DIR; do
        eval "value=\$$name"
        before=$(setting "$name" "$value")
        [ "$before" = "$value" ] || die "it is installed with $name=$before: run uninstall.sh first"
    done
    ! grep -qs "^SUPERVISE " "$STATE" || is_recorded SUPERVISE "$SUPERVISE" ||
        die "it is registered in another way than --supervise: run uninstall.sh first"
}

check_sources() {
    for file in $(sources); do
        [ -f "$SOURCE_DIR/$file" ] || die "$file is missing beside install.sh: copy the whole folder to this box"
    done
    [ "$SOURCE_DIR" != "$APP" ] || is_recorded APP_DIR "$APP_DIR" ||
        die "run me from another folder than $APP, where I put my own copy"
}

check_python() {
    [ -n "$PYTHON" ] || die "python3 is missing: apt-get install python3"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 7))' ||
        die "$("$PYTHON" --version) is too old: install Python 3.7 or later as python3"
}

check_root() {
    is_root || [ -n "$DRY_RUN" ] || die "only root can install: sudo sh $0"
}

check_commands() {
    command -v ip >/dev/null || die "ip is missing: apt-get install iproute2"
    command -v iptables >/dev/null || die "iptables is missing: apt-get install iptables"
    command -v iptables-restore >/dev/null || die "iptables-restore is missing: apt-get install iptables"
    for command in start-stop-daemon setpriv update-rc.d; do
        command -v "$command" >/dev/null || die "$command is missing: this needs Debian, Ubuntu or Devuan"
    done
    ! user_is_missing || command -v useradd >/dev/null || die "useradd is missing: apt-get install passwd"
}

check_ec2() {
    [ -n "$FORCE" ] || ! grep -qs "Amazon EC2" /sys/class/dmi/id/*vendor ||
        die "this is a real EC2 instance, with a metadata service of its own: --force hides that behind the fake one"
}

check_supervisor() {
    [ -n "$SUPERVISE" ] || return 0
    [ -d "$SUPERVISE" ] || die "neither /service nor /etc/service is there: install daemontools or runit first"
    [ -z "$NO_START" ] || die "under a supervisor a service starts once it is registered: leave --no-start out"
}

check_port() {
    ! port_is_ours || return 0
    "$PYTHON" -I -c '
import socket, sys
with socket.socket() as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", int(sys.argv[1])))' "$PORT" 2>/dev/null && return
    die "port $PORT is taken by $(port_owner): stop that, or choose another with PORT=$((PORT + 1)) sh $0"
}

listeners() {
    ss -Hltnp "sport = :$PORT" 2>/dev/null
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

check_interfaces() {
    [ ! -e "$INTERFACES" ] || balanced ||
        die "$INTERFACES: the lines \"$BEGIN ...\" and \"$END\" do not pair: mend them by hand, then run me again"
}

check_rules_file() {
    rules=$DESTDIR/etc/network/iptables.rules
    [ ! -e "$rules" ] || grep -q -e "--comment $NAME " "$rules" ||
        die "$rules is not of this program: rename it (and what restores it), then run me again"
}

check_log_link() {
    [ ! -e "$APP/logs" ] || [ -L "$APP/logs" ] || [ "$APP_DIR/logs" = "$LOG_DIR" ] ||
        die "$APP/logs is not a link: move it away, then run me again"
}

check_config() {
    [ ! -r "$CONFIG" ] || "$PYTHON" -I "$SOURCE_DIR/fake_metadata.py" --config "$CONFIG" --test-config >/dev/null ||
        die "the configuration above is wrong: correct $CONFIG, then run me again"
}

# ---- step: the user

user_right() {
    ! live || ! user_is_missing
}

user_do() {
    change "create the system user $NAME" create_user
}

create_user() {
    record user "$NAME"
    group="--gid $NAME"
    if ! has_group; then
        record group "$NAME"
        group=--user-group
    fi
    # shellcheck disable=SC2086 # two words
    useradd --system $group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin --no-log-init \
        --comment "fake EC2 instance metadata service" "$NAME"
    for file in "$CONFIG" "/etc/default/$NAME"; do
        [ ! -e "$file" ] || chgrp "$NAME" "$file"
    done
}

has_group() {
    getent group "$NAME" >/dev/null
}

user_undo() {
    live || return 0
    ! is_recorded user "$NAME" || user_is_missing || change "delete the system user $NAME" delete_user
    ! is_recorded group "$NAME" || ! has_group || change "delete the group $NAME" groupdel "$NAME"
    if [ -z "$DRY_RUN" ]; then
        forget user "$NAME"
        forget group "$NAME"
    fi
}

# userdel takes the group of the same name along, unless it is not the user's own.
delete_user() {
    is_recorded group "$NAME" || usermod --gid nogroup "$NAME"
    userdel "$NAME"
}

user_is_missing() {
    ! getent passwd "$NAME" >/dev/null
}

# ---- step: the log

log_right() {
    [ -d "$LOGS" ] && { [ "$APP_DIR/logs" = "$LOG_DIR" ] || [ "$(readlink "$APP/logs")" = "$LOG_DIR" ]; }
}

log_do() {
    [ -d "$LOGS" ] || change "make the folder $LOGS" make_folder "$LOGS"
    log_right || change "link $APP/logs to it" link_logs
}

link_logs() {
    make_folder "$APP"
    ln -sfn "$LOG_DIR" "$APP/logs"
}

log_files() {
    ls -d "$LOGS"/server.log "$LOGS"/server.log[.-]* 2>/dev/null || true
}

log_undo() {
    [ ! -L "$APP/logs" ] || change "remove $APP/logs" rm -f "$APP/logs"
    for file in $(log_files); do
        if [ -n "$PURGE" ] || [ ! -s "$file" ]; then
            change "remove $file" rm -rf "$file"
        else
            keep "$file" root:adm
        fi
    done
}

# The user it belongs to is about to go: another could get the number.
keep() {
    KEPT=yes
    say "keeping $1 (uninstall.sh --purge deletes it)"
    [ -n "$DRY_RUN" ] || ! is_root || chown "$2" "$1"
}

# ---- step: the files; one list for installing, checking and uninstalling

sources() {
    echo "fake_metadata.py iptables.rules logrotate.d/$NAME"
    echo "init.d/$NAME init.d/$NAME.service init.d/$NAME.run init.d/$NAME.conf init.d/$NAME.default"
    echo "install.sh uninstall.sh"
}

# Print MODE SOURCE DESTINATION. Below $APP_DIR go copies of all sources: they tell an edited file from an older version.
files() {
    echo "640 init.d/$NAME.conf /etc/$NAME.conf"
    echo "640 init.d/$NAME.default /etc/default/$NAME"
    echo "644 iptables.rules /etc/network/iptables.rules"
    echo "644 logrotate.d/$NAME /etc/logrotate.d/$NAME"
    echo "755 init.d/$NAME /etc/init.d/$NAME"
    ! wants_unit || echo "644 init.d/$NAME.service /etc/systemd/system/$NAME.service"
    ! wants_run || echo "755 init.d/$NAME.run $APP_DIR/service/run"
    for file in $(sources); do
        case $file in
            *.py | *.sh) echo "755 $file $APP_DIR/$file" ;;
            *) echo "644 $file $APP_DIR/$file" ;;
        esac
    done
}

wants_unit() {
    [ "$ACTION" = uninstall ] || ! live || { [ -z "$SUPERVISE" ] && command -v systemctl >/dev/null; }
}

wants_run() {
    [ "$ACTION" = uninstall ] || [ -n "$SUPERVISE" ]
}

# Call a function with MODE SOURCE DESTINATION of each file.
for_each_file() {
    while read -r mode source destination; do
        "$1" "$mode" "$source" "$destination"
    done <<LIST
$(files)
LIST
}

# Print a source with the settings of this box: render FILE PORT PYTHON.
render() {
    listen=127.0.0.1:$2
    [ "$2" != 8000 ] || listen=
    sed -e "s|/apps/$NAME|$APP_DIR|g" -e "s|/mnt/logs/$NAME|$LOG_DIR|g" -e "s|/usr/bin/python3|$3|g" \
        -e "s|LISTEN=\$|LISTEN=$listen|" -e "s|--to-ports 8000|--to-ports $2|" "$1"
}

contents() {
    if [ "$2" = "$APP_DIR/$1" ]; then
        cat "$SOURCE_DIR/$1"
    else
        render "$SOURCE_DIR/$1" "$PORT" "$PYTHON"
    fi
}

# Print a file as the last install put it on this box.
installed_contents() {
    render "$APP/$1" "$(setting PORT "$PORT")" "$(setting PYTHON "$PYTHON")" 2>/dev/null
}

# Print what a file is: missing, right, old, or edited by the admin.
file_state() {
    if [ ! -e "$DESTDIR$2" ]; then
        echo missing
    elif contents "$1" "$2" | cmp -s - "$DESTDIR$2"; then
        echo right
    elif [ "$2" = "$APP_DIR/$1" ] || installed_contents "$1" | cmp -s - "$DESTDIR$2"; then
        echo old
    elif [ ! -e "$APP/$1" ] && ! is_config "$2"; then
        echo old
    else
        echo edited
    fi
}

is_config() {
    case $1 in
        "/etc/$NAME.conf" | "/etc/default/$NAME" | /etc/network/iptables.rules) return 0 ;;
        *) return 1 ;;
    esac
}

files_right() {
    ! for_each_file say_state | grep -q -e "^missing" -e "^old"
}

say_state() {
    echo "$(file_state "$2" "$3") $DESTDIR$3"
}

files_do() {
    for_each_file put_if_needed
}

put_if_needed() {
    case $(file_state "$2" "$3") in
        missing) change "write $DESTDIR$3" put "$@" ;;
        old) change "replace $DESTDIR$3" put "$@" ;;
        edited) say "keeping your edited $DESTDIR$3 (the new one: $APP_DIR/$2)" ;;
    esac
}

put() {
    target=$DESTDIR$3
    make_folder "$(dirname "$target")"
    new=$(dirname "$target")/.$NAME.new
    contents "$2" "$3" >"$new"
    chmod "$1" "$new"
    [ "$1" != 640 ] || ! live || chgrp "$NAME" "$new"
    mv "$new" "$target"
}

files_undo() {
    for_each_file take_away
}

take_away() {
    target=$DESTDIR$3
    rm_if_there "$(dirname "$target")/.$NAME.new"
    if [ -z "$PURGE" ] && is_config "$3" && [ "$(file_state "$2" "$3")" = edited ]; then
        keep "$target" root:root
    else
        rm_if_there "$target"
    fi
}

rm_if_there() {
    if [ -e "$1" ] || [ -L "$1" ]; then
        change "remove $1" rm -f "$1"
    fi
}

# ---- step: /etc/network/interfaces, where there is one; elsewhere the start of the service does the same

BEGIN="# $NAME begin"
END="# $NAME end"
UP="	up /etc/init.d/$NAME network-up || true"
UNENDED="the line above had no end"

balanced() {
    case $(sed -n -e "s/^$BEGIN.*/begin/p" -e "s/^$END.*/end/p" "$INTERFACES" | tr '\n' ' ') in
        "" | "begin end ") return 0 ;;
        *) return 1 ;;
    esac
}

interfaces_right() {
    [ ! -e "$INTERFACES" ] || sed -n "/^$BEGIN/,/^$END/p" "$INTERFACES" | grep -qF "$UP"
}

interfaces_do() {
    change "add the address and the redirect to $INTERFACES" add_block
}

# Over one of an earlier version, if there is one.
add_block() {
    rewrite_interfaces without_block
    rewrite_interfaces with_block
}

interfaces_undo() {
    [ -e "$INTERFACES" ] || return 0
    if ! balanced; then
        say "leaving $INTERFACES: the lines \"$BEGIN ...\" and \"$END\" do not pair; take them out by hand"
    elif grep -q "^$BEGIN" "$INTERFACES"; then
        change "take the block of $NAME out of $INTERFACES" rewrite_interfaces without_block
    fi
}

# Replace the file by what a function makes of it: at once, with owner and mode as they are.
rewrite_interfaces() {
    file=$(readlink -f "$INTERFACES")
    new=$(dirname "$file")/.$NAME.new
    cp -p "$file" "$new"
    "$1" "$file" >"$new"
    mv "$new" "$file"
}

# Print a file with our block below "iface lo inet loopback", or with that line and our block at its end.
with_block() {
    total=$(awk 'END { print NR }' "$1")
    line=$(awk '!continued && /^[ \t]*iface[ \t]+lo[ \t]+inet[ \t]+loopback[ \t\r]*$/ { print NR; exit }
                { continued = /\\$/ }' "$1")
    note="written by install.sh, removed by uninstall.sh"
    head -n "${line:-$total}" "$1"
    if [ "${line:-$total}" -eq "$total" ] && [ -n "$(tail -c 1 "$1")" ]; then
        echo
        note="$note; $UNENDED"
    fi
    echo "$BEGIN: $ALIAS on lo and the rule of /etc/network/iptables.rules; $note"
    [ -n "$line" ] || printf 'auto lo\niface lo inet loopback\n'
    echo "$UP"
    echo "$END"
    [ -z "$line" ] || tail -n "+$((line + 1))" "$1"
}

# Print a file without our block, to the byte as it was before.
without_block() {
    total=$(awk 'END { print NR }' "$1")
    begin=$(awk -v text="$BEGIN" 'index($0, text) == 1 { print NR }' "$1")
    end=$(awk -v text="$END" 'index($0, text) == 1 { print NR }' "$1")
    if [ -z "$begin" ]; then
        cat "$1"
    elif [ "$end" -eq "$total" ] && grep -q "^$BEGIN.*$UNENDED" "$1"; then
        head -n "$((begin - 1))" "$1" | head -c -1
    else
        head -n "$((begin - 1))" "$1"
        tail -n "+$((end + 1))" "$1"
    fi
}

# ---- step: address and redirect, at once

network_right() {
    ! live || sh "$INIT" network-status >/dev/null 2>&1
}

network_do() {
    change "lead 169.254.169.254:80 to 127.0.0.1:$PORT: address on lo, rule in iptables" network_up
}

network_up() {
    alias_is_set || record alias "$ALIAS"
    sh "$INIT" network-up || die "the network cannot be set up: see the message above, then run me again"
}

alias_is_set() {
    [ -n "$(ip -4 addr show dev lo to "$ALIAS" 2>/dev/null)" ]
}

network_undo() {
    live || return 0
    ! rule_is_there || change "remove the redirect" sh "$INIT" remove-rule
    if is_recorded alias "$ALIAS"; then
        ! alias_is_set || change "take $ALIAS off lo" ip addr del "$ALIAS" dev lo
        [ -n "$DRY_RUN" ] || forget alias "$ALIAS"
    fi
}

rule_is_there() {
    for save in iptables-save iptables-nft-save iptables-legacy-save; do
        "$save" 2>/dev/null
    done | grep -q -e "--comment \"*$NAME\"* "
}

# ---- step: registration with what starts services

registration_right() {
    if ! live; then
        return 0
    elif [ -n "$SUPERVISE" ]; then
        [ "$(readlink "$SUPERVISE/$NAME")" = "$APP_DIR/service" ]
    else
        has_rc_links && { ! wants_unit || is_recorded unit enabled; }
    fi
}

has_rc_links() {
    ls /etc/rc?.d/[SK]??"$NAME" >/dev/null 2>&1
}

registration_do() {
    if [ -n "$SUPERVISE" ]; then
        change "link $SUPERVISE/$NAME to $APP_DIR/service" ln -sfn "$APP_DIR/service" "$SUPERVISE/$NAME"
        return
    fi
    change "register with update-rc.d" update-rc.d "$NAME" defaults
    ! wants_unit || change "enable the systemd unit" enable_unit
}

enable_unit() {
    SYSTEMCTL_SKIP_SYSV=1 systemctl --quiet enable "$NAME.service"
    record unit enabled
}

registration_undo() {
    live || return 0
    if command -v systemctl >/dev/null && [ -L "/etc/systemd/system/multi-user.target.wants/$NAME.service" ]; then
        change "disable the systemd unit" env SYSTEMCTL_SKIP_SYSV=1 systemctl --quiet disable "$NAME.service"
    fi
    ! has_rc_links || change "remove /etc/init.d/$NAME and its links" unregister
    [ -n "$DRY_RUN" ] || forget unit enabled
}

# update-rc.d gives the other scripts their old numbers back only if this one is gone.
unregister() {
    rm -f "/etc/init.d/$NAME"
    update-rc.d "$NAME" remove
}

# ---- step: the running service

service_right() {
    ! live || [ -n "$NO_START" ] || { service_runs && ! service_is_outdated; }
}

service_runs() {
    "/etc/init.d/$NAME" status >/dev/null 2>&1
}

# It runs what was there when it started; that is when its pid file or, under systemd, its folder in /run was made.
service_is_outdated() {
    started=/run/$NAME/pid
    [ -e "$started" ] || started=/run/$NAME
    find "$APP/fake_metadata.py" "/etc/init.d/$NAME" "/etc/systemd/system/$NAME.service" -newer "$started" 2>/dev/null |
        grep -q .
}

service_do() {
    if [ -e "/etc/init.d/$NAME" ] && service_runs; then
        change "restart the service" service_action restart
    else
        change "start the service" service_action start
    fi
}

service_action() {
    [ ! -d /run/systemd/system ] || systemctl daemon-reload
    if [ -n "$SUPERVISE" ]; then
        "/etc/init.d/$NAME" "$1" || die "the service does not $1: see $LOG_DIR/server.log"
        return
    fi
    code=0
    invoke-rc.d --disclose-deny "$NAME" "$1" || code=$?
    case $code in
        0) ;;
        101) DENIED=$1 ;;
        *) die "the service does not $1: see above and $LOG_DIR/server.log, then run me again" ;;
    esac
}

service_undo() {
    live || return 0
    for folder in /service /etc/service; do
        [ ! -L "$folder/$NAME" ] || change "end the supervision in $folder" end_supervision "$folder/$NAME"
    done
    if service_runs || has_processes; then
        change "stop the service" stop_service
    fi
    [ ! -d "/run/$NAME" ] || change "remove /run/$NAME" rm -rf "/run/$NAME"
}

end_supervision() {
    rm "$1"
    folder=$APP/service/supervise
    if [ -p "$folder/control" ]; then
        timeout 5 sh -c "printf dx >'$folder/control'" || true
        timeout 10 flock "$folder/lock" true || true
    fi
    rm -rf "$folder"
}

has_processes() {
    ! user_is_missing && start-stop-daemon --stop --test --quiet --user "$NAME" 2>/dev/null
}

stop_service() {
    [ ! -d /run/systemd/system ] || systemctl --quiet stop "$NAME.service" 2>/dev/null || true
    start-stop-daemon --stop --quiet --oknodo --user "$NAME" --retry TERM/5/KILL/5
}

# ---- proof: an IMDSv2 round-trip through the address

# Print what came back, waiting up to PATIENCE seconds for the port. Exit 1: no way through; 2: but no credentials.
round_trip() {
    "$PYTHON" -I -B - "$1" "$APP" <<'PYTHON'
import calendar, http.client, json, sys, time

ROLES = "/latest/meta-data/iam/security-credentials/"


def ask(method, path, headers):
    connection = http.client.HTTPConnection("169.254.169.254", 80, timeout=5)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def token(patience):
    deadline = time.monotonic() + patience
    while True:
        try:
            return ask("PUT", "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"})
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def seconds(text):
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


def rotation(found):
    """Tell when new credentials come, by the program's own rule."""
    sys.path.insert(0, sys.argv[2])
    from fake_metadata import refresh_window, utc
    until = seconds(found["Expiration"])
    return utc(until - refresh_window(until - seconds(found["LastUpdated"])))


def main():
    status, body = token(float(sys.argv[1]))
    if status != 200:
        sys.exit("the token was refused with %d %.60s" % (status, body.split("\n")[0]))
    headers = {"X-aws-ec2-metadata-token": body}
    status, role = ask("GET", ROLES, headers)
    if status != 200:
        print("a token, but no role: GET %s says %d" % (ROLES, status))
        sys.exit(2)
    status, body = ask("GET", ROLES + role.split("\n")[0], headers)
    found = json.loads(body) if status == 200 else {"Code": status}
    if found["Code"] != "Success":
        print("no credentials of %s: %s %s" % (role, found["Code"], found.get("Message", "")))
        sys.exit(2)
    print("credentials of %s: ...%s, until %s, new ones at %s" % (
        role, found["AccessKeyId"][-4:], found["Expiration"], rotation(found)))


try:
    main()
except (OSError, ValueError, http.client.HTTPException) as error:
    sys.exit("no answer: %s" % error)
PYTHON
}

prove() {
    code=0
    proof=$(round_trip 10 2>&1) || code=$?
    say "IMDSv2 through http://169.254.169.254/: $proof"
    [ "$code" -ne 1 ] || die "that is not right: see sh $APP_DIR/install.sh --check"
}

# ---- --check: the tests of all steps, and what else keeps an SDK from its credentials

PROBLEMS=0
UNSEEN=''

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
    check_files
    check_configuration
    check_interfaces_block
    check_registration
    check_service
    check_listener
    check_network
    check_round_trip
    check_source
    check_variables
    check_shadowing_files
    [ "$PROBLEMS" -eq 0 ] || die "problems: $PROBLEMS"
    say "all is well${UNSEEN:+, as far as it could be seen}"
}

check_files() {
    for_each_file check_file
    judge user_right "user $NAME" "there is no user $NAME" "$REPAIR"
    judge log_right "log folder $LOGS" "the log folder $LOGS or the link to it is missing" "$REPAIR"
}

# judge TEST GOOD PROBLEM REMEDY
judge() {
    if "$1"; then
        good "$2"
    else
        problem "$3" "$4"
    fi
}

check_file() {
    if [ -e "$DESTDIR$3" ] && [ ! -r "$DESTDIR$3" ]; then
        unseen "$DESTDIR$3 (only root can read it)"
        return
    fi
    case $(file_state "$2" "$3") in
        missing) problem "$DESTDIR$3 is missing" "$REPAIR" ;;
        old) problem "$DESTDIR$3 is of another version" "$REPAIR" ;;
        edited) good "$DESTDIR$3 (edited)" ;;
    esac
}

check_configuration() {
    if [ -e "$CONFIG" ] && [ ! -r "$CONFIG" ]; then
        unseen "what $CONFIG says (only root can read it)"
    elif complaint=$(as_service "$PYTHON" -I -B "$APP/fake_metadata.py" --config "$CONFIG" --test-config 2>&1); then
        good "configuration $CONFIG"
    else
        problem "$complaint" "correct that, then: service $NAME reload"
    fi
}

# What root can read is not always what the service can read.
as_service() {
    if is_root && ! user_is_missing; then
        setpriv --reuid "$NAME" --regid "$NAME" --clear-groups "$@"
    else
        "$@"
    fi
}

check_interfaces_block() {
    [ ! -r "$INTERFACES" ] ||
        judge interfaces_right "block in $INTERFACES" "there is no block of $NAME in $INTERFACES" "$REPAIR"
}

check_registration() {
    judge starts_at_boot "starts at boot" "does not start at boot" "$REPAIR, or, if disabled: update-rc.d $NAME enable"
}

starts_at_boot() {
    if [ -z "$SUPERVISE" ] && [ -d /run/systemd/system ]; then
        systemctl --quiet is-enabled "$NAME.service" 2>/dev/null
    elif [ -z "$SUPERVISE" ]; then
        ls /etc/rc?.d/S??"$NAME" >/dev/null 2>&1
    else
        registration_right
    fi
}

check_service() {
    code=0
    "/etc/init.d/$NAME" status >/dev/null 2>&1 || code=$?
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

check_network() {
    if ! is_root; then
        judge alias_is_set "$ALIAS is on lo" "$ALIAS is not on lo" "service $NAME restart"
        unseen "the redirect (only root can see iptables)"
    elif network_right; then
        good "$ALIAS is on lo; redirect to port $PORT, once, in $(rule_backend)"
    else
        while read -r complaint; do
            problem "$complaint" "service $NAME restart"
        done <<LINES
$(sh "$INIT" network-status)
LINES
    fi
}

rule_backend() {
    for backend in iptables-nft iptables-legacy; do
        ! "$backend-save" 2>/dev/null | grep -q -e "--comment \"*$NAME\"* " || echo "$backend"
    done
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

check_source() {
    if [ ! -r "$LOGS/server.log" ]; then
        unseen "$LOGS/server.log (only root and the group adm can read it)"
        return
    fi
    last=$(grep -a "Z $NAME: .*new credentials for" "$LOGS/server.log" | tail -n 1)
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

# ---- the two ways

install() {
    check_box
    [ -n "$DRY_RUN" ] || for name in APP_DIR LOG_DIR SUPERVISE; do record_setting "$name"; done
    for step in $STEPS; do
        "${step}_right" || "${step}_do"
        if [ "$step" = files ] && [ -z "$DRY_RUN" ]; then
            record_setting PORT
            record_setting PYTHON
        fi
    done
    [ -n "$DRY_RUN" ] || finish
}

finish() {
    if ! live; then
        say "The files are below $DESTDIR; user, network and service come with an installation on the box itself."
    elif [ -n "$DENIED" ]; then
        say "Installed, but invoke-rc.d may not $DENIED it: policy-rc.d forbids it, or the service is disabled."
        say "Next: service $NAME $DENIED"
    elif [ -n "$NO_START" ]; then
        say "Installed, not started. Next: service $NAME start"
    else
        prove
        say "$NAME runs on port $PORT and answers every AWS client on this box; also after the next boot."
        say "Configuration: /etc/$NAME.conf, then: service $NAME reload. Log: $LOG_DIR/server.log."
        say "Next: curl http://169.254.169.254/latest/meta-data/    In doubt: service $NAME check"
    fi
}

uninstall() {
    ! live || is_root || [ -n "$DRY_RUN" ] || die "only root can uninstall: sudo sh $SOURCE_DIR/uninstall.sh"
    for step in service registration network interfaces files log user; do
        "${step}_undo"
    done
    [ -n "$DRY_RUN" ] || folders_undo
    [ ! -d /run/systemd/system ] || [ -z "$CHANGED" ] || [ -n "$DRY_RUN$DESTDIR" ] || systemctl daemon-reload
    if [ -z "$CHANGED" ]; then
        say "nothing of $NAME is installed"
    elif [ -z "$DRY_RUN" ]; then
        say "$NAME is gone${KEPT:+, except for what is kept}"
    fi
}

# The record goes last, or stays while something is kept that a later --purge has to know.
folders_undo() {
    folders=$(recorded folder | sort -r)
    [ -n "$KEPT" ] || rm -f "$STATE"
    forget SUPERVISE ".*"
    for folder in $folders; do
        if rmdir "$DESTDIR$folder" 2>/dev/null || [ ! -d "$DESTDIR$folder" ]; then
            forget folder "$folder"
        fi
    done
}

usage() {
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
}

parse_options() {
    for option in "$@"; do
        case $option in
            --help) usage; exit 0 ;;
            --uninstall) ACTION=uninstall ;;
            --check) ACTION=check ;;
            --dry-run) DRY_RUN=yes ;;
            --no-start) NO_START=yes ;;
            --supervise) ASKED_SUPERVISE=yes ;;
            --force) FORCE=yes ;;
            --purge) ACTION=uninstall PURGE=yes ;;
            *) echo "${0##*/}: unknown option $option; see --help" >&2; exit 2 ;;
        esac
    done
}

main() {
    umask 022
    export LC_ALL=C
    parse_options "$@"
    load_settings
    "$ACTION"
}

main "$@"
