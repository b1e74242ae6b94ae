#!/bin/sh
# Remove fake-metadata from this box.
#
# usage: sudo sh uninstall.sh [OPTIONS]
#   --purge      delete the configuration, the logs and the user, too
#   --dry-run    change nothing; print what would be changed
#   --help       print this help
#
# Exit status: 0 removed, or was not installed; 1 failed; 2 usage.
set -eu

# This script has dpkg remove the package. In the package it serves as prerm (stops the service) and
# as postrm (addresses, packet rules, registration; at a purge also logs, user and state, which are
# not in the package); DPKG_MAINTSCRIPT_NAME says which. postrm uses no file of the package, because
# they are gone by then.

NAME=fake-metadata
STATE_DIR=/var/lib/$NAME
RUN_DIR=/run/$NAME
MADE=/var/lib/misc/$NAME.made # what exists besides the package, as noted by install.sh
FORMER=$STATE_DIR/installed # what an install.sh before 1.2 has done
UNIT=$NAME.service

# In a package the settings follow here:
# SETTINGS

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# printf, because echo turns backslashes into control characters in dash.
say() {
    printf '%s\n' "$*"
}

die() {
    say "${DPKG_MAINTSCRIPT_PACKAGE:-${0##*/}}: $*" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null
}

under_systemd() {
    [ -d /run/systemd/system ]
}

# Not ischroot, which takes every separate mount namespace for a chroot.
in_chroot() {
    here=$(stat -c %d:%i /)
    [ "$(stat -Lc %d:%i /proc/1/root/ 2>/dev/null || echo "$here")" != "$here" ]
}

# ---- prerm

stop() {
    ! in_chroot || return 0 # the service that runs belongs to the box outside
    end_supervision
    ! under_systemd || systemctl --quiet stop "$UNIT" || true
    has_user || return 0
    pidfile='' # a user made by install.sh runs nothing else; one that existed before may
    is_made user "$NAME" || pidfile="--pidfile $RUN_DIR/pid"
    # shellcheck disable=SC2086 # no word, or two
    start-stop-daemon --stop --quiet --oknodo --user "$NAME" $pidfile --retry TERM/5/KILL/5 || true
}

has_user() {
    getent passwd "$NAME" >/dev/null
}

end_supervision() {
    for folder in /service /etc/service; do
        [ ! -L "$folder/$NAME" ] || rm "$folder/$NAME"
    done
    supervise=/etc/sv/$NAME/supervise
    [ -p "$supervise/control" ] || return 0
    printf dx | timeout 5 dd status=none conv=notrunc of="$supervise/control" || true
    timeout 10 flock "$supervise/lock" true || true
    rm -rf "$supervise"
}

# ---- postrm

remove() {
    in_chroot || network_down
    say_saved_rules
    rm -rf "$RUN_DIR"
    ! has deb-systemd-helper || deb-systemd-helper mask "$UNIT" >/dev/null
    reload_systemd
}

network_down() {
    for tool in iptables ip6tables; do
        for backend in "$tool-nft" "$tool-legacy" "$tool"; do
            ! has "$backend" || remove_rules "$backend" || true
        done
        remove_chains "$tool"
    done
    made alias | while read -r alias; do
        ! has ip || ip addr del "$alias" dev lo 2>/dev/null || true
        forget alias "$alias"
    done
}

# Delete all our rules from a backend, in whatever table and chain.
remove_rules() {
    for table in $(own_rules "$1" | cut -d' ' -f1 | uniq); do
        { echo "*$table"; own_rules "$1" | sed -n "s/^$table -A/-D/p"; echo COMMIT; } |
            "$1-restore" -w --noflush
    done
}

# Print the rules with our comment: TABLE -A CHAIN RULE.
own_rules() {
    "$1-save" 2>/dev/null | sed -n "/^\*/{s/^\*//;h;}
        /^-A .*--comment \"\{0,1\}$NAME\"\{0,1\}\( \|$\)/{G;s/\(.*\)\n\(.*\)/\2 \1/p;}"
}

# Delete the chains that the admin's file of rules has created.
remove_chains() {
    made chain | sed -n "s/^$1 //p" | while read -r table chain; do
        for backend in "$1-nft" "$1-legacy" "$1"; do
            "$backend" -w -t "$table" -X "$chain" 2>/dev/null || true
        done
        forget chain "$1 $table $chain"
    done
}

# Rules that another tool has saved return at the next boot. (nft does not save our comment.)
say_saved_rules() {
    grep -rlsIE -e "comment[ =]+\"?$NAME" -e "daddr 169\.254\.1[67][0-9.]+ .*(redirect|dnat) to" \
        /etc/iptables /etc/nftables.conf /etc/nftables.d /etc/firewalld /etc/ufw /etc/sysconfig |
        while IFS= read -r file; do
            say "$file has packet rules for addresses of $NAME, which return at the next boot:" \
                "remove them from that file (or: netfilter-persistent save)"
        done
}

reload_systemd() {
    under_systemd || return 0
    systemctl daemon-reload || true
    systemctl reset-failed "$UNIT" 2>/dev/null || true
}

purge() {
    update-rc.d "$NAME" remove >/dev/null || true
    if has deb-systemd-helper; then
        deb-systemd-helper purge "$UNIT" >/dev/null
        deb-systemd-helper unmask "$UNIT" >/dev/null
    fi
    reload_systemd
    rm -f "/etc/systemd/system/$UNIT.dpkg-old"
    log_folders | while read -r folder; do
        find -H "$folder" -maxdepth 1 -name "server.log*" -exec rm -rf {} + 2>/dev/null || true
    done
    made folder | sort -r | while read -r folder; do
        rmdir "$folder" 2>/dev/null || true
    done
    ! is_made user "$NAME" || ! has_user || delete_user
    ! is_made group "$NAME" || ! getent group "$NAME" >/dev/null || groupdel "$NAME" || true
    rm -rf "$STATE_DIR" "$MADE"
}

# made KIND: print what was made on this box besides the package.
made() {
    [ ! -e "$MADE" ] || sed -n "s|^$1 ||p" "$MADE"
}

# Print all log folders that have been in use; the package's own, too, in case the record is lost.
log_folders() {
    { made log; echo "${LOG_DIR-}"; } | sort -u | grep /
}

is_made() {
    made "$1" | grep -qxF "$2"
}

forget() {
    [ ! -e "$MADE" ] || sed -i "\\|^$1 $2\$|d" "$MADE" || true # the disk may be full
}

# userdel also deletes the user's primary group if it has the same name: spare one that we did not
# make.
delete_user() {
    is_made group "$NAME" || usermod --gid nogroup "$NAME"
    userdel "$NAME" ||
        say "$NAME: a process of the user $NAME is still running; once it has ended: userdel $NAME"
}

maintain() {
    case "$DPKG_MAINTSCRIPT_NAME $1" in
        "prerm remove" | "prerm deconfigure") stop ;;
        "postrm remove") remove ;;
        "postrm purge") purge ;;
    esac
}

# ---- uninstall.sh

ACTION=remove DRY_RUN=''

usage_error() {
    echo "${0##*/}: $*" >&2
    echo "usage: sudo sh uninstall.sh [OPTIONS]; see --help" >&2
    exit 2
}

parse_options() {
    for option in "$@"; do
        case $option in
            --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"; exit 0 ;;
            --purge) ACTION=purge ;;
            --dry-run) DRY_RUN=yes ;;
            *) usage_error "unknown option $option" ;;
        esac
    done
}

status() {
    dpkg-query --show --showformat '${db:Status-Status}' "$NAME" 2>/dev/null || true
}

give_up() {
    say "$1" >&2
    die "dpkg could not remove $NAME; correct the error above, then: sudo sh $0"
}

uninstall() {
    [ "$(stat -c %u "$FORMER" 2>/dev/null)" != 0 ] || uninstall_former "$@"
    case $ACTION,$(status) in
        *, | *,not-installed | remove,config-files)
            say "$NAME is not installed: nothing to do"
            return ;;
    esac
    if [ -n "$DRY_RUN" ]; then
        say_changes
        return
    fi
    [ "$(id -u)" -eq 0 ] || die "only root can uninstall: sudo sh $0"
    said=$(dpkg --force-remove-reinstreq "--$ACTION" "$NAME" 2>&1 </dev/null) ||
        give_up "$said"
    say_saved_rules
    if [ "$ACTION" = purge ]; then
        say "$NAME is removed, with its configuration, logs and user"
    else
        say "$NAME is removed. Its configuration (/etc/$NAME.conf and others) is kept, and its log:"
        made log | sed "s|.*|  &/server.log|"
        say "To delete them, too: sudo dpkg --purge $NAME"
    fi
}

# What an install.sh before 1.2 has installed, only its own uninstall.sh can remove.
uninstall_former() {
    former=$(sed -n 's/^APP_DIR //p' "$FORMER")/uninstall.sh
    [ -f "$former" ] ||
        die "an upgrade from a version before 1.2 is incomplete; first: sudo sh install.sh"
    exec sh "$former" "$@"
}

say_changes() {
    say "would stop the service, and remove its addresses and packet rules"
    dpkg --listfiles "$NAME" | while read -r path; do
        case $ACTION,$path in remove,/etc/*) continue ;; esac # kept: an admin may have edited it
        if [ -L "$path" ] || [ ! -d "$path" ]; then say "would remove $path"; fi
    done
    [ "$ACTION" = remove ] || made log | sed 's|.*|would remove &/server.log*|'
    [ "$ACTION" = remove ] || ! is_made user "$NAME" || say "would delete the user $NAME"
}

main() {
    umask 022
    export LC_ALL=C
    case ${DPKG_MAINTSCRIPT_NAME-} in
        prerm | postrm)
            maintain "$@"
            return ;;
    esac
    parse_options "$@"
    uninstall "$@"
}

main "$@"
