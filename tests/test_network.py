"""The network of a box: addresses, packet rules, containers, neighbours, and whoever flushes them.

Few boxes, and much on each. They need root and debootstrap.
"""
import contextlib
import subprocess

import pytest

from box import Box, Neighbour, difference, why_not
from service import wait_for
from test_box import (
    AS_NOBODY,
    CONFIG,
    GET,
    INIT,
    INITS,
    INSTALL,
    PURGE,
    RULE,
    RULES,
    SERVICE,
    UNINSTALL,
    configure,
    legacy,
    load,
    serves,
)

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "")

DEFAULTS = "/etc/default/fake-metadata"
BOX_CONFIG = "/run/fake-metadata/box.conf"
STATUS = INIT + "network-status"
ALL_ADDRESSES = "169.254.169.254 fd00:ec2::254 169.254.170.2 169.254.170.23 fd00:ec2::23"
EVERYTHING = "CONTAINERS='docker0 br-+' ADDRESSES='%s' " % ALL_ADDRESSES
BACKENDS = ("nft", "legacy")
PAIRS = [(init, backend) for init in INITS for backend in BACKENDS]

# What a neighbour would wish the box to be.
CARELESS = """
for name in all default lan0; do
    folder=/proc/sys/net/ipv4/conf/$name
    echo 1 | tee $folder/route_localnet $folder/accept_local >/dev/null
    echo 0 | tee $folder/rp_filter $folder/arp_ignore >/dev/null
done
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
"""


@pytest.fixture
def boot(tmp_path):
    """Boot boxes with a copy of the product: boot(kind); all gone at the end of the test."""
    with contextlib.ExitStack() as boxes:
        def boot_one(kind, backend="nft"):
            box = boxes.enter_context(Box(kind, tmp_path))
            box.copy_product()
            if backend == "legacy":
                legacy(box)
                box.ok("update-alternatives --set ip6tables /usr/sbin/ip6tables-legacy")
            return box
        yield boot_one


class Container(Neighbour):
    """A container or VM behind a bridge of the box, until `close()`."""

    def __init__(self, box, bridge):
        self.process = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE,
                                        stdout=subprocess.DEVNULL)
        wait_for(self._apart, what="a network namespace")
        self.ok("ip link set lo up")
        self.ok("ip link add eth0 type veth peer name veth0 netns %d" % box.pid)
        self.ok("ip link set eth0 up && ip addr add 172.30.0.2/24 dev eth0 && "
                "ip -6 addr add fd00:cafe::2/64 dev eth0 nodad")
        box.ok("ip link add {0} type bridge && ip link set veth0 master {0} && "
               "ip addr add 172.30.0.1/24 dev {0} && "
               "ip -6 addr add fd00:cafe::1/64 dev {0} nodad && "
               "ip link set veth0 up && ip link set {0} up".format(bridge))
        self.ok("ip route add default via 172.30.0.1 && ip -6 route add default via fd00:cafe::1")

    def ok(self, command):
        result = self.run(command)
        assert result.code == 0, (command, result)
        return result.out

    def serves(self, addresses=ALL_ADDRESSES):
        """Tell whether it is served at port 80 of some addresses."""
        return all(self.run(GET + url(address) + "latest/meta-data/").code == 0
                   for address in addresses.split())


def url(address, port=80):
    """Return a URL in quotes, for curl."""
    host = "[%s]" % address if ":" in address else address
    return "'http://%s:%d/'" % (host, port)


def sneak(neighbour, box):
    """Return what a neighbour got from the box at any address and port of ours; it tries all."""
    box.ok(CARELESS)
    box.ok("ip -6 addr replace 2001:db8::2/64 dev lan0 nodad")
    neighbour.run("ip -6 addr replace 2001:db8::1/64 dev lan0 nodad")
    for address in ALL_ADDRESSES.split():
        gateway = "2001:db8::2" if ":" in address else neighbour.BOX
        neighbour.run("ip route replace %s via %s" % (address, gateway))
    neighbour.run("echo 1 | tee /proc/sys/net/ipv4/conf/*/route_localnet; "
                  "ip addr flush dev lo; ip route replace 127.0.0.1 via " + neighbour.BOX)
    got = []
    for address in ALL_ADDRESSES.split() + [neighbour.BOX, "2001:db8::2", "127.0.0.1"]:
        for port in (80, 8000):
            result = neighbour.run("curl -s --max-time 2 " + url(address, port))
            if result.out or result.code not in (7, 28, 52, 56):
                got.append((address, port, result))
    return got


def ours(box):
    """Return all rules of ours on a box, in all backends."""
    return box.ok("for tool in iptables-nft iptables-legacy ip6tables-nft ip6tables-legacy; do "
                  "$tool-save 2>/dev/null; done | grep -e '--comment \"*fake-metadata' || true"
                  ).splitlines()


def set_defaults(box, *lines):
    box.write(DEFAULTS, "".join(line + "\n" for line in lines), "640")
    box.ok("chgrp fake-metadata " + DEFAULTS)


@pytest.mark.parametrize("init, backend", PAIRS)
def test_containers(boot, init, backend):
    """Containers are served at every address, LAN neighbours at none, whatever happens to a box."""
    box = boot(init, backend)
    before = box.snapshot()
    box.ok(EVERYTHING + INSTALL)
    box.ok(STATUS + " && " + SERVICE + "check")

    with Container(box, "br-test") as container, Neighbour(box) as neighbour:
        assert container.serves()
        assert sneak(neighbour, box) == []
        for harm in ("iptables -t nat -F", "ip6tables -F", "ip addr del fd00:ec2::23/128 dev lo",
                     "iptables -t nat -I OUTPUT -p tcp -j RETURN",
                     "iptables -t nat -I PREROUTING -p tcp -j RETURN",
                     "ip6tables -I INPUT -p tcp -j DROP",
                     "iptables-%s -t nat -A %s" % (
                         BACKENDS[BACKENDS.index(backend) - 1], RULE)):
            box.ok(harm)
            result = box.run(STATUS)
            assert result.code == 1 and result.out, (harm, result)
            box.ok(INIT + "network-up && " + STATUS)
            assert container.serves(), harm
        box.ok("iptables -t nat -D OUTPUT -p tcp -j RETURN && "
               "iptables -t nat -D PREROUTING -p tcp -j RETURN && "
               "ip6tables -D INPUT -p tcp -j DROP")
        box.ok(SERVICE + "reload && " + SERVICE + "restart")
        assert container.serves() and serves(box)
        box.ok("ip link del br-test")
    box.reboot()
    with Container(box, "br-other") as container, Neighbour(box) as neighbour:
        assert container.serves() and serves(box)
        assert sneak(neighbour, box) == []
        box.ok("ip link del br-other")
    box.reboot()
    box.ok("rm -rf /run/fake-metadata; " + PURGE)
    assert difference(before, box.snapshot()) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_reloads_lose_no_request(boot, backend):
    """While requests are made all the time, 20 reloads, also with other addresses, fail none."""
    box = boot("sysvinit", backend)
    box.ok(EVERYTHING + INSTALL)
    with load(box, 2) as report:
        for number in range(20):
            addresses = (ALL_ADDRESSES, "169.254.169.254 169.254.170.2")[number // 5 % 2]
            set_defaults(box, "ADDRESSES='%s'" % addresses)
            box.ok(SERVICE + "reload")
    assert report["failures"] == [] and len(report["answered"]) > 100


@pytest.mark.parametrize("init", INITS)
def test_settings_that_change(boot, init):
    """A reload or another install applies PORT, ADDRESSES and CONTAINERS; until then none does."""
    box = boot(init)
    before = box.snapshot()
    box.ok(INSTALL)
    assert len(ours(box)) == 2
    set_defaults(box, "PORT=8123", "CONTAINERS='br-+'",
                 "ADDRESSES=169.254.169.254,fd00:ec2::254")
    box.ok("iptables -t nat -F && " + INIT + "network-up && " + STATUS)
    assert serves(box) and len(ours(box)) == 2

    box.ok(SERVICE + "reload && " + STATUS + " && " + SERVICE + "check")
    assert box.read(BOX_CONFIG).splitlines()[1:] == [
        "[server]",
        "bind = 127.0.0.1:8123, 169.254.169.254:8123, [::1]:8123, [fd00:ec2::254]:8123",
        "addresses = 169.254.169.254, fd00:ec2::254", "log-clients = yes"]
    assert box.ok("stat -c '%U:%G %a' " + BOX_CONFIG) == "root:fake-metadata 640\n"
    with Container(box, "br-test") as container:
        assert container.serves("169.254.169.254 fd00:ec2::254")
        assert not container.serves("169.254.170.2")
    assert len(ours(box)) == 12 and not [rule for rule in ours(box) if "8000" in rule]

    set_defaults(box)
    box.ok("ip link del br-test; CONTAINERS=docker0 PORT=8001 " + INSTALL)
    assert serves(box) and "fd00" not in box.ok("ip addr show dev lo")
    assert len(ours(box)) == 6 and [rule for rule in ours(box) if "-i docker0" in rule]
    box.ok(INSTALL + " && " + STATUS)
    assert "-i docker0" in "".join(ours(box))
    box.ok("CONTAINERS= PORT=8000 " + INSTALL)
    assert serves(box) and len(ours(box)) == 2

    box.ok("ip link add docker0 type bridge && ip link add other0 type bridge")
    assert "note      containers and VMs behind these bridges have no access: docker0; " in (
        box.ok(SERVICE + "check"))
    set_defaults(box, "CONTAINERS=docker0")
    assert "have no access" not in box.ok(SERVICE + "reload && " + SERVICE + "check")
    box.ok("ip link del docker0 && ip link del other0")
    box.ok(PURGE)
    assert difference(before, box.snapshot()) == []


def test_address_that_was_there(boot):
    """Of several addresses those that were there before stay at a purge, and at a change."""
    box = boot("sysvinit")
    box.ok("ip addr add 169.254.170.2/32 dev lo")
    before = box.snapshot()
    box.ok(EVERYTHING + INSTALL)
    set_defaults(box, "ADDRESSES=169.254.169.254")
    box.ok(SERVICE + "reload")
    assert "169.254.170.2/32" in box.ok("ip addr show dev lo")
    assert "169.254.170.23/32" not in box.ok("ip addr show dev lo")
    box.ok(PURGE)
    assert difference(before, box.snapshot()) == []


REFUSED = {
    "no main address": ("ADDRESSES=fd00:ec2::254", "169.254.169.254 must be"),
    "no address": ("ADDRESSES=", "169.254.169.254 must be"),
    "other address": ("ADDRESSES=169.254.169.254,192.0.2.1", "192.0.2.1 is not one of"),
    "loopback": ("CONTAINERS='docker0 lo'", "lo does not name"),
    "all interfaces": ("CONTAINERS=+", "+ does not name"),
    "pattern": ("CONTAINERS='*'", "* does not name"),
    "option": ("CONTAINERS='br-+ -j'", "-j does not name"),
    "plus within": ("CONTAINERS=b+r", "b+r does not name"),
    "long name": ("CONTAINERS=abcdefghijklmnop", "abcdefghijklmnop does not name"),
}


def test_settings_refused(boot):
    """Bad ADDRESSES and CONTAINERS are refused by install, reload and start, with one line."""
    box = boot("sysvinit")
    before = box.snapshot()
    for line, words in REFUSED.values():
        result = box.run(line + " " + INSTALL)
        assert result.code == 1 and words in result.err, (line, result)
        assert len(result.err.splitlines()) == 1, result
    assert difference(before, box.snapshot()) == []
    box.ok(INSTALL)
    before = ours(box)
    for line, words in REFUSED.values():
        set_defaults(box, line)
        for action in ("reload", "restart", "start"):
            result = box.run(SERVICE + action)
            assert result.code == 6 and words in result.err, (line, action, result)
    assert ours(box) == before and serves(box)


@pytest.mark.parametrize("init", INITS)
def test_reload_that_is_not_taken(boot, init):
    """Where the service cannot listen, or refuses the file, settings and network stay as before."""
    box = boot(init)
    box.ok(INSTALL)
    before = ours(box), box.read(BOX_CONFIG)
    box.ok("cd / && (exec python3 -m http.server --bind 127.0.0.1 8123 "
           ">/dev/null 2>&1 </dev/null & echo $! >/root/pid); "
           "until ss -Hltn | grep -q :8123; do sleep 0.1; done")
    set_defaults(box, "PORT=8123", "CONTAINERS=br-+", "ADDRESSES='%s'" % ALL_ADDRESSES)
    assert box.run(SERVICE + "reload").code == 1
    assert (ours(box), box.read(BOX_CONFIG)) == before and serves(box)
    assert "fd00" not in box.ok("ip addr show dev lo")

    box.ok("kill $(cat /root/pid)")
    configure(box, "nonsense")
    assert box.run(SERVICE + "reload").code == 1
    assert (ours(box), box.read(BOX_CONFIG)) == before and serves(box)

    box.ok(">" + CONFIG)
    box.ok("while ss -Hltn | grep -q :8123; do sleep 0.1; done; " + SERVICE + "reload")
    assert serves(box) and len(ours(box)) == 27


ADMIN = """\
# fake-metadata: as it is shipped, with lines of an admin
*nat
:PREROUTING ACCEPT [0:0]
:MINE - [0:0]
-A OUTPUT -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -m comment --comment fake-metadata """ """\
-j REDIRECT --to-ports 8000
-A PREROUTING -p tcp --dport 81 -j MINE
-A MINE -p tcp -j REDIRECT --to-ports 82
COMMIT
*filter
:FORWARD ACCEPT [0:0]
-A FORWARD -p udp -m comment --comment "it's \\"mine\\"; `touch /root/harm`" -j ACCEPT
-I INPUT 1 -p udp --dport 9 -j DROP
-A INPUT -p udp --dport 9
COMMIT
*mangle
-A POSTROUTING -p tcp --dport 9 -j MARK --set-mark 7
COMMIT
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_lines_of_the_admin(boot, backend):
    """What an admin adds to the file of rules is there once, and gone with it; nothing else is."""
    box = boot("sysvinit", backend)
    box.ok("iptables -P FORWARD DROP; iptables -t nat -A OUTPUT -p tcp --dport 81 -j ACCEPT; "
           "iptables -N THEIRS; iptables -A FORWARD -j THEIRS")
    before = box.snapshot()
    box.ok(INSTALL)
    box.write(RULES, ADMIN)
    for command in (SERVICE + "reload", SERVICE + "restart", INIT + "network-up", STATUS,
                    "iptables -t mangle -F; IFACE=lo /etc/network/if-up.d/fake-metadata",
                    SERVICE + "start", "ifdown --force lo; ifup lo"):
        box.ok(command)
        assert len(ours(box)) == 8, command
        box.ok(STATUS)
    assert serves(box)
    assert "-P FORWARD DROP" in box.ok("iptables -S FORWARD")
    assert "-A OUTPUT -d 169" in box.ok("iptables -t nat -S OUTPUT").splitlines()[1]
    assert box.ok("iptables-save -t nat | grep -c 'MINE -p tcp'") == "1\n"
    box.ok("test ! -e /root/harm")

    box.write(RULES, ADMIN.replace(":MINE", "#").replace("-A MINE", "#").replace(
        "-A PREROUTING", "#"))
    box.ok(SERVICE + "reload && ! iptables -t nat -S MINE")
    assert len(ours(box)) == 6
    box.write(RULES, ADMIN)
    box.ok("%s reload && rm -r /run/fake-metadata && %s" % (SERVICE, PURGE))
    assert difference(before, box.snapshot()) == []


LISTEN = ("(cd / && exec %s python3 -m http.server --bind 127.0.0.1 8000 "
          ">/dev/null 2>&1 </dev/null & echo $! >/root/pid); "
          "until ss -Hltn | grep -q :8000; do sleep 0.1; done")


@pytest.mark.parametrize("init", INITS)
def test_other_user_at_our_port(boot, init):
    """While the service is down no other user can be the metadata service of this box.

    At its port alone that user's program may be found, by whoever asks for that.
    """
    box = boot(init)
    box.ok(INSTALL + " && " + SERVICE + "stop && " + LISTEN % AS_NOBODY)
    assert box.run("curl -sS --max-time 15 http://127.0.0.1:8000/").code == 0
    result = box.run("curl -sS --max-time 2 http://169.254.169.254/")
    assert (result.code, result.out) == (28, ""), result
    assert box.run(SERVICE + "start").code == 1
    box.ok("kill $(cat /root/pid) && " + SERVICE + "restart")
    assert serves(box)


@pytest.mark.parametrize("unit", ["nftables", "firewalld"])
def test_flush_by_a_firewall(boot, unit):
    """Whatever nftables.service and firewalld.service do under systemd, ours is back after it."""
    box = boot("systemd")
    if unit == "firewalld":  # a stand-in: the real one needs twenty packages
        box.write("/etc/systemd/system/firewalld.service", """[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'iptables -t nat -F; iptables -F'
ExecReload=/bin/sh -c 'iptables -t nat -F; iptables -F'
ExecStop=/bin/sh -c 'iptables -t nat -F; iptables -F'
[Install]
WantedBy=multi-user.target
""")
    box.ok("CONTAINERS=br-+ " + INSTALL)
    expected = ours(box)
    for action in ("start", "restart", "reload", "stop", "start"):
        box.ok("systemctl %s %s" % (action, unit))
        assert ours(box) == expected, action
        box.ok(STATUS)
    box.ok("systemctl enable " + unit)
    box.reboot()
    assert ours(box) == expected and serves(box)
    assert "cycle" not in box.ok("journalctl -b --no-pager")
    assert box.run("systemd-analyze verify fake-metadata.service").err == ""
    box.ok(UNINSTALL)
    assert ours(box) == []


def test_file_without_redirect(boot):
    """Where the admin has emptied the file of rules, or deleted it, that is said."""
    box = boot("sysvinit")
    box.ok(INSTALL)
    for harm in (">", "rm "):
        box.ok(harm + RULES)
        result = box.run(STATUS)
        assert (result.code, result.err) == (1, "") and RULES + " has no redirect" in result.out
