#!/bin/sh
# Take fake-metadata off this box again: what install.sh put there, by name, in reverse order, and nothing else.
#
#   sudo sh uninstall.sh            keeps the logs and an edited configuration, and says so
#   sudo sh uninstall.sh --purge    deletes them too
#   sh uninstall.sh --dry-run       prints every change, makes none
#
# Also as /apps/fake-metadata/uninstall.sh. Works after half an install, and twice. Every step of the installation has its
# test, its doing and its undoing side by side in install.sh, which this calls. DESTDIR as there.
set -eu

main() {
    case " $* " in
        *" --help "*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit ;;
    esac
    exec sh "$(dirname "$0")/install.sh" --uninstall "$@"
}

main "$@"
