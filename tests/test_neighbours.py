"""The table of neighbours: who else is on a box, what install and check say of them, who wins.

Each row is one box, with the life of the product on it: install, start, harm and remedy, reload,
check, purge. A neighbour on the LAN asks meanwhile and gets nothing; after the purge the box is as
it was.
"""
import collections
import contextlib
import os
import re
import subprocess

import pytest

from box import Box, Neighbour, difference, why_not
from service import wait_for
from test_box import CHECK, CONFIG, GET, INSTALL, META_DATA, PURGE, SERVICE, legacy, serves

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "")

TO_ADDRESS = "-d 169.254.169.254/32 -p tcp -m tcp --dport 80 "
DOCKER = ("iptables -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER; ")
NFT_CHAIN = "nft add table inet mine && nft 'add chain inet mine mine { type %s; policy %s; }' && "

LET_IN = """
for from_to in 9999:9999 8001:8000; do
    iptables -t nat -A PREROUTING -i lan0 -p tcp --dport ${from_to%:*} \\
        -j DNAT --to-destination 127.0.0.1:${from_to#*:}
done
"""
DROP_OTHERS = "iptables -A INPUT -p tcp --dport 9 -j DROP; "

# What keeps the answer away: command, what check names, what is to be undone after its remedy.
Harm = collections.namedtuple("Harm", "command named undo")

FIREWALLS = [
    Harm("iptables -A OUTPUT -d 169.254.0.0/16 -j DROP",
         "iptables-nft -t filter -A OUTPUT -d 169.254.0.0/16 -j DROP", ""),
    Harm("iptables-legacy -A INPUT -p tcp --dport 8000 -j REJECT",
         "iptables-legacy -t filter -A INPUT -p tcp -m tcp --dport 8000 -j REJECT", ""),
    Harm("iptables -P INPUT DROP", "iptables-nft -t filter -P INPUT DROP",
         "iptables -P INPUT ACCEPT; iptables -D INPUT -i lo -j ACCEPT"),
    Harm(NFT_CHAIN % ("filter hook output priority 0", "accept") +
         "nft add rule inet mine mine ip daddr 169.254.0.0/16 counter drop",
         "nft inet mine mine: ip daddr 169.254.0.0/16", "nft delete table inet mine"),
    Harm(NFT_CHAIN % ("nat hook output priority -110", "accept") +
         "nft add rule inet mine mine ip daddr 169.254.169.254 tcp dport 80 redirect to :9",
         "nft inet mine mine: ip daddr 169.254.169.254", "nft delete table inet mine"),
    Harm(NFT_CHAIN % ("filter hook input priority 0", "drop") + "true",
         "nft inet mine mine: hook input, policy drop", "nft delete table inet mine"),
    Harm("nft flush ruleset", "missing", DROP_OTHERS + LET_IN),
]
OWN_DOING = [
    Harm(SERVICE + "set faults.outage '/latest/* status 503'", "fault outage: 503",
         SERVICE + "unset faults.outage"),
    Harm(SERVICE + "set faults.outage '/latest/api/token reset'", "fault outage: reset",
         SERVICE + "unset faults.outage"),
    Harm(SERVICE + "set metadata-options.http-endpoint disabled", "http-endpoint is disabled",
         SERVICE + "unset metadata-options.http-endpoint"),
    Harm(SERVICE + "set server.bind 127.0.0.1:9000", "nothing listens at 127.0.0.1:8000", ""),
    Harm("printf '[server]\nbind = 127.0.0.1:9000\n' >>%s; %s reload" % (CONFIG, SERVICE),
         "remove bind in [server] from " + CONFIG,
         "sed -i '/^.server.$/,$d' %s; %s restart" % (CONFIG, SERVICE)),
]

# Init, backend, who is there before, what install and check name of them, and what comes later.
Row = collections.namedtuple("Row", "init backend before named harms")

ROWS = {
    "a redirect to another program": Row(
        "sysvinit", "nft", "iptables -t nat -A OUTPUT " + TO_ADDRESS + "-j REDIRECT --to-ports 9",
        "iptables-nft -t nat -A OUTPUT " + TO_ADDRESS + "-j REDIRECT --to-ports 9",
        [Harm("iptables -t nat -I OUTPUT " + TO_ADDRESS + "-j DNAT --to-destination 127.0.0.1:9",
              "another rule comes before those of fake-metadata",
              "iptables -t nat -D OUTPUT " + TO_ADDRESS + "-j DNAT --to-destination 127.0.0.1:9")]),
    "a container engine": Row(
        "sysvinit", "legacy",
        "iptables -t nat -N DOCKER; " + DOCKER +
        "iptables -t nat -A DOCKER -p tcp --dport 80 -j DNAT --to-destination 127.0.0.1:9", "",
        [Harm("iptables -t nat -F OUTPUT; " + DOCKER, "missing", ""),
         Harm("ip link set lo down", "lo is down", "")]),
    "firewalls": Row("systemd", "nft", DROP_OTHERS, "", FIREWALLS),
    "rules in the other backend": Row(
        "systemd", "legacy", "iptables-nft -t raw -A PREROUTING " + TO_ADDRESS + "-j ACCEPT",
        "iptables-nft -t raw -A PREROUTING " + TO_ADDRESS + "-j ACCEPT", OWN_DOING),
}


@pytest.fixture
def box(request, tmp_path):
    """A box of the kind of a row, with a neighbour's way in open as wide as the kernel allows."""
    with Box(request.param, tmp_path) as box:
        box.copy_product()
        yield box


@contextlib.contextmanager
def lan(box):
    """A neighbour on the LAN, whom the box lets in to its loopback."""
    with Neighbour(box) as neighbour:
        box.ok("sysctl -qw net.ipv6.conf.lan0.disable_ipv6=1 net.ipv4.conf.all.route_localnet=1")
        box.ok(LET_IN)
        box.ok("cd / && python3 -m http.server --bind 127.0.0.1 9999 >/dev/null 2>&1 </dev/null &")
        wait_for(lambda: neighbour.run(GET + "http://192.0.2.2:9999/etc/hostname").out == "box\n",
                 what="the neighbour's way to the box's loopback")
        wait_for_lan(box)
        yield neighbour


def wait_for_lan(box):
    wait_for(lambda: "state UP" in box.ok("ip link show lan0"), what="the LAN")


def assert_refused(neighbour):
    for place in ("192.0.2.2:8000", "192.0.2.2", "169.254.169.254", "169.254.169.254:8000",
                  "192.0.2.2:8001"):
        result = neighbour.run("curl -sS --max-time 1 http://%s/latest/meta-data/" % place)
        assert result.code in (7, 28, 52, 56) and result.out == "", (place, result)


@pytest.mark.parametrize("box, row", [
    pytest.param(row.init, row, id=name) for name, row in sorted(ROWS.items())], indirect=["box"])
def test_neighbour(box, row):
    """Whoever else is there, we win or the cause is named, its remedy works, and no trace stays."""
    if row.backend == "legacy":
        legacy(box)
    box.ok(row.before)
    with lan(box) as neighbour:
        before = box.snapshot()

        said, _, rest = box.ok(INSTALL).partition("installing\n")
        assert row.named in said and bool(row.named) == ("another program" in said), said
        assert "another program" not in rest
        assert serves(box)
        assert_refused(neighbour)
        assert_well(box, row)

        for harm in row.harms:
            box.ok(harm.command)
            problem = problem_with(box, harm.named)
            if "remedy: remove " not in problem:  # that is for a person
                box.ok(remedy_of(problem))
            box.ok(harm.undo or "true")
            assert serves(box), harm
            assert_well(box, row)

        box.ok(SERVICE + "restart && " + SERVICE + "reload")
        assert_refused(neighbour)
        assert_well(box, row)
        box.ok(PURGE)
        assert difference(before, box.snapshot()) == []


def assert_well(box, row):
    """check finds no problem; it notes who else wants the address, and the ARP of the LAN."""
    said = box.ok(CHECK)
    notes = [line for line in said.splitlines() if line.startswith("note ")]
    assert any("ARP" in note and "net.ipv4.conf.lan0.arp_ignore=1" in note for note in notes), said
    assert bool(row.named) == any("comes first: " + row.named in note for note in notes), said
    assert len(notes) == 1 + bool(row.named), said


def problem_with(box, words):
    """Return the line in which check names a problem; it has a remedy, as every such line."""
    result = box.run(CHECK)
    problems = [line for line in result.out.splitlines() if line.startswith("PROBLEM ")]
    found = [line for line in problems if words in line]
    assert result.code == 1 and found and all("; remedy: " in line for line in problems), result
    return found[0]


def remedy_of(problem):
    return problem.partition("; remedy: ")[2]


# ---- machines that have a metadata service already

SYS = "/root/sys/"  # what stands for /sys/class and /sys/hypervisor
AS_MACHINE = ("unshare --mount sh -c 'mount -t tmpfs tmpfs /sys && cp -r %s. /sys && "
              "exec \"$@\"' - " % SYS)
DMI = "class/dmi/id/"
RESOLV = "/etc/resolv.conf"

# File below /sys, what it says, and how the refusal calls the machine; None: no refusal.
MACHINES = [
    (DMI + "sys_vendor", "Amazon EC2", "EC2"),
    (DMI + "bios_version", "4.11.amazon", "EC2"),
    (DMI + "product_uuid", "EC2E1916-9099-7CAF-FD21-012345ABCDEF", "EC2"),
    ("hypervisor/uuid", "ec2e1916-9099-7caf-fd21-012345abcdef", "EC2"),
    (DMI + "product_name", "Google Compute Engine", "Google Cloud"),
    (DMI + "chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77", "Azure"),
    (DMI + "sys_vendor", "Microsoft Corporation", None),
    (DMI + "chassis_asset_tag", "OracleCloud.com", "Oracle Cloud"),
    (DMI + "product_name", "OpenStack Nova", "OpenStack"),
    (DMI + "sys_vendor", "DigitalOcean", "DigitalOcean"),
    (DMI + "sys_vendor", "Hetzner", "Hetzner Cloud"),
    (DMI + "sys_vendor", "Scaleway", None),
    (DMI + "sys_vendor", "QEMU", None),
]


@pytest.mark.parametrize("box", ["sysvinit"], indirect=True)
def test_machine_with_a_service_of_its_own(box):
    """It is refused with the reason, and nothing is changed; with --force check says it, too."""
    before = box.snapshot()
    for file, content, name in MACHINES:
        become(box, file, content)
        result = box.run(AS_MACHINE + INSTALL + (" --dry-run" if name is None else ""))
        if name is None:
            assert result.code == 0, (content, result)
        else:
            assert_refusal(result, "runs on %s, which" % name)
    with resolver(box):
        assert_refusal(box.run(INSTALL), "a nameserver of this machine")
    box.ok("rm -r " + SYS)
    assert difference(before, box.snapshot()) == []

    become(box, DMI + "product_uuid", "ec2e1916-9099-7caf-fd21-012345abcdef")
    box.ok(AS_MACHINE + INSTALL + " --force")
    assert serves(box)
    assert "note      this machine runs on EC2, " in box.ok(AS_MACHINE + CHECK)
    with resolver(box):
        assert "note      169.254.169.254 is a nameserver" in box.ok(CHECK)
    box.ok("rm -r " + SYS + "; " + PURGE)
    assert difference(before, box.snapshot()) == []


@pytest.mark.parametrize("box", ["systemd"], indirect=True)
def test_service_that_answers_already(box):
    """Where something answers at the address it is refused; not where the answer is our own."""
    with Neighbour(box) as neighbour:
        box.ok("sysctl -qw net.ipv6.conf.lan0.disable_ipv6=1 && "
               "ip route add 169.254.169.254 via 192.0.2.1")
        neighbour.run("ip addr add 169.254.169.254/32 dev lo")
        wait_for_lan(box)
        before = box.snapshot()
        with answering(neighbour):
            wait_for(lambda: box.run(GET + META_DATA).code != 7, what="the other service")
            assert_refusal(box.run(INSTALL), "something already answers at 169.254.169.254")
            assert box.run(INSTALL + " --no-start").code == 0
            box.ok(PURGE)
            assert difference(before, box.snapshot()) == []

            box.ok(INSTALL + " --force && " + INSTALL)
            assert serves(box)
            box.ok(PURGE)
        box.ok(INSTALL + " && " + PURGE)
        assert difference(before, box.snapshot()) == []


def become(box, file, content):
    """Make what stands for /sys that of another machine."""
    box.ok("rm -rf {0} && mkdir -p $(dirname {0}{1}) && echo '{2}' >{0}{1}".format(
        SYS, file, content))


def assert_refusal(result, words):
    assert result.code == 1 and result.out == "" and words in result.err, result
    assert len(result.err.splitlines()) == 1 and "--force" in result.err, result


@contextlib.contextmanager
def resolver(box):
    """The box asks 169.254.169.254 for names, as on Google Cloud."""
    box.ok("cp -a {0} {0}.was; echo 'nameserver 169.254.169.254' >{0}".format(RESOLV))
    yield
    box.ok("mv {0}.was {0}".format(RESOLV))


@contextlib.contextmanager
def answering(neighbour):
    """Something answers at port 80 of 169.254.169.254 in the neighbour's network."""
    process = subprocess.Popen(
        ["nsenter", "--net", "--target", str(neighbour.process.pid), "python3", "-m",
         "http.server", "--bind", "169.254.169.254", "80"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=os.path.dirname(__file__))
    try:
        yield
    finally:
        process.kill()
        process.wait(10)


# ---- what another tool has written down

SAVED = {
    "/etc/iptables/rules.v4": "iptables-save",
    "/etc/nftables.conf": "nft list ruleset",
}


@pytest.mark.parametrize("box", ["systemd"], indirect=True)
def test_saved_rules_are_named(box):
    """Rules of ours in a file of another tool are named at uninstall, and left as they are."""
    box.ok(INSTALL + " && mkdir -p /etc/iptables /etc/ufw && echo 'fake-metadata' >/etc/ufw/mine")
    for file, command in SAVED.items():
        box.ok("%s >%s" % (command, file))
    for action in ("", " --purge"):
        before = {file: box.read(file) for file in SAVED}
        said = box.ok("sh fake-metadata/uninstall.sh" + action)
        assert re.findall(r"^(\S+) has packet rules .* next boot: remove them", said, re.M) == \
            sorted(SAVED), said
        assert {file: box.read(file) for file in SAVED} == before
