"""The product on real Debian boxes in namespaces (see box.py): installed, used, broken, removed.

Most tests run on a box with sysvinit and on one with systemd. Each gets a fresh box, but those
that leave the service as they found it share one (`shared`). They need root and debootstrap.
"""
import contextlib
import json
import re
import subprocess

import pytest

from box import KINDS, Box, Neighbour, difference, root_fs, why_not
from service import ROOT, check_lines, wait_for

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "")

INITS = ("sysvinit", "systemd")
INSTALL = "sh fake-metadata/install.sh"
UNINSTALL = "sh fake-metadata/uninstall.sh"
PURGE = UNINSTALL + " --purge"
CHECK = "sh /apps/fake-metadata/install.sh --check"
DEB = "/root/fake-metadata.deb"
BUILD = INSTALL + " --deb " + DEB
INIT = "/etc/init.d/fake-metadata "
SERVICE = "service fake-metadata "
CONFIG = "/etc/fake-metadata.conf"
INTERFACES = "/etc/network/interfaces"
LOG_DIR = "/mnt/logs/fake-metadata"
LOG = LOG_DIR + "/server.log"
RULES = "/etc/network/iptables.rules"
OVERLAY = "/run/fake-metadata/set.conf"
STATE = "/run/fake-metadata/private/state"
META_DATA = "http://169.254.169.254/latest/meta-data/"
AS_SERVICE = "setpriv --reuid=fake-metadata --regid=fake-metadata --clear-groups "
AS_NOBODY = "setpriv --reuid=65534 --regid=65534 --clear-groups "
GET = "curl -sS --fail --max-time 15 "
# Neither the command of a credential source nor the child that makes the signing key.
PID = "pgrep -u fake-metadata -f 'fake_metadata.py --config'"
RULE = ("OUTPUT -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -m comment --comment fake-metadata "
        "-j REDIRECT --to-ports 8000")

NEW_TOKEN = (GET + "-X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "
             "http://169.254.169.254/latest/api/token")

# What an SDK does: a session token, the role, its credentials.
ROUND_TRIP = """
token=$({put}) || exit
ask() {{ {get} -H "X-aws-ec2-metadata-token: $token" "{url}iam/security-credentials/$1"; }}
ask "$(ask)"
""".format(put=NEW_TOKEN, get=GET, url=META_DATA)

# Asks through the address until /run/load.stop is there (a minute at most), then prints how that
# went. Every other request is on a connection of its own, and each has a User-Agent of its own to
# be found in the log.
LOAD = r"""
import http.client, json, os, sys, threading, time

answered, failures, times = [], [], []
deadline = time.monotonic() + 60

def ask(name):
    connection, number = None, 0
    while not os.path.exists("/run/load.stop") and time.monotonic() < deadline:
        number += 1
        agent = "load-%s-%d" % (name, number)
        try:
            if connection is None or number % 2:
                connection = http.client.HTTPConnection("169.254.169.254", 80, timeout=5)
            connection.request("GET", "/latest/meta-data/instance-id",
                               headers={"User-Agent": agent})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise OSError("status %d" % answer.status)
            answered.append(agent)
            times.append(time.monotonic())
        except (OSError, http.client.HTTPException) as error:
            failures.append(repr(error))
            connection = None

threads = [threading.Thread(target=ask, args=(name,)) for name in range(int(sys.argv[1]))]
for thread in threads:
    thread.start()
open("/run/load.begun", "w").close()
for thread in threads:
    thread.join()
times.sort()
gaps = [later - earlier for earlier, later in zip(times, times[1:])]
print(json.dumps({"answered": answered, "failures": failures, "longest gap": max(gaps)}))
"""


@pytest.fixture
def boot(tmp_path):
    """Boot boxes with a copy of the product: boot(kind); all gone at the end of the test."""
    with contextlib.ExitStack() as boxes:
        def boot_one(kind):
            box = boxes.enter_context(Box(kind, tmp_path))
            box.copy_product()
            return box
        yield boot_one


@pytest.fixture(params=INITS)
def box(request, boot):
    """A fresh box."""
    return boot(request.param)


@pytest.fixture
def installed(box):
    """A fresh box with the product installed."""
    box.ok(INSTALL)
    return box


@pytest.fixture
def sysvinit(boot):
    """A fresh box for what does not depend on the init system."""
    return boot("sysvinit")


@pytest.fixture
def systemd(boot):
    """A fresh box for what only systemd does."""
    return boot("systemd")


@pytest.fixture
def ready(sysvinit):
    """The same, installed."""
    sysvinit.ok(INSTALL)
    return sysvinit


# The tests of a group run in one process, so that they share one box there, too.
@pytest.fixture(scope="module", params=[
    pytest.param(init, marks=pytest.mark.xdist_group("shared-" + init)) for init in INITS])
def shared_box(request, tmp_path_factory):
    with Box(request.param, tmp_path_factory.mktemp("shared")) as box:
        box.copy_product()
        box.ok(INSTALL)
        yield box


@pytest.fixture
def shared(shared_box):
    """An installed box, its service running, for tests that leave configuration and files as is."""
    shared_box.ok(SERVICE + "start")
    return shared_box


@pytest.fixture(params=sorted(KINDS))
def any_box(request, boot):
    """A fresh box of every kind."""
    return boot(request.param)


def test_a_root_fs_is_built_once():
    """A kind of box has one root file system, kept for the next run."""
    assert root_fs("sysvinit") == root_fs("sysvinit")


def credentials(box):
    """Return the credentials that the box finds as an SDK does."""
    return json.loads(box.ok(ROUND_TRIP))


def serves(box):
    return box.run(ROUND_TRIP).code == 0


def fact(box, path):
    return box.ok(GET + META_DATA + path)


def configure(box, text):
    box.write(CONFIG, text, "640")
    box.ok("chgrp fake-metadata " + CONFIG)


def own_rules(box):
    """Return how many copies of our redirect the two backends have."""
    snapshot = box.snapshot()
    return tuple(sum("fake-metadata" in rule and "REDIRECT" in rule for rule in snapshot[backend])
                 for backend in ("iptables-nft", "iptables-legacy"))


def is_network_right(box):
    return "169.254.169.254/32" in box.ok("ip -4 addr show dev lo") and sum(own_rules(box)) == 1


def without_log(lines):
    """Return a difference without log and state, which requests and starts change."""
    return [line for line in lines if LOG not in line and STATE not in line]


@contextlib.contextmanager
def load(box, threads):
    """Ask through the address for as long as the block lasts; the dict has the results after it."""
    report = {}
    box.write("/root/load.py", LOAD)
    box.ok("rm -f /run/load.*; "
           "python3 /root/load.py %d >/run/load.json 2>&1 </dev/null &" % threads)
    wait_for(lambda: box.run("test -e /run/load.begun").code == 0, what="the load")
    yield report
    box.ok("touch /run/load.stop")
    wait_for(lambda: box.run("test -s /run/load.json").code == 0, what="the end of the load")
    report.update(json.loads(box.read("/run/load.json")))


# ---- installed


def test_install_says_what_runs_where(box):
    """The installer ends with a round-trip, what runs where, and the next command."""
    first, *last = box.ok(INSTALL).splitlines()
    assert re.match(r"fake-metadata \d+\.\d+: installing$", first)
    assert "IMDSv2" in last[0] and "ASIA" not in last[0], last
    assert "8000" in last[1] and CONFIG in last[2] and LOG in last[3], last
    assert "/apps/fake-metadata/README.md" in last[4], last
    assert re.match(r"Next: (curl|service) ", last[5]), last
    assert re.match(r"If .* work: service fake-metadata check$", last[6]), last


def test_credentials_through_the_address(shared):
    """An IMDSv2 round-trip through 169.254.169.254 brings credentials."""
    found = credentials(shared)
    assert found["Code"] == "Success" and found["AccessKeyId"].startswith("ASIA")


def test_imdsv1_through_the_address(shared):
    """A plain GET through 169.254.169.254 is answered."""
    assert re.match(r"i-[0-9a-f]{17}$", fact(shared, "instance-id"))


def test_every_user_is_served(shared):
    """An ordinary user reaches the service."""
    shared.ok(AS_NOBODY + GET + META_DATA)


def test_boto3_needs_no_variable(ready):
    """boto3 finds the credentials of the role with nothing set."""
    script = ("import boto3; found = boto3.Session().get_credentials(); "
              "print(found.method, found.access_key[:4])")
    assert ready.ok("python3 -c '%s'" % script) == "iam-role ASIA\n"


def test_who_runs(shared):
    """The service runs once, as its own user without further groups, in / and with umask 027."""
    pid, = shared.ok(PID).split()
    status = shared.ok("cat /proc/%s/status" % pid)
    group = shared.ok("id -g fake-metadata").strip()
    assert re.search(r"^Umask:\s+0027$", status, re.M)
    assert re.search(r"^Groups:\s*(%s)?\s*$" % group, status, re.M), status
    assert shared.ok("readlink /proc/%s/cwd" % pid) == "/\n"


def test_listens_on_loopback_only(shared):
    """The only socket is 127.0.0.1:8000."""
    assert shared.ok("ss -Hltun").split()[4:5] == ["127.0.0.1:8000"]
    assert len(shared.ok("ss -Hltun").splitlines()) == 1


def is_redirect(rule):
    return "REDIRECT" in rule


def test_address_and_rules(shared):
    """169.254.169.254/32 is on lo with scope host; the redirect, and who may answer, are rules."""
    assert "inet 169.254.169.254/32 scope host lo" in shared.ok("ip -o addr show dev lo")
    guard, redirect = sorted(shared.snapshot()["iptables-nft"], key=is_redirect)
    assert redirect == "-A " + RULE
    assert guard.startswith("-A OUTPUT -s 127.0.0.1/32 ") and guard.endswith(" -j DROP")


def test_owners_and_modes(shared):
    """What root installs is root's, whoever copied it here; only the log is the service's."""
    assert shared.ok("find /apps /mnt/logs /etc /run/fake-metadata* "
                     "-newer /etc/hostname -uid 1000") == ""
    assert shared.ok("find /apps /mnt/logs -perm /022 ! -type l") == ""
    assert shared.ok("stat -c '%U:%G %a' " + LOG) == "fake-metadata:adm 640\n"
    assert shared.ok("stat -c '%U:%G %a' /mnt/logs/fake-metadata") == "root:root 755\n"
    assert shared.ok("readlink -f /apps/fake-metadata/logs") == "/mnt/logs/fake-metadata\n"


def test_service_cannot_write_its_program(shared):
    """Of what was installed the service can write nothing but its log."""
    writable = shared.ok("setpriv --reuid fake-metadata --regid fake-metadata --clear-groups "
                         "find /apps /mnt /etc -writable ! -type l 2>/dev/null; true")
    assert writable.split() == [LOG]


def test_configuration_comes_commented(shared):
    """The installed configuration and environment are all comments, and not the world's to read."""
    for path in (CONFIG, "/etc/default/fake-metadata"):
        assert not [line for line in shared.read(path).splitlines()
                    if not re.match(r"#|\[|$", line)]
        assert shared.ok("stat -c %U:%a " + path) == "root:640\n"


def test_folder_can_be_deleted(installed):
    """Once installed, the copied folder is no longer needed: not to run, check or uninstall."""
    installed.ok("rm -rf fake-metadata && " + SERVICE + "restart && " + SERVICE + "check")
    installed.ok("sh /apps/fake-metadata/uninstall.sh --purge && test ! -e /apps")


def test_second_install_changes_nothing(installed):
    """A second install has nothing to do: every file, rule and process stays as it is."""
    before, pid = installed.snapshot(), installed.ok(PID)
    assert "nothing to do" in installed.ok(INSTALL).splitlines()[0]
    assert without_log(difference(before, installed.snapshot())) == []
    assert installed.ok(PID) == pid


@pytest.mark.parametrize("harm", [
    "ip addr del 169.254.169.254/32 dev lo", "iptables -t nat -F", "rm -rf /mnt/logs",
    "rm -rf /apps/fake-metadata", "rm /etc/init.d/fake-metadata", "rm " + CONFIG,
    ">/apps/fake-metadata/fake_metadata.py", ">/etc/init.d/fake-metadata", ">" + RULES,
    SERVICE + "stop", "rm /etc/logrotate.d/fake-metadata"])
def test_second_install_repairs(installed, harm):
    """Whatever is missing, or there and empty, the next install brings back."""
    before = installed.snapshot()
    installed.ok(harm)
    installed.ok(INSTALL)
    assert [line for line in without_log(difference(before, installed.snapshot()))
            if "/run/fake-metadata/pid" not in line] == []
    assert log_has(installed, "after")


def test_installed_copy_only_checks(ready):
    """The installed install.sh has no package to install, and says where there is one."""
    result = ready.run("sh /apps/fake-metadata/install.sh")
    assert result.code == 1 and "copy the whole folder" in result.err


def test_dpkg_knows_it(installed):
    """What an admin asks dpkg it answers: state, files, and that none was changed."""
    installed.ok("dpkg -l fake-metadata | grep '^ii'")
    files = installed.ok("dpkg -L fake-metadata").split()
    for path in (CONFIG, RULES, "/apps/fake-metadata/fake_metadata.py",
                 "/apps/fake-metadata/logs", "/lib/systemd/system/fake-metadata.service"):
        assert path in files, path
    assert "/mnt" not in files and "/mnt/logs" not in files
    assert installed.ok("dpkg --verify fake-metadata") == ""


def test_settings_are_in_one_place(sysvinit):
    """What was chosen stands in APP_DIR/settings, and in no file below /etc."""
    sysvinit.ok(INSTALL + " && tar -C / -cf /root/usual.tar etc && " + PURGE)
    sysvinit.ok("APP_DIR=/srv/app/imds LOG_DIR=/srv/log/imds PORT=8123 " + INSTALL)
    settings = sysvinit.read("/srv/app/imds/settings").splitlines()
    assert {"PORT=8123", "LOG_DIR=/srv/log/imds", "PYTHON=/usr/bin/python3"} <= set(settings)
    files = sysvinit.ok("dpkg-query -W -f '${Conffiles}' fake-metadata | awk '{print $1}'").split()
    assert len(files) > 5
    sysvinit.ok("mkdir /root/usual && tar -C /root/usual -xf /root/usual.tar && "
                "for f in %s; do cmp $f /root/usual$f || exit 1; done" % " ".join(files))


def test_edit_does_not_keep_a_new_port_away(ready):
    """With every file below /etc edited a new PORT arrives all the same."""
    files = ready.ok("dpkg-query -W -f '${Conffiles}' fake-metadata | awk '{print $1}'").split()
    ready.ok("for f in %s; do echo '# mine' >>$f; done" % " ".join(files))
    ready.ok("PORT=8001 " + INSTALL)
    assert serves(ready) and "127.0.0.1:8001" in ready.ok("ss -Hltn")
    ready.ok("grep -h '^# mine' " + " ".join(files))


@pytest.mark.parametrize("line, expected", [("PORT=8123", 8123), ("PORT='8123'", 8123)])
def test_defaults_win(installed, line, expected):
    """A line in /etc/default wins over the settings of the installation, under every init."""
    installed.ok("echo \"%s\" >>/etc/default/fake-metadata && %s restart" % (line, SERVICE))
    assert serves(installed) and "127.0.0.1:%d" % expected in installed.ok("ss -Hltn")


def test_log_folder_of_the_defaults(installed):
    """A LOG_DIR in /etc/default is made, linked, rotated, and gone after a purge."""
    installed.ok("echo LOG_DIR=/srv/imds/log >>/etc/default/fake-metadata && %srestart" % SERVICE)
    assert serves(installed)
    installed.ok("test -s /apps/fake-metadata/logs/server.log && test -s /srv/imds/log/server.log")
    installed.ok(ROTATE + " && test -e /srv/imds/log/server.log.1")
    installed.ok(PURGE + " && test ! -e /srv/imds && test ! -e /mnt/logs")


def edit(box):
    """Edit configuration, environment and rules as an admin does; return {path: text}."""
    edits = {CONFIG: "[instance]\ninstance-type = m7g.large\n",
             "/etc/default/fake-metadata": "EC2_LOCAL_IPV4=192.0.2.7\n",
             RULES: box.read(RULES).replace("*nat\n", "# mine\n*nat\n")}
    for path, text in edits.items():
        box.ok("cat >" + path, stdin=text)
    return edits


def test_edits_survive_a_second_install(ready):
    """What the admin wrote in the configuration, the environment and the rules file stays."""
    edits = edit(ready)
    ready.ok(INSTALL)
    assert {path: ready.read(path) for path in edits} == edits


def abort(box, tool, call, settings=""):
    """Run the installer and kill it, as by a lost connection, at one call of a tool."""
    box.write("/root/shims/" + tool, """#!/bin/sh
echo x >>/root/calls
[ "$(grep -c x /root/calls)" -lt {1} ] || kill -9 0
PATH={2} exec {0} "$@"
""".format(tool, call, "/usr/sbin:/usr/bin:/sbin:/bin"), "755")
    result = box.run(settings + "PATH=/root/shims:$PATH setsid --wait " + INSTALL)
    box.ok("rm -rf /root/shims/* /root/calls")
    assert result.code != 0, "the installer calls %s less often than %d times" % (tool, call)


@pytest.mark.parametrize("kind, tool, call", [
    ("sysvinit", "dpkg", 1), ("sysvinit", "dpkg-deb", 4), ("sysvinit", "dpkg-split", 1),
    ("sysvinit", "iptables-restore", 1), ("sysvinit", "useradd", 1), ("sysvinit", "update-rc.d", 1),
    ("sysvinit", "invoke-rc.d", 1), ("systemd", "dpkg-deb", 4), ("systemd", "groupadd", 1),
    ("systemd", "deb-systemd-helper", 2), ("systemd", "invoke-rc.d", 1)])
def test_half_an_install_is_finished_or_removed(boot, kind, tool, call):
    """After an install killed anywhere, a second one finishes, and uninstall leaves no trace."""
    box = boot(kind)
    box.ok("mkdir /root/shims")
    before = box.snapshot()
    abort(box, tool, call)
    box.ok(PURGE)
    assert difference(before, box.snapshot()) == []
    abort(box, tool, call)
    box.ok(INSTALL)
    assert serves(box)
    box.ok(CHECK)
    box.ok(PURGE)
    assert difference(before, box.snapshot()) == []


def copy_old(box, version="0.0"):
    """Put a folder with an older version of this program on a box."""
    box.copy_product("old")
    box.ok("sed -i 's/^VERSION = .*/VERSION = \"%s\"/' old/fake_metadata.py"
           " && echo '# old' >>old/init.d/fake-metadata"
           " && echo '# old' >>old/init.d/fake-metadata.conf"
           " && sed -i 's/^Description=.*/Description=old/' old/init.d/fake-metadata.service"
           % version)


def test_upgrade(box):
    """An upgrade replaces the program, keeps the admin's edits, interrupts for a moment only."""
    copy_old(box)
    box.ok("sh old/install.sh")
    configure(box, "[instance]\ninstance-type = m7g.large\n")
    box.ok(SERVICE + "reload")
    pid = box.ok(PID)
    with load(box, threads=1) as report:
        said = box.ok(INSTALL)
    assert re.match(r"fake-metadata \d.*: upgrading from 0\.0$", said.splitlines()[0])
    assert report["longest gap"] < 3, report["failures"]  # half a second, where nobody else works
    assert box.ok(PID) != pid
    assert "0.0" not in box.ok("python3 /apps/fake-metadata/fake_metadata.py --version")
    assert box.run("grep -rqE '^# old|=old$' /etc/init.d/fake-metadata /apps "
                   "/lib/systemd/system/fake-metadata.service").code == 1
    assert fact(box, "instance-type") == "m7g.large"
    assert "your edited " + CONFIG in said
    box.ok("test -e %s.dpkg-dist && %s --purge && ! ls /etc/fake-metadata*" % (CONFIG, UNINSTALL))


def test_upgrade_then_purge_leaves_no_trace(box):
    """What an older copy installed is removed by the newer one."""
    before = box.snapshot()
    copy_old(box)
    box.ok("sh old/install.sh && rm -r old")
    box.ok(INSTALL)
    box.ok(PURGE)
    assert difference(before, box.snapshot()) == []


def test_upgrade_that_would_not_start(box):
    """A configuration that the new version refuses stops the upgrade; the old service runs on."""
    copy_old(box)
    box.ok(r"""sed -i 's/"tags": {/"former": {"*": (str, "")},\n    &/' old/fake_metadata.py""")
    box.ok("sh old/install.sh")
    configure(box, "[former]\nkey = value\n")
    box.ok(SERVICE + "reload && " + BUILD)
    pid = box.ok(PID)
    for command in (INSTALL, "dpkg -i " + DEB):
        result = box.run(command)
        assert result.code != 0 and "[former]" in result.err, result
        assert box.ok(PID) == pid and serves(box)
        box.ok("dpkg -l fake-metadata | grep '^ii  fake-metadata *0.0'")


def test_disabled_stays_disabled(box):
    """A service that the admin disabled stays so over an upgrade."""
    copy_old(box)
    box.ok("sh old/install.sh && update-rc.d fake-metadata disable && " + SERVICE + "stop")
    box.run(INSTALL)
    box.reboot()
    assert box.run(PID).code == 1


# ---- an installation of before the package (1.1)

BEFORE_PACKAGES = "3887b2535df5d729e1268c4cc08bd83b24bd6cff"


def copy_former(box):
    """Put a folder with the last version before the package on a box."""
    archive = subprocess.run(
        ["git", "-C", ROOT, "archive", BEFORE_PACKAGES, "fake_metadata.py", "install.sh",
         "uninstall.sh", "iptables.rules", "init.d", "logrotate.d"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if archive.returncode:
        pytest.skip("needs the history of the project, with " + BEFORE_PACKAGES[:7])
    box.ok("mkdir former && tar -C former -xf -", stdin=archive.stdout)


@pytest.fixture
def former(box):
    """A fresh box with the version before the package installed, and a snapshot from before it."""
    copy_former(box)
    box.ok("touch /srv/mine")
    box.before = box.snapshot()
    box.ok("sh former/install.sh")
    return box


@pytest.mark.parametrize("how", ["install.sh", "dpkg"])
def test_former_installation_is_taken_over(former, how):
    """It makes room: nothing of it is left over, unedited files are new, and all is well."""
    former.ok(BUILD)
    former.ok(INSTALL if how == "install.sh" else "dpkg -i " + DEB)
    assert serves(former) and is_network_right(former)
    former.ok(CHECK)
    assert former.ok("dpkg --verify fake-metadata") == ""
    assert former.ok("find /etc /apps -name '*.dpkg-*'") == ""
    assert former.run("test -e /var/lib/fake-metadata/installed").code == 1
    assert former.ok("find /apps -name init.d -o -name logrotate.d -o -name service") == ""
    assert former.run("ls /etc/systemd/system/fake-metadata.service").code != 0
    former.reboot()
    assert serves(former) and is_network_right(former)
    former.ok(PURGE + "; rm " + DEB)
    assert difference(former.before, former.snapshot()) == []


def test_edits_of_a_former_installation_stay(former):
    """An edited file stays; one that could not work any more stays beside the new one."""
    edits = edit(former)
    former.ok("echo '# mine' >>/etc/init.d/fake-metadata")
    said = former.ok(INSTALL)
    assert "your edited /etc/init.d/fake-metadata is now /etc/init.d/fake-metadata.dpkg-old" in said
    assert {path: former.read(path) for path in edits} == edits
    assert fact(former, "instance-type") == "m7g.large"
    assert fact(former, "public-ipv4") == "192.0.2.7"
    former.ok("grep '^# mine' /etc/init.d/fake-metadata.dpkg-old")
    former.ok(PURGE)
    assert difference(former.before, former.snapshot()) == []


def test_disabled_former_installation_stays_disabled(former):
    """A former installation that was disabled is not enabled by the package."""
    former.ok("update-rc.d fake-metadata disable && " + SERVICE + "stop")
    former.run(INSTALL)
    former.reboot()
    assert former.run(PID).code == 1
    former.ok("update-rc.d fake-metadata enable")
    former.reboot()
    assert serves(former)


def test_former_folders_and_port(former):
    """A former installation with folders and a port of its own keeps them."""
    former.ok("sh former/uninstall.sh --purge && "
              "APP_DIR=/srv/app/imds LOG_DIR=/srv/log/imds PORT=8123 sh former/install.sh")
    former.ok(INSTALL)
    assert serves(former) and "127.0.0.1:8123" in former.ok("ss -Hltn")
    former.ok("test -s /srv/log/imds/server.log && test -f /srv/app/imds/settings")
    assert former.ok("find / -xdev -name '*.dpkg-*' -path '*fake-metadata*'") == ""
    former.ok(PURGE)
    assert difference(former.before, former.snapshot()) == []


def test_kept_configuration_of_a_former_installation(former):
    """What a former installation kept when it was removed is used by the package, and purged."""
    configure(former, "[instance]\ninstance-type = m7g.large\n")
    former.ok("sh former/uninstall.sh && " + INSTALL)
    assert fact(former, "instance-type") == "m7g.large"
    former.ok(PURGE)
    assert difference(former.before, former.snapshot()) == []


def test_takeover_without_room(former):
    """A takeover for which the disk has no room is finished by the next install, or removed."""
    full = "/usr/share/lintian/overrides"
    former.ok("echo '[instance]' >" + CONFIG)
    former.ok("mkdir -p {0} && mount -t tmpfs -o mode=755,size=4k tmpfs {0} && "
              "head -c 4096 /dev/zero >{0}/fill".format(full))
    assert former.run(INSTALL).code == 1
    former.ok("umount %s && rmdir -p %s; %s" % (full, full, INSTALL))
    assert serves(former) and former.read(CONFIG) == "[instance]\n"
    former.ok(CHECK + " && " + PURGE)
    assert difference(former.before, former.snapshot()) == []


def test_former_folder_that_others_use(former):
    """A takeover leaves what else stands in the folder of the program."""
    former.ok("sh former/uninstall.sh --purge && mkdir -p /srv/app/init.d /srv/app/service && "
              "touch /srv/app/init.d/mine /srv/app/service/mine && "
              "APP_DIR=/srv/app sh former/install.sh && " + INSTALL)
    assert serves(former)
    former.ok("test -e /srv/app/init.d/mine && test -e /srv/app/service/mine")


def test_new_uninstall_of_a_former_installation(former):
    """The new uninstall.sh removes a former installation by its own."""
    former.ok(PURGE)
    assert difference(former.before, former.snapshot()) == []


def test_dpkg_package_over_other_folders(former):
    """A package with the usual folders takes over an installation with others, logs and all."""
    former.ok("sh former/uninstall.sh --purge && "
              "APP_DIR=/srv/app/imds LOG_DIR=/srv/log/imds sh former/install.sh")
    former.ok(BUILD + " && dpkg -i " + DEB)
    assert serves(former)
    former.ok("test ! -e /srv/app/imds && test -s " + LOG)
    former.ok(PURGE + "; rm " + DEB)
    assert difference(former.before, former.snapshot()) == []


def test_interrupted_change_of_the_port(installed):
    """A change of PORT that was killed is finished by the next install, which is not told of it."""
    installed.ok("mkdir /root/shims")
    abort(installed, "invoke-rc.d", 1, "PORT=8001 ")
    installed.ok(INSTALL)
    assert serves(installed) and "127.0.0.1:8001" in installed.ok("ss -Hltn")
    installed.ok(CHECK)


# ---- options of the installer


def test_dry_run_changes_nothing(box):
    """--dry-run changes nothing, and names every file that the installation then writes."""
    before = box.snapshot()
    said = box.ok(INSTALL + " --dry-run")
    assert difference(before, box.snapshot()) == []
    box.ok(INSTALL)
    after = difference(before, box.snapshot())
    for line in after:
        path = re.match(r"\+ files: (/(?:etc|apps)/\S+) 100", line)
        if path and "fake-metadata" in path.group(1):
            assert path.group(1) in said, path.group(1)
    for word in ("user fake-metadata", "169.254.169.254", "/mnt/logs/fake-metadata", "start"):
        assert word in said, word


def test_dry_run_of_an_ordinary_user(installed):
    """An ordinary user may ask what an installation would change, beside a running service too."""
    installed.ok("cp -r fake-metadata /tmp/copy && chmod -R a+rX /tmp/copy")
    assert "would" not in installed.ok(AS_NOBODY + "sh /tmp/copy/install.sh --dry-run")
    said = installed.ok(AS_NOBODY + "sh /tmp/copy/uninstall.sh --dry-run")
    assert "/apps/fake-metadata/fake_metadata.py" in said and "/etc" not in said


def test_dry_run_of_a_second_install(installed):
    """Where all is installed --dry-run has nothing to say."""
    assert "would" not in installed.ok(INSTALL + " --dry-run")


def test_no_start(box):
    """--no-start installs a service that does not run until told to, or until the next boot."""
    box.ok(INSTALL + " --no-start")
    assert box.run(PID).code == 1
    box.ok(SERVICE + "start")
    assert serves(box)
    box.ok(SERVICE + "stop")
    box.reboot()
    assert serves(box)


def test_folders_and_port(box):
    """APP_DIR, LOG_DIR and PORT hold for the service, the rule, a second install and removal."""
    box.ok("touch /srv/mine")  # dpkg removes a folder that its package has and that is empty
    before = box.snapshot()
    box.ok("APP_DIR=/srv/app/imds LOG_DIR=/srv/log/imds PORT=8123 " + INSTALL)
    assert "127.0.0.1:8123" in box.ok("ss -Hltn")
    box.ok("test -s /srv/log/imds/server.log && test ! -e /apps && test ! -e /mnt/logs")
    box.ok(INSTALL + " && sh /srv/app/imds/install.sh --check")
    box.ok("logrotate -f /etc/logrotate.d/fake-metadata && test -e /srv/log/imds/server.log.1")
    box.reboot()
    assert serves(box)
    box.ok(PURGE)
    assert difference(before, box.snapshot()) == []


def test_port_can_be_changed(ready):
    """A second install with another PORT moves the service and the rule."""
    ready.ok("PORT=8001 " + INSTALL)
    assert serves(ready)
    assert "127.0.0.1:8001" in ready.ok("ss -Hltn") and "127.0.0.1:8000" not in ready.ok("ss -Hltn")
    assert own_rules(ready) == (1, 0)


# ---- refusals: one line that says what to do, and nothing changed

TAKE_PORT = ("(cd / && exec python3 -m http.server --bind 127.0.0.1 8000 "
             ">/dev/null 2>&1 </dev/null &) && "
             "until ss -Hltn | grep -q :8000; do :; done")
FREE_PORT = "pkill -f '[h]ttp.server' && while ss -Hltn | grep -q :8000; do :; done"
AMAZON = ("unshare --mount sh -c 'mount -t tmpfs tmpfs /sys/class && mkdir -p /sys/class/dmi/id && "
          "echo Amazon EC2 >/sys/class/dmi/id/sys_vendor && exec \"$@\"' - ")
REFUSALS = {
    "not root": ("cp -r fake-metadata /tmp/copy && chmod -R a+rX /tmp/copy",
                 AS_NOBODY + "sh /tmp/copy/install.sh", "rm -rf /tmp/copy", "root"),
    "no python3": ("mv /usr/bin/python3 /root/", INSTALL, "mv /root/python3 /usr/bin/",
                   "apt-get install python3"),
    "old python3": ("mv /usr/bin/python3 /root/ && printf '#!/bin/sh\necho Python 3.6.9\nexit 1\n' "
                    ">/usr/bin/python3 && chmod 755 /usr/bin/python3", INSTALL,
                    "mv /root/python3 /usr/bin/", "3.7"),
    "no ip": ("mv /usr/bin/ip /root/ && rm /usr/sbin/ip", INSTALL,
              "mv /root/ip /usr/bin/ && ln -s /bin/ip /usr/sbin/ip", "apt-get install iproute2"),
    "no iptables": ("mv /usr/sbin/iptables /root/", INSTALL, "mv /root/iptables /usr/sbin/",
                    "apt-get install iptables"),
    "port taken": (TAKE_PORT, INSTALL, FREE_PORT, "8000"),
    "real EC2": ("", AMAZON + INSTALL, "", "--force"),
    "foreign rules": ("mkdir -p /etc/network && echo '*filter' >" + RULES, INSTALL,
                      "rm " + RULES, RULES),
    "no such port": ("", "PORT=http " + INSTALL, "", "PORT"),
    "relative folder": ("", "APP_DIR=apps " + INSTALL, "", "absolute"),
    "file missing": ("mv fake-metadata/iptables.rules /root/", INSTALL,
                     "mv /root/iptables.rules fake-metadata/", "iptables.rules"),
}


@pytest.mark.parametrize("case", sorted(REFUSALS))
def test_refusal(sysvinit, case):
    """What stands in the way is refused with one line that says what to do; nothing is changed."""
    prepare, command, undo, word = REFUSALS[case]
    before = sysvinit.snapshot()
    sysvinit.ok(prepare or "true")
    result = sysvinit.run(command)
    sysvinit.ok(undo or "true")
    assert result.code == 1 and len(result.err.splitlines()) == 1 and word in result.err, result
    assert difference(before, sysvinit.snapshot()) == []


def test_unknown_option_is_a_usage_error(sysvinit):
    """An unknown option is refused with exit code 2."""
    assert sysvinit.run(INSTALL + " --instal").code == 2


def test_force_on_a_real_instance(box):
    """--force installs on a real EC2 instance."""
    box.ok(AMAZON + INSTALL + " --force")
    assert serves(box)


def test_policy_rc_d_is_obeyed(box):
    """Where policy-rc.d forbids starts, as in image builds, it only installs, and says so."""
    box.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", "755")
    assert "service fake-metadata start" in box.ok(INSTALL)
    assert box.run(PID).code == 1


# ---- what the installer asks of a box

FOLDERS = {
    "of a user": ("mkdir /apps && chown 1000 /apps", "/apps belongs to UNKNOWN"),
    "for a group": ("mkdir /apps && chmod 2775 /apps && chgrp adm /apps",
                    "/apps belongs to root:adm"),
    "for everybody": ("mkdir /mnt/logs && chmod 1777 /mnt/logs", "/mnt/logs belongs to root:root"),
    "by a link": ("mkdir -m 777 /var/mine && ln -s var/mine /apps", "/apps belongs to root:root"),
    "with files": ("mkdir -p /apps/fake-metadata && touch /apps/fake-metadata/mine",
                   "do not belong to fake-metadata"),
}


@pytest.mark.parametrize("name", sorted(FOLDERS))
@pytest.mark.parametrize("how", ["install.sh", "dpkg"])
def test_folder_of_somebody_else(sysvinit, name, how):
    """Where others may write, or have files already, the program is not put: they would be root."""
    prepare, words = FOLDERS[name]
    sysvinit.ok(prepare + " && " + BUILD)
    before = sysvinit.snapshot()
    result = sysvinit.run(INSTALL if how == "install.sh" else "dpkg -i " + DEB)
    assert result.code != 0 and re.search(words, result.err), result
    assert difference(before, sysvinit.snapshot()) == []


@pytest.mark.parametrize("path", [
    CONFIG, RULES, "/etc/logrotate.d/fake-metadata", "/usr/lib/fake-metadata",
    "/etc/network/if-up.d/fake-metadata", "/mnt/logs/fake-metadata/server.log"])
def test_file_of_somebody_else(sysvinit, path):
    """A file at one of our places is refused by dpkg -i too, and outlives the purge."""
    sysvinit.ok("mkdir -p $(dirname {0}) && echo mine >{0} && {1}".format(path, BUILD))
    before = sysvinit.snapshot()
    for command in (INSTALL, "dpkg -i " + DEB):
        result = sysvinit.run(command)
        assert result.code != 0 and path + " exists, but does not belong" in result.err, result
    sysvinit.ok(PURGE)
    assert difference(before, sysvinit.snapshot()) == []


PYTHONS = {
    "in a home of root's": ("mkdir -p -m 700 /root/bin && cp -L /usr/bin/python3 /root/bin/ && "
                            "mv /usr/bin/python3 /usr/bin/hidden", "/root/bin", None),
    "elsewhere": ("mv /usr/bin/python3 /usr/bin/hidden && "
                  "ln -s ../../bin/hidden /usr/local/bin/python3",
                  "/usr/local/bin", "/usr/local/bin/python3"),
    "behind one of root's": ("mkdir -p -m 700 /root/bin && cp -L /usr/bin/python3 /root/bin/",
                             "/root/bin", "/usr/bin/python3"),
    "with a blank in its path": ("mkdir '/opt/a b' && cp -L /usr/bin/python3 '/opt/a b/' && "
                                 "rm /usr/bin/python3", "/opt/a b",
                                 None),
}


@pytest.mark.parametrize("name", sorted(PYTHONS))
def test_python_that_the_service_can_run(sysvinit, name):
    """The first Python is taken that the service can run; where there is none it is refused."""
    prepare, folder, expected = PYTHONS[name]
    sysvinit.ok(prepare)
    before = sysvinit.snapshot(HIDDEN_PYTHON)
    result = sysvinit.run("PATH='%s':$PATH %s" % (folder, INSTALL))
    if expected:
        assert result.code == 0, result
        assert "PYTHON=%s\n" % expected in sysvinit.read("/apps/fake-metadata/settings")
        assert serves(sysvinit)
    else:
        assert result.code == 1 and "apt-get install python3" in result.err, result
        assert difference(before, sysvinit.snapshot(HIDDEN_PYTHON)) == []


HIDDEN_PYTHON = "python3.11"


@pytest.mark.parametrize("missing", ["net_admin", "net_raw,-net_admin"])
def test_without_the_right_to_set_addresses(sysvinit, missing):
    """In a container that may not set addresses nothing is begun; one line says why."""
    before = sysvinit.snapshot()
    result = sysvinit.run("setpriv --bounding-set=-%s sh -c '%s'" % (missing, INSTALL))
    assert result.code == 1 and "NET_ADMIN" in result.err, result
    assert len(result.err.splitlines()) == 1
    assert difference(before, sysvinit.snapshot()) == []


@pytest.mark.parametrize("how", [
    "umask 077; ", "export CDPATH=/tmp:/etc; ", "mv fake-metadata 'a b'; cd 'a b' && "])
def test_odd_shell(sysvinit, how):
    """An umask, CDPATH and a blank in the folder's name make no difference."""
    command = "sh install.sh" if "cd" in how else INSTALL
    sysvinit.ok(how + command)
    assert serves(sysvinit)
    sysvinit.ok(AS_NOBODY + SERVICE + "status && " + CHECK)


def test_program_on_a_disk_without_exec(box):
    """APP_DIR may be on a mount without exec: the program is a file that Python reads."""
    box.ok("mkdir /apps && mount -t tmpfs -o noexec,mode=755 tmpfs /apps && " + INSTALL)
    assert serves(box)
    box.ok("%s restart && %s check && sh /apps/fake-metadata/uninstall.sh" % (SERVICE, SERVICE))


def test_environment_of_another_program(installed):
    """Settings of the environment count for an installation only; a purge touches nothing else."""
    installed.ok("mkdir -p /srv/app /srv/log && touch /srv/app/mine /srv/log/server.log")
    for command in (CHECK, "service fake-metadata restart", PURGE):
        installed.ok("APP_DIR=/srv/app LOG_DIR=/srv/log PORT=99 PYTHON=/bin/false " + command)
    assert installed.ok("find /srv -type f | sort") == "/srv/app/mine\n/srv/log/server.log\n"
    installed.ok("test ! -e /apps && test ! -e /mnt/logs")


def test_names_that_a_purge_meets(ready):
    """A purge takes its own logs, whatever else is in their folder and in root's."""
    ready.ok("cd %s && touch 'server.log.2 *' mine /root/mine; mkdir /root/old" % LOG_DIR)
    ready.ok("sh /home/dev/%s --purge" % UNINSTALL[3:], cwd="/root")
    assert ready.ok("ls /mnt/logs/fake-metadata; ls /root") == "mine\nmine\nold\n"


# ---- a package for other boxes

def test_apt_install(box):
    """The package that an ordinary user builds is installed by apt, and does all the same."""
    box.ok("cp -r fake-metadata /tmp/copy && chmod -R a+rX /tmp/copy && cd /tmp && "
           "%s sh /tmp/copy/install.sh --deb /tmp/fake-metadata.deb" % AS_NOBODY)
    before = box.snapshot()
    box.ok("apt-get install -y /tmp/fake-metadata.deb </dev/null", timeout=120)
    assert serves(box) and is_network_right(box)
    box.ok(SERVICE + "check && " + SERVICE + "restart")
    box.reboot()
    assert serves(box)
    box.ok("apt-get remove -y fake-metadata </dev/null")
    assert box.run(PID).code == 1 and not sum(own_rules(box))
    box.ok("test -s %s && test -e %s && test ! -e /apps" % (LOG, CONFIG))
    assert "fake-metadata" not in box.ok(SERVICE + "start; ls /run")
    box.reboot()
    box.ok("apt-get purge -y fake-metadata </dev/null")
    assert [line for line in difference(before, box.snapshot())
            if not re.search("/var/(cache|lib)/apt| /tmp/", line)] == []


def test_who_asks(ready):
    """The report tells users, roles and versions apart, to root and to members of adm."""
    box = ready
    box.write(CONFIG, "[role Deployment]\nusers = daemon\n[instance web]\nfrom = 127.0.0.2\n")
    said = box.ok(SERVICE + "reload && " + SERVICE + "check && " + SERVICE + "show")
    assert "ok        role Deployment: for users daemon" in said
    assert "  instance web: for clients from 127.0.0.2/32" in said
    users = {"daemon": "Deployment", "nobody": "BaseIAMRole"}
    as_user = "setpriv --reuid %s --regid nogroup --clear-groups "
    boto = ("python3 -c 'import boto3; print(boto3.Session().get_credentials().access_key)' "
            ">/tmp/%s & ")
    box.ok("HOME=/nonexistent; " + "".join(
        (as_user + boto) % (user, user) for user in users) + "wait")  # both at once
    for user, role in users.items():
        ask = as_user % user + GET + META_DATA + "iam/security-credentials/"
        assert box.ok(ask) == role
        assert json.loads(box.ok(ask + role))["AccessKeyId"] == box.read("/tmp/" + user).strip()

    box.ok(ROTATE + " && " + ROTATE)  # the one before is compressed now
    table, document = [box.ok(SERVICE + verb) for verb in ("who", "who --json")]

    assert re.search("^v1 +1 .* user daemon +curl", table, re.M)
    assert re.search("^v2 +1 .* user nobody +[Bb]oto", table, re.M)
    assert table.endswith("would break with http-tokens = required\n")
    assert {one["user"] for one in json.loads(document)["clients"]} >= {"daemon", "nobody"}
    assert box.run(as_user % "nobody" + SERVICE + "who").code == 4
    as_member = "setpriv --reuid nobody --regid adm --clear-groups "
    assert box.ok(as_member + SERVICE + "who") == table
    assert box.run(SERVICE + "who --all").code == 2
    box.ok("rm %s*" % LOG)
    assert "the log is empty" in box.ok(SERVICE + "who")


def test_session_tokens_of_a_box(installed):
    """A session token survives a restart and ends with the boot; nobody else can read its key."""
    token = installed.ok("curl -sfX PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 600' "
                         "http://169.254.169.254/latest/api/token")
    ask = ("curl -so /dev/null -w '%%{http_code}' -H 'X-aws-ec2-metadata-token: %s' "
           "http://169.254.169.254/latest/" % token)
    assert installed.ok(ask) == "200"

    installed.ok(SERVICE + "restart")
    assert installed.ok(ask) == "200"
    path = "/run/fake-metadata/private/token-key"
    assert installed.ok("stat -c '%%a %%U' %s" % path) == "600 fake-metadata\n"
    assert installed.run("setpriv --reuid 1000 --clear-groups cat " + path).code != 0

    installed.reboot()
    wait_for(lambda: serves(installed), what="the service")
    assert installed.ok(ask) == "401"


IMPOSTOR = r"""
import http.server


class Impostor(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        self.send_response(%s)
        self.send_header("Location", "/endless")
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"\033[31m\007" * 8192)
        except OSError:
            pass

    do_GET = do_PUT


http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Impostor).serve_forever()
"""


@pytest.mark.parametrize("status", ["200", "302", '500, "\\033[31m\\\\033[32m" + "x" * 9000'],
                         ids=["endless", "redirect", "odd words"])
def test_impostor_at_the_port(box, status):
    """What an impostor answers is shown without control characters, in part, and soon."""
    box.ok(INSTALL)
    box.ok(SERVICE + "stop")
    box.write("/tmp/impostor.py", IMPOSTOR % status)
    box.ok("(setsid python3 /tmp/impostor.py >/dev/null 2>&1 &) ; "
           "until ss -Hltn | grep -q 127.0.0.1:8000; do sleep 0.1; done")

    said = box.run(INSTALL + " --check", timeout=60).out

    assert "PROBLEM" in said and len(said) < 10000
    assert not re.search(r"[^\n -~]", said)


def test_package_in_a_chroot_spares_the_box(box):
    """A package that is purged in a chroot does nothing to the service of the box around it."""
    box.ok(INSTALL)
    box.ok("cd / && mkdir -p image/var image/proc image/dev image/run image/tmp image/mnt && "
           "cp -a /bin /sbin /lib /lib64 /etc /usr /apps /image/ && "
           "cp -a /var/lib /var/log /image/var/ && "
           "mount --bind /proc /image/proc && mount --bind /dev /image/dev")
    pid = box.ok(PID)
    box.ok("chroot /image dpkg -P fake-metadata && test ! -e /image/apps && "
           "umount /image/proc /image/dev")
    assert box.ok(PID) == pid and serves(box) and is_network_right(box)


def test_images_that_leave_documents_out(box):
    """Where dpkg is told to leave documents out nothing is missing."""
    box.ok("echo 'path-exclude=/usr/share/*' >/etc/dpkg/dpkg.cfg.d/slim && %s" % INSTALL)
    box.ok(CHECK)
    assert "nothing to do" in box.ok(INSTALL)


def test_dependencies(box):
    """The package for others says what it needs; that for this box only what is a package here."""
    box.ok(BUILD)
    said = box.ok("dpkg-deb --field %s Pre-Depends" % DEB)
    assert said == "python3 (>= 3.7), iproute2, iptables\n"
    box.ok("ln -s /usr/bin/python3 /usr/local/bin/ && mv /usr/bin/python3.11 /usr/local/bin/ && "
           "ln -sf python3.11 /usr/local/bin/python3 && rm /usr/bin/python3")
    box.ok(INSTALL)
    assert box.ok("dpkg-query -W -f '${Pre-Depends}' fake-metadata") == "iproute2, iptables"
    assert serves(box)


@pytest.mark.parametrize("how", ["chroot /image dpkg -i /root/fake-metadata.deb",
                                 "dpkg --root=/image -i /image/root/fake-metadata.deb"])
@pytest.mark.parametrize("kind", INITS)
def test_image_build(boot, kind, how):
    """In an image that is being built it is only installed, and starts when that boots first."""
    box = boot(kind)
    box.ok(BUILD)
    said = box.build_image(how)
    assert "starts at the next boot" in said
    box.boot()
    assert serves(box) and is_network_right(box)
    box.ok(SERVICE + "check")


def test_package_where_starts_are_denied(box):
    """With policy-rc.d in the way dpkg -i exits 0 and says when it starts; so it does."""
    box.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", "755")
    assert "starts at the next boot" in box.ok(BUILD + " && dpkg -i " + DEB)
    assert box.run(PID).code == 1 and "169.254" not in box.ok("ip addr")
    box.reboot()
    assert serves(box)


def test_fault_in_the_configuration_leaves_no_half_package(box):
    """What keeps the service from starting does not leave dpkg with a package half configured."""
    box.ok(BUILD + " && dpkg -i " + DEB)
    box.ok("echo PORT=99999 >>/etc/default/fake-metadata")
    said = box.ok("dpkg -i " + DEB)
    assert "does not start" in said and serves(box) is False
    box.ok("dpkg -l fake-metadata | grep '^ii'")


# ---- /etc/network/interfaces

STANDARD = (b"source /etc/network/interfaces.d/*\n\nauto lo\niface lo inet loopback\n\n"
            b"allow-hotplug eth0\niface eth0 inet dhcp\n")
FILES = {
    "standard": STANDARD,
    "empty": b"",
    "without lo": b"# interfaces(5) file\nsource /etc/network/interfaces.d/*\n",
    "lo commented": b"#auto lo\n#iface lo inet loopback\n",
    "CRLF": STANDARD.replace(b"\n", b"\r\n"),
    "tabs": b"auto\tlo\niface\tlo\tinet\tloopback\n\tmtu 65536\n\niface eth0 inet manual\n",
    "no final newline": b"auto lo\niface lo inet loopback",
    "no final newline elsewhere": b"auto lo\niface lo inet loopback\n\niface eth0 inet manual",
    "without lo nor final newline": b"# nothing",
    "options of its own": (b"auto lo\niface lo inet loopback\n    up true\n    down true\n\n"
                           b"iface lo inet6 loopback\n"),
    "twice": b"auto lo\niface lo inet loopback\niface lo inet loopback\n    up true\n",
    "continued": (b"auto \\\n  lo\niface lo inet loopback\n"
                  b"    up echo \\\n  iface lo inet loopback\n"),
    "only newlines": b"\n\n\n",
}


@pytest.mark.parametrize("name", ["standard", "CRLF", "empty", "without lo"])
def test_interfaces_is_not_touched(sysvinit, name):
    """Whatever interfaces has, it stays as it is, and the box serves, after a reboot too."""
    sysvinit.write(INTERFACES, FILES[name], "640")
    look = "stat -c '%%i %%Z %%U %%G %%a' %s && md5sum %s" % (INTERFACES, INTERFACES)
    before = sysvinit.ok(look)
    sysvinit.ok(INSTALL)
    assert sysvinit.ok(look) == before
    sysvinit.reboot()
    assert serves(sysvinit) and is_network_right(sysvinit)


@pytest.mark.parametrize("name", sorted(FILES))
def test_lines_of_before_leave_interfaces(sysvinit, name):
    """What a former installation wrote there is taken out: bytes, owner, mode are as before."""
    copy_former(sysvinit)
    sysvinit.write(INTERFACES, FILES[name], "640")
    sysvinit.ok("chgrp adm " + INTERFACES)
    before = sysvinit.snapshot()
    sysvinit.ok("sh former/install.sh && grep -q begin " + INTERFACES)
    sysvinit.ok(INSTALL)
    assert sysvinit.read(INTERFACES) == FILES[name].decode()
    sysvinit.ok(PURGE)
    assert difference(before, sysvinit.snapshot()) == []


@pytest.mark.parametrize("name", ["standard", "without lo"])
def test_ifupdown_sets_up_the_network_itself(sysvinit, name):
    """With the service disabled, ifupdown alone brings the address and the rule at boot."""
    sysvinit.write(INTERFACES, FILES[name])
    sysvinit.ok(INSTALL + " && update-rc.d fake-metadata disable")
    sysvinit.reboot()
    assert sysvinit.run(PID).code == 1 and is_network_right(sysvinit)


def test_interfaces_missing(sysvinit):
    """A box with ifupdown but no interfaces file is served, and gets none."""
    sysvinit.ok("rm " + INTERFACES)
    before = sysvinit.snapshot()
    sysvinit.ok(INSTALL)
    assert serves(sysvinit)
    sysvinit.ok(PURGE)
    assert difference(before, sysvinit.snapshot()) == []


def test_interfaces_that_is_a_link(sysvinit):
    """A link stays a link, and the file it leads to loses the lines of a former installation."""
    copy_former(sysvinit)
    sysvinit.ok("mv {0} /etc/my-interfaces && ln -s ../my-interfaces {0}".format(INTERFACES))
    before = sysvinit.snapshot()
    sysvinit.ok("sh former/install.sh && %s && test -L %s" % (INSTALL, INTERFACES))
    sysvinit.ok(PURGE)
    assert difference(before, sysvinit.snapshot()) == []


def test_hand_edits_around_former_lines_stay(sysvinit):
    """Lines that the admin added around those of a former installation stay."""
    copy_former(sysvinit)
    sysvinit.ok("sh former/install.sh")
    text = sysvinit.read(INTERFACES)
    sysvinit.write(INTERFACES, "# above\n" + text + "\r\niface eth7 inet manual\n\t# below")
    sysvinit.ok(INSTALL)
    original = sysvinit.read(INTERFACES)
    assert (original.startswith("# above\n")
            and original.endswith("\r\niface eth7 inet manual\n\t# below"))
    assert "fake-metadata" not in original


def test_former_lines_that_do_not_pair(sysvinit):
    """A block without its last line is left to the admin, who is told."""
    copy_former(sysvinit)
    sysvinit.ok("sh former/install.sh && sed -i '/fake-metadata end/d' " + INTERFACES)
    text = sysvinit.read(INTERFACES)
    assert "remove the lines of fake-metadata from " + INTERFACES in sysvinit.ok(INSTALL)
    assert sysvinit.read(INTERFACES) == text and serves(sysvinit)


def test_lo_down_and_up(installed):
    """ifdown and ifup of lo bring the address back, and no second rule."""
    installed.ok("ifdown --force lo; ifup --force lo")
    assert serves(installed) and is_network_right(installed)


# ---- the service


def test_status(shared):
    """status is 0 while it runs and 3 once it is stopped, for an ordinary user too."""
    assert shared.run(SERVICE + "status").code == 0
    assert shared.run(AS_NOBODY + SERVICE + "status").code == 0
    shared.ok(SERVICE + "stop")
    assert shared.run(SERVICE + "status").code == 3
    assert shared.run(AS_NOBODY + SERVICE + "status").code == 3


def test_start_twice(shared):
    """start of a running service exits 0 and leaves the one process that is there."""
    pid = shared.ok(PID)
    shared.ok(SERVICE + "start")
    assert shared.ok(PID) == pid


def test_stop_twice(shared):
    """stop of a stopped service exits 0."""
    shared.ok(SERVICE + "stop && " + SERVICE + "stop")


def test_start_returns_when_it_answers(shared):
    """Whoever asks right after start, restart or reload is answered."""
    shared.ok(SERVICE + "stop")
    for action in ("start", "restart", "reload", "restart", "restart"):
        shared.ok(SERVICE + action + " && " + GET + META_DATA)


def test_stop_waits(shared):
    """When stop returns the process, the socket and the pid file are gone."""
    shared.ok(SERVICE + "stop")
    assert shared.run(PID).code == 1 and shared.ok("ss -Hltn") == ""
    assert shared.run("ls /run/fake-metadata/pid").code != 0


def test_restart(shared):
    """restart starts a new process, and starts a stopped one."""
    pid = shared.ok(PID)
    shared.ok(SERVICE + "restart")
    assert shared.ok(PID) != pid
    shared.ok(SERVICE + "stop && " + SERVICE + "restart")
    assert serves(shared)


@pytest.mark.parametrize("action", ["reload", "force-reload"])
def test_reload_keeps_the_process(shared, action):
    """reload and force-reload keep the process."""
    pid = shared.ok(PID)
    shared.ok(SERVICE + action)
    assert shared.ok(PID) == pid


def test_try_restart(shared):
    """try-restart restarts what runs and leaves alone what does not."""
    pid = shared.ok(PID)
    shared.ok(SERVICE + "try-restart")
    assert shared.ok(PID) != pid
    shared.ok(SERVICE + "stop && " + SERVICE + "try-restart")
    assert shared.run(PID).code == 1


def test_reload_when_stopped(shared):
    """reload of a stopped service fails: with 7, but systemctl has only its 1."""
    shared.ok(SERVICE + "stop")
    assert shared.run(SERVICE + "reload").code == (7 if shared.kind == "sysvinit" else 1)


def test_unknown_action(shared):
    """An unknown action exits 3, none at all 2."""
    assert shared.run(SERVICE + "dance").code == 3
    assert shared.run("/etc/init.d/fake-metadata").code == 2


@pytest.mark.parametrize("action", ["start", "stop", "restart", "reload", "force-reload"])
def test_only_root(shared, action):
    """Any action but status exits 4 for an ordinary user, and does nothing."""
    pid = shared.ok(PID)
    assert shared.run(AS_NOBODY + SERVICE + action).code == 4
    assert shared.ok(PID) == pid


def test_lsb_header(shared):
    """The init script has the header that update-rc.d and insserv want."""
    header = shared.ok("sed -n '/BEGIN INIT INFO/,/END INIT INFO/p' /etc/init.d/fake-metadata")
    for line in (r"Provides:\s+fake-metadata", r"Required-Start:.*\$network", r"Required-Stop:",
                 r"Default-Start:\s+2 3 4 5", r"Default-Stop:\s+0 1 6", r"Short-Description:"):
        assert re.search(line, header), line


def test_starts_at_boot(shared):
    """The links for the runlevels are there, and under systemd the unit is enabled."""
    assert shared.ok("ls /etc/rc2.d/S*fake-metadata /etc/rc6.d/K*fake-metadata")
    if shared.kind == "systemd":
        assert shared.ok("systemctl is-enabled fake-metadata") == "enabled\n"


def test_removed_package_is_no_error(installed):
    """The init script of a removed package exits 0 without a word; its status is 3."""
    installed.ok("dpkg --remove fake-metadata")
    assert installed.run("sh /etc/init.d/fake-metadata start") == (0, "", "")
    assert installed.run("sh /etc/init.d/fake-metadata status").code == 3
    assert installed.run("sh /etc/init.d/fake-metadata check").code == 1
    assert installed.run("sh /etc/init.d/fake-metadata set tags.Name x").code == 5


@pytest.mark.parametrize("gone", ["fake_metadata.py", "settings"])
def test_program_gone(ready, gone):
    """With the program file gone check says so, start exits 5, and stop still stops the service."""
    ready.ok("rm /apps/fake-metadata/" + gone)
    result = ready.run(SERVICE + "check")
    assert result.code == 1 and "/apps/fake-metadata/%s is missing" % gone in result.out
    assert ready.run(SERVICE + "start").code == 5
    ready.ok(SERVICE + "stop")
    assert ready.run(PID).code == 1


@pytest.mark.parametrize("action", ["start", "restart", "reload"])
def test_bad_configuration(installed, action):
    """With a bad configuration nothing is started or stopped; the message names section and key."""
    if action == "start":
        installed.ok(SERVICE + "stop")
    before = installed.run(PID)
    configure(installed, "[instance]\nbogus = 1\n")
    result = installed.run(SERVICE + action)
    said = result.err + installed.run("journalctl --no-pager -u fake-metadata").out
    assert result.code == 1 and re.search(r"\[instance\] bogus", said), (result, said)
    # systemctl restart stops before anything of ours is asked.
    if action != "restart" or installed.kind == "sysvinit":
        assert installed.run(PID) == before
    configure(installed, "")
    installed.ok(SERVICE + "restart")
    assert serves(installed)


def test_reload_reads_the_configuration(installed):
    """What is written in the configuration is served after reload."""
    configure(installed, "[instance]\ninstance-type = m7g.large\n")
    installed.ok(SERVICE + "reload")
    assert fact(installed, "instance-type") == "m7g.large"


def test_environment_file(installed):
    """What is written in /etc/default is served after restart; without the file it starts, too."""
    installed.ok("echo 'EC2_LOCAL_HOSTNAME=my.example' >/etc/default/fake-metadata && "
                 + SERVICE + "restart")
    assert fact(installed, "public-hostname") == "my.example"
    installed.ok("rm /etc/default/fake-metadata && " + SERVICE + "restart")
    assert serves(installed)


def test_port_taken(installed):
    """start on a taken port says why, fails at once, leaves nothing, and works once it is free."""
    installed.ok(SERVICE + "stop && " + TAKE_PORT)
    result = installed.run(SERVICE + "start", timeout=10)
    said = result.out + result.err + installed.run("journalctl --no-pager -u fake-metadata").out
    assert result.code == 1 and "in use" in said, (result, said)
    assert installed.run("ls /run/fake-metadata/pid").code != 0
    installed.ok(FREE_PORT)
    installed.ok(SERVICE + "start")
    assert serves(installed)


@pytest.mark.parametrize("action", ["start", "restart"])
def test_two_at_once(installed, action):
    """Of two starts or restarts at once, boot and an admin, one process is left, and it serves."""
    for _ in range(3):
        installed.ok(INIT + "stop")
        installed.ok("for i in 1 2 3; do %s %s >/dev/null 2>&1 </dev/null & done; wait"
                     % (INIT, action))
        assert len(installed.ok(PID).split()) == 1 and serves(installed)
        installed.ok(INIT + "status")


@pytest.mark.parametrize("number", ["HUP", "USR1"])
def test_signals_during_a_start(installed, number):
    """HUP and USR1 in the first moments of a start do no harm."""
    box = installed
    box.write("/root/storm", "while :; do pkill -%s -u fake-metadata -x python3; done" % number)
    box.ok("timeout 60 sh /root/storm >/dev/null 2>&1 </dev/null & echo $! >/root/storm.pid")
    for _ in range(5):
        box.ok(SERVICE + "stop && " + SERVICE + "start")
        assert len(box.ok(PID).split()) == 1
    box.ok("kill $(cat /root/storm.pid)")
    assert serves(box)


def test_network_rule_once_whoever_asks(ready):
    """Asked by many at once, as at boot by ifupdown and the service, the rule is there once."""
    for _ in range(5):
        ready.ok("iptables -t nat -F; for i in 1 2 3 4; do %s network-up & done; wait" % INIT)
        assert own_rules(ready) == (1, 0)


def test_stopped_process_is_restarted(systemd):
    """A process that does nothing any more is ended by systemd's watchdog, and started anew."""
    systemd.ok(INSTALL + " && mkdir -p /etc/systemd/system/fake-metadata.service.d && "
               "printf '[Service]\\nWatchdogSec=3\\nTimeoutAbortSec=2\\n' "
               ">/etc/systemd/system/fake-metadata.service.d/fast.conf && "
               "systemctl daemon-reload && systemctl restart fake-metadata")
    pid = systemd.ok(PID)
    systemd.ok("sleep 4 && kill -STOP " + pid)  # it has lived longer than the watchdog bears
    assert systemd.ok(PID) == pid
    wait_for(lambda: serves(systemd), what="an answer")
    assert systemd.ok(PID) != pid


HOPELESS = {
    "script that nobody may run": "chmod -x /etc/init.d/fake-metadata",
    "no such Python": "echo PYTHON=/usr/bin/python9 >>/etc/default/fake-metadata",
    "bad configuration": "echo nonsense >" + CONFIG,
    "program gone": "rm /apps/fake-metadata/fake_metadata.py",
    "bad argument": "echo PORT=many >>/etc/default/fake-metadata",
}


@pytest.mark.parametrize("name", sorted(HOPELESS))
def test_restarts_that_cannot_help_end(systemd, name):
    """What cannot start as it is installed or configured is not started again and again."""
    systemd.ok(INSTALL + " && " + HOPELESS[name])
    assert systemd.run("systemctl restart fake-metadata").code != 0
    assert systemd.run("sleep 2; systemctl is-failed fake-metadata").out == "failed\n"
    assert systemd.ok("systemctl show -p NRestarts fake-metadata") == "NRestarts=0\n"


def test_address_that_comes_later(systemd):
    """Where the address of bind is not there yet it is tried again until it is."""
    systemd.ok(INSTALL)
    configure(systemd, "[server]\nbind = 192.0.2.9:8000\n")
    assert systemd.run("systemctl restart fake-metadata").code != 0
    systemd.ok("ip addr add 192.0.2.9/32 dev lo")
    wait_for(lambda: systemd.run(GET + "http://192.0.2.9:8000/latest/meta-data/").code == 0,
             what="an answer")


def test_log_disk_that_does_not_come(systemd):
    """A nofail mount for the log that fails does not keep the service down."""
    systemd.ok(INSTALL + " && echo '/dev/sdz1 /mnt ext4 nofail,x-systemd.device-timeout=1s 0 2' "
               ">>/etc/fstab")
    systemd.reboot()
    assert serves(systemd)


def test_order_at_boot(systemd):
    """It starts before cloud-init asks, and before the box is up; systemd finds no fault in it."""
    systemd.ok(INSTALL)
    assert systemd.run("systemd-analyze verify fake-metadata.service") == (0, "", "")
    shown = systemd.ok("systemctl show -p Before,After,Requires fake-metadata")
    before, after, requires = (re.search("^%s=(.*)$" % name, shown, re.M).group(1).split()
                               for name in ("Before", "After", "Requires"))
    assert "cloud-init.service" in before and "mnt.mount" in after
    assert "sysinit.target" not in after and "mnt.mount" not in requires


def test_firewalld_that_starts_later(systemd):
    """A firewalld.service that flushes the rules, at boot or later, has the redirect restored."""
    systemd.write("/etc/systemd/system/firewalld.service", """[Service]
Type=oneshot
ExecStart=/bin/sh -c 'sleep 1; iptables -t nat -F; touch /run/flushed'
[Install]
WantedBy=multi-user.target
""")
    systemd.ok(INSTALL + " && systemctl enable firewalld")
    systemd.reboot()
    systemd.ok("test -e /run/flushed")
    assert serves(systemd) and is_network_right(systemd)
    systemd.ok("systemctl restart firewalld")
    assert serves(systemd) and is_network_right(systemd)


def test_killed_and_purged(systemd):
    """After kill -9 and a purge systemd holds no failed unit."""
    systemd.ok(INSTALL + " && systemctl kill -s KILL fake-metadata; " + PURGE)
    assert "fake-metadata" not in systemd.ok("systemctl list-units --all")
    assert systemd.ok("systemctl is-system-running") == "running\n"


def test_places_of_its_state(installed):
    """Root's folder, the service's below it, and the one that survives, have these owners."""
    assert installed.ok("stat -c '%n %U:%G %a' /run/fake-metadata /run/fake-metadata/private "
                        "/var/lib/fake-metadata") == (
        "/run/fake-metadata root:root 755\n"
        "/run/fake-metadata/private fake-metadata:fake-metadata 700\n"
        "/var/lib/fake-metadata fake-metadata:fake-metadata 700\n")
    installed.ok(SERVICE + "stop && test -d /run/fake-metadata/private")
    installed.ok(AS_SERVICE + "touch /var/lib/fake-metadata/key")


def test_service_that_was_broken_into(installed):
    """What the service's user writes where it may is not believed by root."""
    installed.ok("mkdir /srv/victim && touch /srv/victim/install.sh && " + BUILD)
    installed.ok(AS_SERVICE + "sh -c 'echo APP_DIR /srv/victim >/var/lib/fake-metadata/installed; "
                 "ln -s /etc/shadow /var/lib/fake-metadata/id.new; "
                 "ln -sf /etc/shadow /run/fake-metadata/private/started'")
    before = installed.ok("stat -c '%U:%G %a' /etc/shadow; ls /srv/victim")
    for command in ("dpkg -i " + DEB, SERVICE + "restart", CHECK, UNINSTALL, INSTALL, PURGE):
        installed.run(command)
    assert installed.ok("stat -c '%U:%G %a' /etc/shadow; ls /srv/victim") == before
    installed.ok("test ! -e /var/lib/fake-metadata && test ! -e /apps")


def test_lock_is_roots(installed):
    """An ordinary user can neither hold the lock nor wait for it."""
    assert installed.run(AS_NOBODY + "flock -n /run/fake-metadata/lock true").code != 0
    installed.ok("flock /run/fake-metadata/lock timeout 30 %s %s status" % (AS_NOBODY, INIT))
    installed.ok(SERVICE + "stop; rm -rf /run/fake-metadata")
    assert installed.run(AS_NOBODY + INIT + "status").code == 3


@pytest.mark.parametrize("line", ['X="abc', "X=$(", "if"])
def test_defaults_that_are_no_shell(installed, line):
    """A mistake in /etc/default keeps neither stop nor dpkg from their work."""
    installed.ok(BUILD)
    installed.write("/etc/default/fake-metadata", line + "\n", "640")
    installed.ok("dpkg -i " + DEB)
    assert "line 1" in installed.run(CHECK).out
    installed.ok(SERVICE + "stop")
    assert installed.run(PID).code == 1
    installed.ok(PURGE)


def test_quoted_defaults(installed):
    """check reads /etc/default as the service does."""
    installed.ok("printf 'LOG_DIR=\"/var/log/imds\"\nPORT=\"8123\"\n' >>/etc/default/fake-metadata")
    installed.ok(SERVICE + "restart && " + CHECK)
    assert "port 8123" in installed.ok(INSTALL)


def test_init_script_that_an_admin_deleted(installed):
    """dpkg -i does not bring it back, as for any conffile, and says what does; the next install."""
    installed.ok("rm /etc/init.d/fake-metadata && " + BUILD)
    assert "to restore it: sudo sh install.sh" in installed.ok("dpkg -i " + DEB)
    installed.ok("dpkg -l fake-metadata | grep '^ii' && " + INSTALL)
    assert serves(installed)


def test_port_of_the_defaults_is_the_one_that_is_checked(ready):
    """With another PORT in /etc/default the one of the installation may be somebody else's."""
    ready.ok("echo PORT=8123 >>/etc/default/fake-metadata && " + SERVICE + "restart")
    ready.ok(TAKE_PORT)
    ready.ok("echo >>fake-metadata/README.md && " + INSTALL)
    assert serves(ready)


def test_settings_outlive_their_folder(ready):
    """With the program's folder gone the next install still knows what was chosen."""
    ready.ok("PORT=8123 %s && rm -rf /apps/fake-metadata /usr/lib/fake-metadata && %s"
             % (INSTALL, INSTALL))
    assert serves(ready) and "127.0.0.1:8123" in ready.ok("ss -Hltn")


def test_purge_spares_a_user_that_was_there(sysvinit):
    """What else a user of our name runs, who was there before, lives on."""
    sysvinit.ok("useradd --system fake-metadata && " + INSTALL)
    sysvinit.ok("setpriv --reuid fake-metadata --clear-groups --regid fake-metadata "
                "sleep 600 >/dev/null 2>&1 </dev/null & sleep 0.2")
    sysvinit.ok(PURGE + " && pgrep -u fake-metadata -x sleep && ! pgrep -u fake-metadata python3")


def test_box_without_machine_id(box):
    """A box without a machine-id is one instance over restarts; a clone is told to be another."""
    box.ok("rm -f /etc/machine-id /var/lib/dbus/machine-id && " + INSTALL)
    first = fact(box, "instance-id")
    box.ok(SERVICE + "restart")
    assert fact(box, "instance-id") == first
    box.ok("echo another-box >/var/lib/fake-metadata/id && " + SERVICE + "restart")
    assert fact(box, "instance-id") != first
    box.ok(INSTALL + " && " + PURGE + " && test ! -e /var/lib/fake-metadata")


@pytest.mark.parametrize("how", ["./fake-metadata", "sh fake-metadata", "/etc/rc2.d/S*-metadata"])
def test_called_by_another_name(installed, how):
    """It does not matter from where and by which name the init script is called."""
    installed.ok("cd /etc/init.d && %s restart && %s status" % (how, how))
    assert serves(installed)


@pytest.mark.parametrize("line", ["PORT=many", "PORT=", "LOG_DIR=logs"])
def test_setting_that_cannot_work(installed, line):
    """A mistake in /etc/default is refused by reload and restart before anything is changed."""
    installed.ok("echo %s >>/etc/default/fake-metadata" % line)
    for action in ("reload", "restart") if installed.kind == "sysvinit" else ("reload",):
        result = installed.run(SERVICE + action)
        said = result.err + installed.run("journalctl --no-pager -u fake-metadata").out
        assert result.code == 1 or result.code == 6, result
        assert line in said
        assert serves(installed) and is_network_right(installed)


def test_other_port_counts_from_the_next_reload(installed):
    """With another PORT the redirect stays where the service listens, until a reload moves both."""
    installed.ok("echo PORT=8123 >>/etc/default/fake-metadata && iptables -t nat -F && %s"
                 % INIT + "network-up")
    assert serves(installed)
    assert installed.run(CHECK).code == 1
    installed.ok(SERVICE + "reload && " + CHECK)
    assert serves(installed) and "127.0.0.1:8123" in installed.ok("ss -Hltn")


def test_dead_with_pid_file(ready):
    """After kill -9 status is 1, and start, which finds a stale pid file, starts it again."""
    ready.ok("kill -9 $(%s)" % PID)
    wait_for(lambda: ready.run(SERVICE + "status").code == 1, what="status 1")
    assert ready.run(AS_NOBODY + SERVICE + "status").code == 1
    ready.ok(SERVICE + "start")
    assert serves(ready)


def test_systemd_restarts_what_was_killed(boot):
    """After kill -9 systemd brings it back by itself."""
    box = boot("systemd")
    box.ok(INSTALL + " && kill -9 $(%s)" % PID)
    wait_for(lambda: serves(box), what="an answer")


@pytest.mark.parametrize("action, status", [("stop", 3), ("restart", 0), ("start", 0)])
def test_recycled_pid(ready, action, status):
    """A pid file with another's pid harms neither: that lives on, and the action does its work."""
    ready.ok("kill -9 $(%s) && pgrep -x cron >/run/fake-metadata/pid" % PID)
    assert ready.run(SERVICE + "status").code == 1
    ready.ok(SERVICE + action + " && pgrep -x cron")
    assert ready.run(SERVICE + "status").code == status


@pytest.mark.parametrize("content", ["", "garbage\n", "999999999\n", "1\n", "-1\n"])
def test_broken_pid_file(ready, content):
    """Nonsense in the pid file stops neither stop nor start."""
    ready.ok("kill -9 $(%s); cat >/run/fake-metadata/pid" % PID, stdin=content)
    ready.ok(SERVICE + "start")
    assert serves(ready)


def test_run_is_emptied(installed):
    """What is missing below /run is made again by a restart."""
    installed.ok(SERVICE + "stop; rm -rf /run/fake-metadata; " + SERVICE + "start")
    assert serves(installed)


def test_flushed_network_is_repaired(any_box):
    """restart, reload and start put back the address and the rule."""
    any_box.ok(INSTALL)
    # Under systemd start of what runs does nothing.
    for actions in ("restart", "reload", "start" if any_box.kind == "sysvinit" else "stop start"):
        any_box.ok("iptables -t nat -F && ip addr del 169.254.169.254/32 dev lo && "
                   "for action in %s; do %s $action || exit; done" % (actions, SERVICE))
        assert serves(any_box) and is_network_right(any_box), actions


def test_doubled_rule_is_repaired(ready):
    """Of several copies of the rule, in both backends, restart leaves one."""
    ready.ok("iptables-nft -t nat -A {0} && iptables-legacy -t nat -A {0} && {1} restart"
             .format(RULE, SERVICE))
    assert sum(own_rules(ready)) == 1


def test_foreign_rules_survive(any_box):
    """Rules and chains of others, as Docker's, are untouched by install, restart and uninstall."""
    any_box.ok("iptables -t nat -N DOCKER && "
               "iptables -t nat -A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER && "
               "iptables -A INPUT -p tcp --dport 9 -j DROP && "
               "iptables-legacy -t nat -A POSTROUTING -j ACCEPT")
    before = any_box.snapshot()
    any_box.ok(INSTALL + " && " + SERVICE + "restart && " + SERVICE + "reload")
    during = any_box.snapshot()
    assert not [line for line in difference(before, during) if line.startswith("- iptables")]
    any_box.ok(PURGE)
    assert difference(before, any_box.snapshot()) == []


def test_process_source(installed):
    """An admin's command that keeps a cache and reads a home folder is a source of credentials."""
    found = {"Version": 1, "AccessKeyId": "ASIAIOSFODNN7EXAMPLE", "SecretAccessKey": "secret",
             "SessionToken": "token"}
    installed.write("/home/dev/mine.json", json.dumps(found))
    installed.write("/usr/local/bin/mine",
                    "#!/bin/sh\ncp /home/dev/mine.json /tmp/mine && cat /tmp/mine\n", "755")
    configure(installed, "[credentials]\nsource = process\ncommand = /usr/local/bin/mine\n")
    installed.ok(SERVICE + "restart")
    assert credentials(installed)["AccessKeyId"] == "ASIAIOSFODNN7EXAMPLE"


# ---- until the next boot

SPOT = "spot/instance-action"

# Looks for a word in all that other processes show of themselves, until /run/watch.stop is there;
# prints where it was.
WATCH = r"""
import glob, os, sys

word = sys.stdin.read().encode()
open("/run/watch.begun", "w").close()
seen, looks = set(), 0
while not os.path.exists("/run/watch.stop"):
    looks += 1
    for path in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError:
            continue
        if word in content:
            seen.add(content)
print(looks, seen)
"""


@pytest.fixture
def unset(shared):
    """A shared box on which nothing is set, before the test and after it."""
    yield shared
    shared.ok("rm -f %s && %s restart" % (OVERLAY, SERVICE))


def test_set_and_unset(unset):
    """What is set is served when set returns, what is unset no more; both say what is different."""
    assert unset.ok(SERVICE + "set events.spot-interruption '+0s terminate'") == (
        "fake-metadata: events.spot-interruption = +0s terminate "
        "(until the next boot; was: not set)\n")
    assert '"action": "terminate"' in fact(unset, SPOT)
    assert unset.ok(SERVICE + "unset events.spot-interruption") == (
        "fake-metadata: events.spot-interruption = not set "
        "(as in the configuration; was: +0s terminate)\n")
    assert unset.run(GET + META_DATA + SPOT).code != 0
    assert unset.ok("stat -c '%U:%G %a' " + OVERLAY) == "root:fake-metadata 640\n"
    assert unset.ok("ls /run/fake-metadata | grep set.conf") == "set.conf\n"


@pytest.mark.parametrize("command", [SERVICE, INIT])
def test_set_a_named_section(unset, command):
    """A section with a name, and a value with blanks, arrive by service and by the script."""
    unset.ok(command + "set 'role Reporting.lifetime' 30m")
    assert unset.ok(GET + "http://127.0.0.1:8000/v2/credentials/Reporting")
    unset.ok(command + "set metadata.my/words 'more than one'")
    assert fact(unset, "my/words") == "more than one"
    unset.ok(command + "unset 'role Reporting.lifetime'")
    assert unset.run(GET + "http://127.0.0.1:8000/v2/credentials/Reporting").code != 0


def test_set_from_standard_input(unset):
    """A value of several lines comes by standard input."""
    unset.ok(SERVICE + "set metadata./latest/meta-data/certificate -", stdin="BEGIN\n a\nEND\n"
             .replace(" ", ""))
    assert fact(unset, "certificate") == "BEGIN\na\nEND"


REFUSED = {
    "bad value": ("set metadata-options.http-tokens maybe", 1, "[metadata-options] http-tokens"),
    "unknown key": ("set events.spot '+0s terminate'", 1, "[events] spot"),
    "unknown section": ("set event.spot '+0s terminate'", 1, "write SECTION.KEY"),
    "no value": ("set tags.Name", 2, "usage"),
    "no name": ("set", 2, "usage"),
    "no section": ("set Name x", 2, "usage"),
    "a value for unset": ("unset tags.Name x", 2, "usage"),
    "not set": ("unset tags.Other", 1, "set until the next boot: tags.Name"),
    "what cannot be with the rest": ("set credentials.source static", 1, "access-key-id"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_set_refused(unset, name):
    """What is refused says why, and leaves everything as it was."""
    command, code, words = REFUSED[name]
    unset.ok(SERVICE + "set tags.Name x")
    before = unset.ok("ls -l /run/fake-metadata %s; cat %s %s" % (OVERLAY, OVERLAY, STATE))
    result = unset.run(SERVICE + command)
    assert result.code == code and words in result.err and result.out == "", result
    assert unset.ok("ls -l /run/fake-metadata %s; cat %s %s" % (OVERLAY, OVERLAY, STATE)) == before


def test_set_that_the_service_does_not_take(unset):
    """Where the service does not answer set fails after five seconds, and the old overlay stays."""
    unset.ok(SERVICE + "set instance.instance-type m7g.large")
    before = unset.read(OVERLAY)
    unset.ok("kill -STOP $(%s)" % PID)
    result = unset.run("timeout 30 %s set instance.instance-type c7g.large" % SERVICE)
    unset.ok("kill -CONT $(%s)" % PID)
    assert result.code == 1 and "5 s" in result.err, result
    assert unset.read(OVERLAY) == before
    unset.ok(SERVICE + "reload")
    assert fact(unset, "instance-type") == "m7g.large"


def test_set_that_does_nothing(unset):
    """What does nothing as the rest of the configuration is says so."""
    result = unset.run(SERVICE + "set tags.Name x")
    assert result.code == 0 and "tags.Name = x (until" in result.out
    assert OVERLAY + ":2: [tags]: not served unless" in result.err
    assert unset.run(SERVICE + "set metadata-options.instance-metadata-tags enabled").err == ""


def test_set_on_a_full_disk(unset):
    """Where /run is full set fails, and leaves the old overlay and nothing else."""
    unset.ok(SERVICE + "set metadata.long -", stdin="x" * 5000)
    before = unset.ok("ls /run/fake-metadata; cat " + OVERLAY)
    unset.run("dd if=/dev/zero of=/run/filler bs=1M; truncate -s -4K /run/filler")
    result = unset.run(SERVICE + "set metadata.short x")
    unset.ok("rm /run/filler")
    assert result.code == 1 and "No space left" in result.err, result
    assert unset.ok("ls /run/fake-metadata; cat " + OVERLAY) == before


def test_secret_that_is_set(unset):
    """A secret from standard input is seen neither by ps, in the log, nor in what is said."""
    unset.ok("rm -f /run/watch.*; cat >/run/watch.word; python3 -c '%s' </run/watch.word "
             ">/run/watch.out 2>&1 &" % WATCH.replace("'", "\""), stdin="ToPsEcReT")
    wait_for(lambda: unset.run("test -e /run/watch.begun").code == 0, what="the watcher")
    said = [unset.ok(SERVICE + "set container.authorization-token -", stdin="ToPsEcReT"),
            unset.ok(SERVICE + "show"), unset.ok(SERVICE + "check"),
            unset.ok(SERVICE + "unset container.authorization-token")]
    unset.ok("touch /run/watch.stop")
    wait_for(lambda: unset.run("test -s /run/watch.out").code == 0, what="the watcher's end")
    assert re.match(r"\d+ set\(\)\n$", unset.read("/run/watch.out"))
    assert "ToPsEcReT" not in "".join(said) + unset.read(LOG) + unset.read(STATE)
    assert said[0].endswith("= (a secret) (until the next boot; was: not set)\n")
    unset.ok("rm /run/watch.*")


def test_show(unset):
    """show tells what is set, what the configuration has instead, and what is served."""
    unset.ok(SERVICE + "set events.spot-interruption '+0s terminate'")
    unset.ok(SERVICE + "set faults.outage '/latest/dynamic/* status 503'")
    said = unset.ok(SERVICE + "show")
    assert "events.spot-interruption = +0s terminate (in the configuration: not set)" in said
    assert "event spot-interruption has begun" in said and "fault outage is active" in said
    assert "role BaseIAMRole: ...%s, until " % credentials(unset)["AccessKeyId"][-4:] in said
    unset.ok(SERVICE + "stop")
    assert unset.ok(SERVICE + "show").startswith("fake-metadata: not running\nset until")


def test_overlay_survives(unset):
    """reload, restart, stop and start, and a rotation of the log keep what is set."""
    unset.ok(SERVICE + "set instance.instance-type m7g.large")
    said = ""
    for action in ("reload", "restart", "stop", "start"):
        said += unset.ok(SERVICE + action)
    assert fact(unset, "instance-type") == "m7g.large"
    assert unset.run(ROTATE) == (0, "", "")
    assert log_has(unset, "after-rotation") and fact(unset, "instance-type") == "m7g.large"
    said += unset.run("journalctl --no-pager -u fake-metadata").out
    assert "boot, overriding %s: instance.instance-type\n" % CONFIG in said
    assert "next boot (service fake-metadata show): instance.instance-type\n" in unset.ok(CHECK)


def test_boot_ends_what_is_set(installed):
    """After a boot the file counts again."""
    before = fact(installed, "instance-type")
    installed.ok(SERVICE + "set instance.instance-type m7g.large")
    installed.reboot()
    assert fact(installed, "instance-type") == before
    assert "nothing is set" in installed.ok(SERVICE + "show")
    assert '"starts": 1,' in installed.read(STATE)


def test_set_while_stopped(unset):
    """What is set or unset while the service is stopped is tested, and counts from its start on."""
    unset.ok(SERVICE + "stop")
    assert "next start" in unset.ok(SERVICE + "set instance.instance-type m7g.large")
    assert unset.run(SERVICE + "set instance.instance-type none").code == 1
    assert unset.run(PID).code == 1
    unset.ok(SERVICE + "start")
    assert fact(unset, "instance-type") == "m7g.large"
    unset.ok(SERVICE + "stop && " + SERVICE + "unset instance.instance-type && "
             + SERVICE + "start")
    assert fact(unset, "instance-type") != "m7g.large"


def test_five_sets_at_once(unset):
    """Of five at once, beside reloads and HUPs of others, each is there when it returns."""
    unset.write("/root/set.sh", "%s set metadata.my/$1 v$1 && %s %smy/$1\n" % (
        INIT, GET, META_DATA))
    unset.write("/root/hup.sh", "for i in $(seq 100); do kill -HUP $1; sleep 0.05; done\n")
    unset.ok("sh /root/hup.sh $(%s) >/dev/null 2>&1 </dev/null &" % PID)
    said = unset.ok("for i in 1 2 3 4 5; do sh /root/set.sh $i & done; %s reload; wait" % INIT)
    assert sorted(re.findall(r"^v\d|v\d$", said, re.M)) == ["v1", "v2", "v3", "v4", "v5"], said
    for number in range(1, 6):
        assert fact(unset, "my/%d" % number) == "v%d" % number


def test_rotate(unset):
    """rotate returns when new credentials are served, and says which; stopped it exits 7."""
    before = credentials(unset)["AccessKeyId"]
    said = unset.ok(SERVICE + "rotate")
    after = credentials(unset)["AccessKeyId"]
    assert after != before
    assert "fake-metadata: new credentials: BaseIAMRole: ...%s, until " % after[-4:] in said
    assert re.search("rotated: .*BaseIAMRole ...%s," % after[-4:], unset.read(LOG))
    unset.ok(SERVICE + "stop")
    assert unset.run(SERVICE + "rotate").code == 7


def test_rotate_that_fails(installed):
    """rotate of a source that fails exits 1 with the reason."""
    installed.ok("printf '[default]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\n"
                 "aws_secret_access_key = x\n' >/etc/keys && chmod 644 /etc/keys")
    configure(installed, "[credentials]\nsource = profile\nfile = /etc/keys\n")
    installed.ok(SERVICE + "reload && " + SERVICE + "rotate && rm /etc/keys")
    result = installed.run(SERVICE + "rotate")
    assert result.code == 1 and "BaseIAMRole: no profile" in result.err, result


def test_set_that_the_service_refuses(unset):
    """What was tested well and is refused by the service all the same is set back."""
    unset.ok("mkdir -p /srv/here && touch /srv/here/user-data")
    unset.ok(SERVICE + "set instance.instance-type m7g.large")
    before = unset.read(OVERLAY)
    # There for the test, which works where it was called; not for the service.
    result = unset.run(INIT + "set user-data.file /proc/self/cwd/user-data", cwd="/srv/here")
    assert result.code == 1 and "[user-data] file: " in result.err, result
    assert "No such file" in result.err and result.out == ""
    assert unset.read(OVERLAY) == before
    unset.ok(SERVICE + "reload && rm -r /srv/here")
    assert fact(unset, "instance-type") == "m7g.large"


@pytest.mark.parametrize("name", ["fifo", "link", "flood"])
def test_state_of_a_service_that_was_broken_into(ready, name):
    """Whatever the service's user puts in the state's place, root reads no other file by it."""
    ready.ok(SERVICE + "stop; rm " + STATE)
    ready.ok(AS_SERVICE + {
        "fifo": "mkfifo " + STATE,
        "link": "ln -s /etc/shadow " + STATE,
        "flood": "ln -s /dev/zero " + STATE,
    }[name])
    for command in ("show", "set tags.Name x", "start", "show", "set tags.Name y", "rotate"):
        result = ready.run("timeout 50 %s %s" % (INIT, command))
        assert result.code == 0, (command, result)
        assert "root:" not in result.out + result.err


@pytest.mark.parametrize("command", ["set tags.Name x", "unset tags.Name", "show", "rotate"])
def test_only_root_sets(unset, command):
    """set, unset, show and rotate exit 4 for an ordinary user, and do nothing."""
    assert unset.run(AS_NOBODY + SERVICE + command).code == 4
    assert unset.ok("cat " + OVERLAY) == ""


# ---- logs

ROTATE = "logrotate -f /etc/logrotate.d/fake-metadata"


def test_rotation_under_load(installed):
    """Rotated five times under load, no request fails and no line is lost or split."""
    with load(installed, threads=4) as report:
        for _ in range(5):
            wait_for(lambda: installed.run("test -s " + LOG).code == 0, what="a line in the log")
            installed.ok(ROTATE)
    installed.ok(SERVICE + "stop")  # and with it what is still to be written
    text = installed.ok("cd /mnt/logs/fake-metadata && zcat -f server.log*")
    assert report["failures"] == [] and len(report["answered"]) > 100
    check_lines(text)
    logged = re.findall(r'"(load-\d+-\d+)" v1 user=root$', text, re.M)
    assert sorted(logged) == sorted(report["answered"])
    assert installed.ok("ls /mnt/logs/fake-metadata | wc -l") == "6\n"


def test_rotation_keeps_seven(installed):
    """Seven old logs are kept, all but the newest compressed, and the new one is the service's."""
    for _ in range(9):
        installed.ok(GET + META_DATA + " && " + ROTATE)
        wait_for(lambda: "reload" in installed.read(LOG), what="the reload in the log")
    names = installed.ok("ls /mnt/logs/fake-metadata").split()
    assert sorted(names) == ["server.log", "server.log.1"] + [
        "server.log.%d.gz" % number for number in range(2, 8)]
    assert installed.ok("stat -c '%U:%G %a' " + LOG) == "fake-metadata:adm 640\n"


def test_rotation_is_silent(shared):
    """logrotate, as cron runs it, says nothing and exits 0."""
    assert shared.run("logrotate /etc/logrotate.conf") == (0, "", "")


def test_rotation_with_a_bad_configuration(installed):
    """With a mistake in the configuration it opens its new log and serves the old configuration."""
    before = installed.ok(PID)
    configure(installed, "[instance]\nbogus = 1\n")
    assert installed.run(ROTATE) == (0, "", "")
    assert log_has(installed, "after-rotation") and installed.ok(PID) == before
    assert "not reloaded, the old configuration stays" in installed.read(LOG)
    configure(installed, "")


def test_rotation_where_starts_are_denied(installed):
    """policy-rc.d, which forbids starts, does not keep the new log from being written."""
    installed.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", "755")
    assert installed.run(ROTATE) == (0, "", "")
    assert log_has(installed, "after-rotation")


def test_rotation_with_the_service_stopped(installed):
    """logrotate exits 0 with the service down, and does not start it."""
    installed.ok(SERVICE + "stop")
    assert installed.run(ROTATE) == (0, "", "")
    assert installed.run(PID).code == 1
    installed.ok(SERVICE + "start")


def test_rotation_after_uninstall(installed):
    """logrotate exits 0 after an uninstall that kept the logs."""
    installed.ok(UNINSTALL)
    assert installed.run("test -s %s* && logrotate -f /etc/logrotate.conf" % LOG) == (0, "", "")


def log_has(box, agent):
    """Tell whether a request made now is in the log."""
    box.ok(GET + "-A " + agent + " " + META_DATA)
    return wait_for(lambda: box.run("grep -q %s %s" % (agent, LOG)).code == 0,
                    what=agent + " in the log")


def test_disk_full(installed):
    """With the disk of the log full it serves on; it logs again once there is room."""
    folder = "/mnt/logs/fake-metadata"
    installed.ok("mount -t tmpfs -o size=256k,mode=755 tmpfs {0} && {1} restart && "
                 "dd if=/dev/zero of={0}/filler bs=1k 2>&-; df {0}".format(folder, SERVICE))
    installed.ok("for i in $(seq 200); do %s %s || exit 1; done" % (GET, META_DATA))
    installed.ok("rm %s/filler && %s reload" % (folder, SERVICE))
    assert log_has(installed, "after")


def test_log_is_a_folder(installed):
    """With a folder in the log's place it reloads, restarts, serves; it logs once that is gone."""
    installed.ok("rm {0} && mkdir {0} && {1} reload".format(LOG, SERVICE))
    assert serves(installed)
    installed.ok(SERVICE + "restart")
    assert serves(installed)
    installed.ok("rmdir %s && %s reload" % (LOG, SERVICE))
    assert log_has(installed, "after")


@pytest.mark.parametrize("action", ["reload", "restart"])
def test_log_folder_gone(installed, action):
    """With the log folder gone it serves on, and reload or restart makes it anew."""
    installed.ok("rm -rf /mnt/logs")
    assert serves(installed)
    installed.ok(SERVICE + action)
    assert log_has(installed, "after")
    assert installed.ok("stat -c '%U:%G %a' " + LOG) == "fake-metadata:adm 640\n"


def test_a_link_planted_for_the_log(ready):
    """A log that someone replaced by a link to root's file does not change that file's owner."""
    ready.ok("rm {0} && ln -s /etc/shadow {0} && {1} restart; rm {0}".format(LOG, SERVICE))
    assert ready.ok("stat -c %U:%G /etc/shadow") == "root:shadow\n"


# ---- boots


def test_reboot(any_box):
    """After a reboot it serves without a word, with one address and one rule."""
    any_box.ok(INSTALL)
    any_box.reboot()
    assert serves(any_box) and is_network_right(any_box)
    any_box.ok(SERVICE + "check")


def test_power_cut(any_box):
    """After a power cut it serves again."""
    any_box.ok(INSTALL)
    any_box.power_cut()
    any_box.boot()
    assert serves(any_box) and is_network_right(any_box)


def test_power_cut_during_the_installation(box):
    """A box whose power failed during the installation boots, and a second run finishes."""
    box.ok("mkdir /root/shims")
    abort(box, "update-rc.d", 1)
    box.power_cut()
    box.boot()
    box.ok(INSTALL + " && " + CHECK)


def test_empty_log_disk_at_boot(installed):
    """Where /mnt is empty after each boot, as on instance storage, the log folder is made again."""
    installed.ok("rm -rf /mnt/logs")
    installed.reboot()
    assert log_has(installed, "after")


def test_token_outlives_a_restart(shared):
    """A session token is still good after restart: SDKs hold theirs for hours."""
    token = shared.ok(NEW_TOKEN)
    shared.ok(SERVICE + "restart")
    shared.ok(GET + "-H 'X-aws-ec2-metadata-token: %s' %s" % (token, META_DATA))


def test_neighbour_on_the_lan_gets_nothing(any_box):
    """A LAN neighbour gets no answer, at the box's address or by a route to 169.254.169.254."""
    any_box.ok(INSTALL)
    with Neighbour(any_box) as neighbour:
        any_box.ok("cd / && python3 -m http.server 9999 >/dev/null 2>&1 </dev/null &")
        control = neighbour.run(GET + "--retry 5 --retry-connrefused "
                                "http://%s:9999/etc/hostname" % neighbour.BOX)
        assert control.out == "box\n", control
        for url in ("http://%s:8000/" % neighbour.BOX, "http://%s/" % neighbour.BOX,
                    "http://169.254.169.254/", "http://169.254.169.254:8000/"):
            result = neighbour.run("curl -sS --max-time 2 " + url)
            assert result.code in (7, 28) and result.out == "", (url, result)
    assert serves(any_box)


# ---- other boxes


def legacy(box):
    box.ok("update-alternatives --set iptables /usr/sbin/iptables-legacy")


def test_iptables_legacy(box):
    """With iptables-legacy the rule is there, once, also after a reboot, and leaves no trace."""
    legacy(box)
    before = box.snapshot()
    box.ok(INSTALL)
    assert serves(box) and own_rules(box) == (0, 1)
    box.reboot()
    assert serves(box) and own_rules(box) == (0, 1)
    box.ok(PURGE)
    assert difference(before, box.snapshot()) == []


def test_switched_backend(ready):
    """After a switch of the backend there is still one rule, and uninstall clears both backends."""
    legacy(ready)
    ready.ok(SERVICE + "restart && " + INSTALL)
    assert serves(ready) and sum(own_rules(ready)) == 1
    ready.ok("iptables-nft -t nat -A {0}; iptables-legacy -t nat -A {0}; {1}"
             .format(RULE, UNINSTALL))
    assert own_rules(ready) == (0, 0)


def test_box_without_ifupdown(boot):
    """Without ifupdown no interfaces file appears; a reboot serves; purge leaves no trace."""
    box = boot("no-ifupdown")
    before = box.snapshot()
    box.ok(INSTALL + " && test ! -e " + INTERFACES)
    box.reboot()
    assert serves(box)
    box.ok("networkctl reload && systemctl restart systemd-networkd")
    assert serves(box)
    box.ok(PURGE)
    assert difference(before, box.snapshot()) == []


SUPERVISORS = {"daemontools": ("/service", "svscan /service", "svc -h /service/fake-metadata"),
               "runit": ("/etc/service", "runsvdir /etc/service",
                         "sv hup /etc/service/fake-metadata")}


@pytest.fixture(params=sorted(SUPERVISORS))
def supervised(request, sysvinit):
    """A box with daemontools or runit at work; with a box, the command that sends HUP."""
    folder, command, hup = SUPERVISORS[request.param]
    # What a trigger of runit makes when dpkg unpacks anything; until then its own service dies
    # again and again.
    sysvinit.ok("mkdir -p /run/runit/supervise {0}; cd / && setsid {1} >/dev/null 2>&1 </dev/null &"
                .format(folder, command))
    if request.param == "runit":
        wait_for(lambda: sysvinit.run("pgrep -x sleep").code == 0, what="its own service")
    return sysvinit, hup


def test_supervised(supervised):
    """Under a supervisor it is installed, served, revived after kill -9, removed without trace."""
    box, _ = supervised
    before = box.snapshot()
    box.ok(INSTALL + " --supervise")
    assert serves(box)
    assert box.ok("ps -o user= -p $(%s)" % PID) == "fake-metadata\n"
    box.ok("kill -9 $(%s)" % PID)
    wait_for(lambda: serves(box), what="an answer")
    box.ok(INSTALL + " --supervise && " + CHECK)
    box.ok(PURGE)
    wait_for(lambda: difference(before, box.snapshot()) == [],
             what="%s == []" % difference(before, box.snapshot()))


def test_supervised_former_installation(supervised):
    """A former installation under a supervisor is taken over, too."""
    box, _ = supervised
    copy_former(box)
    before = box.snapshot()
    box.ok("sh former/install.sh --supervise && " + INSTALL)
    assert serves(box)
    box.ok(CHECK + " && " + SERVICE + "restart")
    box.ok(PURGE)
    wait_for(lambda: difference(before, box.snapshot()) == [], what="no trace")


def test_supervised_hangup(supervised):
    """The supervisor's HUP opens the log again."""
    box, hup = supervised
    box.ok(INSTALL + " --supervise && mv {0} {0}.1 && "
           "install -o fake-metadata -g adm -m 640 /dev/null {0} && {1}".format(LOG, hup))
    wait_for(lambda: box.run("test -s " + LOG).code == 0, what="a new log")
    assert log_has(box, "after")


def test_supervised_actions(supervised):
    """start, stop, restart, reload and status work under a supervisor, with the same exit codes."""
    box, _ = supervised
    box.ok(INSTALL + " --supervise")
    codes = []
    for action in "status stop status stop reload start start status restart reload status".split():
        codes.append((action, box.run(SERVICE + action).code))
        if action in ("start", "restart"):
            assert serves(box)
    assert codes == [("status", 0), ("stop", 0), ("status", 3), ("stop", 0), ("reload", 7),
                     ("start", 0), ("start", 0), ("status", 0), ("restart", 0), ("reload", 0),
                     ("status", 0)]


def test_supervised_changes(supervised):
    """set, unset, rotate and reload work under a supervisor, and wait for the service."""
    box, _ = supervised
    box.ok(INSTALL + " --supervise")
    box.ok(SERVICE + "set instance.instance-type m7g.large")
    assert fact(box, "instance-type") == "m7g.large"
    box.ok(SERVICE + "restart")
    assert fact(box, "instance-type") == "m7g.large"
    before = credentials(box)
    assert "BaseIAMRole" in box.ok(SERVICE + "rotate") and credentials(box) != before
    configure(box, "[instance]\nami-id = ami-00000001\n")
    box.ok(SERVICE + "unset instance.instance-type && " + SERVICE + "reload")
    assert fact(box, "instance-type") == "t3.micro" and fact(box, "ami-id") == "ami-00000001"
    configure(box, "[instance]\nbogus = 1\n")
    assert "bogus" in box.run(SERVICE + "reload").err


@pytest.mark.parametrize("command, status", [("supervise", "svstat"), ("runsv", "sv status")])
def test_run_script(ready, command, status):
    """The run script alone, in a folder of one's own, works under supervise and under runsv."""
    ready.ok(SERVICE + "stop && mkdir /root/imds && "
             "cp fake-metadata/init.d/fake-metadata.run /root/imds/run && "
             "chmod 755 /root/imds/run; "
             "cd / && setsid %s /root/imds >/dev/null 2>&1 </dev/null &" % command)
    wait_for(lambda: serves(ready), what="an answer")
    assert re.search(r"up \(|run:", ready.ok(status + " /root/imds"))
    assert ready.ok("ps -o user= -p $(%s)" % PID) == "fake-metadata\n"


# ---- install.sh --check


def test_check_finds_nothing(shared):
    """On a sound box check finds nothing, changes nothing, and says when the credentials rotate."""
    before = shared.snapshot()
    said = shared.ok(CHECK)
    assert without_log(difference(before, shared.snapshot())) == []
    assert re.search(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", said) and "ASIA" not in said
    shared.ok(SERVICE + "check")


def test_check_before_installation(sysvinit):
    """check before the installation finds that nothing is there, and does not change that."""
    before = sysvinit.snapshot()
    result = sysvinit.run(INSTALL + " --check")
    assert result.code == 1 and "fake-metadata" in result.out + result.err
    assert difference(before, sysvinit.snapshot()) == []


FINDINGS = {
    "stopped": (SERVICE + "stop", "stopped"),
    "killed": ("kill -9 $(%s)" % PID, "died"),
    "address": ("ip addr del 169.254.169.254/32 dev lo", "169.254.169.254/32"),
    "rule": ("iptables -t nat -F OUTPUT", "REDIRECT"),
    "rule twice": ("iptables -t nat -A " + RULE, "more than once"),
    "rule in the other backend too": ("iptables-legacy -t nat -A " + RULE, "more than once"),
    "configuration": ("printf '[instance]\\nbogus = 1\\n' >" + CONFIG, "[instance] bogus"),
    "port": (SERVICE + "stop; " + TAKE_PORT, "port 8000"),
    "source": ("printf '[credentials]\\nsource = process\\ncommand = /bin/false\\n' >%s && "
               "%s restart" % (CONFIG, SERVICE), "credentials"),
    "tokens refused": ("printf '[metadata-options]\\nhttp-endpoint = disabled\\n' >%s && "
                       "%s restart" % (CONFIG, SERVICE), "403"),
    "not at boot": ("rm /etc/rc?.d/*fake-metadata", "boot"),
    "emptied file": (">" + RULES, RULES + " is missing"),
    "changed program": ("echo >>/apps/fake-metadata/fake_metadata.py", "has changed since"),
    "export": ("echo 'export A=b' >>/etc/default/fake-metadata", "/etc/default/fake-metadata"),
    "comment behind a value": ("echo 'A=b # c' >>/etc/default/fake-metadata", "line"),
    "CRLF": ("printf 'A=b\\r\\n' >>/etc/default/fake-metadata", "line"),
    "blank in a value": ("echo 'A=b c' >>/etc/default/fake-metadata", "line"),
    "log folder for a group": ("chgrp adm {0} && chmod g+w {0}".format(LOG_DIR), "logrotate"),
    "log is another file": ("mv {0} {0}.x && cp -p {0}.x {0}".format(LOG), "does not write to"),
    "folder of a user": ("chown 1000 /apps", "/apps belongs to"),
    "missing file": ("rm /etc/logrotate.d/fake-metadata", "/etc/logrotate.d/fake-metadata"),
    "credentials file": ("mkdir -p /root/.aws && printf '[default]\\naws_access_key_id = AKIA\\n' "
                         ">/root/.aws/credentials", "/root/.aws/credentials"),
}


@pytest.mark.parametrize("name", sorted(FINDINGS))
def test_check_finding(ready, name):
    """What is broken is found, in a line with a remedy, and left as it is."""
    command, words = FINDINGS[name]
    ready.ok(command)
    before = ready.snapshot()
    result = ready.run(CHECK)
    assert result.code == 1 and [line for line in result.out.splitlines()
                                 if words in line and "remedy" in line], result
    assert without_log(difference(before, ready.snapshot())) == []


@pytest.mark.parametrize("variable, value, words", [
    ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE", "AWS_ACCESS_KEY_ID"),
    ("AWS_PROFILE", "prod", "AWS_PROFILE"),
    ("AWS_EC2_METADATA_DISABLED", "true", "AWS_EC2_METADATA_DISABLED"),
    ("http_proxy", "http://192.0.2.1:3128", "NO_PROXY")])
def test_check_variable(shared, variable, value, words):
    """A variable that keeps SDKs away is found, in a line with a remedy and without its value."""
    result = shared.run(CHECK, env={variable: value})
    line, = [line for line in result.out.splitlines() if words in line]
    assert result.code == 1 and "remedy" in line and "EXAMPLE" not in line, result


def test_check_believes_no_client(shared):
    """What a client has written into the log is no finding."""
    shared.ok(GET + "-A 'Z fake-metadata: no new credentials for BaseIAMRole: x' " + META_DATA)
    shared.ok(CHECK)


def test_proxy_with_exception_is_no_finding(shared):
    """A proxy whose NO_PROXY names the address is no finding."""
    shared.ok(CHECK, env={"http_proxy": "http://192.0.2.1:3128",
                          "no_proxy": "localhost,169.254.169.254"})


def test_check_without_root(shared):
    """Without root check says what it could not see, and still makes the round-trip."""
    result = shared.run(AS_NOBODY + CHECK, env={"HOME": "/nonexistent"})
    assert result.code == 0 and "root" in result.out and "IMDSv2" in result.out, result


# ---- uninstall.sh


def test_no_trace(any_box):
    """After install and purge files, addresses, rules, users, processes and ports are as before."""
    before = any_box.snapshot()
    any_box.ok(INSTALL)
    any_box.ok(PURGE)
    assert difference(before, any_box.snapshot()) == []


def test_no_trace_after_a_life(any_box):
    """The same after restarts, reloads, a rotation, a reboot and a second install."""
    before = any_box.snapshot()
    any_box.ok(INSTALL + " && " + SERVICE + "restart && " + SERVICE + "reload && " +
               SERVICE + "set tags.Name x && " + ROTATE)
    any_box.reboot()
    any_box.ok(INSTALL + " && " + SERVICE + "stop && " + SERVICE + "start")
    any_box.ok(PURGE)
    assert difference(before, any_box.snapshot()) == []
    any_box.reboot()
    assert difference(before, any_box.snapshot()) == []


def test_no_trace_in_systemd(boot):
    """systemd no longer knows the unit, and nothing has failed."""
    box = boot("systemd")
    box.ok(INSTALL)
    box.ok(PURGE)
    assert "fake-metadata" not in box.ok("systemctl list-units --all; systemctl list-unit-files")
    assert box.ok("systemctl is-system-running") == "running\n"


def test_uninstall_dry_run(installed):
    """uninstall.sh --dry-run changes nothing."""
    before = installed.snapshot()
    assert installed.ok(PURGE + " --dry-run")
    assert difference(before, installed.snapshot()) == []


def test_uninstall_twice(box):
    """uninstall with nothing installed exits 0 and changes nothing, before and after."""
    before = box.snapshot()
    box.ok(UNINSTALL)
    assert difference(before, box.snapshot()) == []
    box.ok(INSTALL)
    box.ok("cp fake-metadata/uninstall.sh /root/; %s && %s; rm /root/uninstall.sh" % (PURGE, PURGE))
    assert difference(before, box.snapshot()) == []


def test_uninstall_keeps_logs_and_edits(installed):
    """Without --purge logs and edited configuration stay, as it says; a later purge takes them."""
    configure(installed, "[instance]\ninstance-type = m7g.large\n")
    said = installed.ok(UNINSTALL)
    assert CONFIG in said and LOG in said and "--purge" in said
    assert installed.read(CONFIG) == "[instance]\ninstance-type = m7g.large\n"
    installed.ok("test -s %s && test ! -e /apps" % LOG)
    assert not own_rules(installed)[0] and "169.254" not in installed.ok("ip addr")
    installed.ok(PURGE)
    assert installed.run("getent passwd fake-metadata").code == 2
    installed.ok("test ! -e %s && test ! -e /mnt/logs" % CONFIG)


def test_kept_configuration_is_used_again(installed):
    """An install after an uninstall takes up the configuration that was kept."""
    configure(installed, "[instance]\ninstance-type = m7g.large\n")
    installed.ok(UNINSTALL + " && " + INSTALL)
    assert fact(installed, "instance-type") == "m7g.large"


@pytest.mark.parametrize("folders", ["/mnt/logs", "/mnt/logs/fake-metadata"])
def test_folders_that_were_there_stay(boot, folders):
    """Folders of the log that were there before stay, empty or not."""
    box = boot("no-ifupdown")
    box.ok("mkdir -p {0}; touch /mnt/mine".format(folders))
    before = box.snapshot()
    box.ok(INSTALL)
    box.ok(PURGE)
    assert difference(before, box.snapshot()) == []


def test_foreign_files_stay(installed):
    """What the admin put in the program's and the log's folder stays, with the folders."""
    installed.ok("echo mine | tee /apps/fake-metadata/mine >/mnt/logs/fake-metadata/mine")
    installed.ok(PURGE)
    assert installed.ok("find /apps /mnt/logs -type f") == (
        "/apps/fake-metadata/mine\n/mnt/logs/fake-metadata/mine\n")


@pytest.mark.parametrize("was_there", [
    "useradd --system --shell /usr/sbin/nologin fake-metadata", "groupadd --system fake-metadata",
    "useradd --system --gid nogroup --shell /usr/sbin/nologin fake-metadata",
    "ip addr add 169.254.169.254/32 dev lo"])
def test_what_was_there_stays(sysvinit, was_there):
    """A user, group or address that was there before the installation is there after the purge."""
    sysvinit.ok(was_there)
    before = sysvinit.snapshot()
    sysvinit.ok(INSTALL)
    assert serves(sysvinit)
    sysvinit.ok(PURGE)
    assert difference(before, sysvinit.snapshot()) == []


BROKEN = {
    "dead": "kill -9 $(%s)" % PID,
    "stopped": SERVICE + "stop",
    "address gone": "ip addr del 169.254.169.254/32 dev lo",
    "rules flushed": "iptables -t nat -F",
    "pid file gone": "rm -rf /run/fake-metadata",
    "init script gone": "rm /etc/init.d/fake-metadata",
    "program gone": "rm -rf /apps/fake-metadata",
    "logs gone": "rm -rf /mnt/logs",
    "configuration broken": "echo nonsense >" + CONFIG,
    "log is a folder": "rm {0}; mkdir {0}".format(LOG),
    "rule doubled": "iptables-nft -t nat -A {0}; iptables-legacy -t nat -A {0}".format(RULE),
    "user gone": SERVICE + "stop; userdel fake-metadata",
}


@pytest.mark.parametrize("kind, name", [("sysvinit", name) for name in sorted(BROKEN)] + [
    ("systemd", name)
    for name in ("dead", "init script gone", "program gone", "configuration broken", "user gone")])
def test_uninstall_of_what_is_broken(boot, kind, name):
    """Whatever of it is broken, uninstall --purge exits 0 and leaves no trace."""
    box = boot(kind)
    before = box.snapshot()
    box.ok(INSTALL)
    box.run(BROKEN[name])
    box.ok(PURGE)
    assert difference(before, box.snapshot()) == []


def test_uninstall_with_lo_down(sysvinit):
    """With lo taken down by ifupdown, which forgets the address, uninstall leaves no trace."""
    before = sysvinit.snapshot()
    sysvinit.ok(INSTALL + " && ifdown --force lo")
    sysvinit.ok(PURGE)
    sysvinit.ok("ifup lo")
    assert difference(before, sysvinit.snapshot()) == []


def test_uninstall_without_iptables(installed):
    """Where iptables is gone by now, uninstall exits 0."""
    installed.ok("rm /usr/sbin/*tables*; " + PURGE)
    assert installed.run("test -e /apps || getent passwd fake-metadata").code != 0


def test_uninstall_needs_root(ready):
    """An ordinary user cannot uninstall: one line, nothing changed."""
    before = ready.snapshot()
    result = ready.run(AS_NOBODY + "sh /apps/fake-metadata/uninstall.sh")
    assert result.code == 1 and "root" in result.err and len(result.err.splitlines()) == 1
    assert difference(before, ready.snapshot()) == []
