"""Where the service listens, who may come in there, and what it says when an address is lost."""
import os
import re
import shutil
import socket
import subprocess

import pytest

import fake_metadata
from service import TTL_HEADER, Service, free_port, wait_for, with_limits
from wire import Wire, get

INSTANCE_ID = "/latest/meta-data/instance-id"
NEEDS = ["unshare", "nsenter", "ip", "iptables", "ip6tables", "curl"]
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, NEEDS)),
    reason="needs root, and " + ", ".join(NEEDS))


def answers(host, port):
    """Tell whether a service answers at an address."""
    try:
        with socket.create_connection((host, port), timeout=5) as client:
            client.sendall(get(path=INSTANCE_ID))
            return client.recv(65536).startswith(b"HTTP/1.1 200 ")
    except ConnectionRefusedError:
        return False


def listening(log):
    """List what a log says of listening, in order."""
    return re.findall(r"fake-metadata: ((?:no longer )?listening on \S+|bound to [^:]+)", log)


# ---------------------------------------------------------------- bind

def test_several_addresses(serve):
    """It listens at each address of bind, and the log names each."""
    one, other = free_port(), free_port()
    service = serve("[server]\nbind = 127.0.0.1:%d, [::1]:%d, 127.0.0.2:%d\n" % (one, one, other),
                    bind=None)

    wait_for(lambda: len(listening(service.log())) == 3, what="the last address in the log")

    assert listening(service.log()) == [
        "listening on http://127.0.0.1:%d/" % one, "listening on http://[::1]:%d/" % one,
        "listening on http://127.0.0.2:%d/" % other]
    assert answers("127.0.0.1", one) and answers("::1", one) and answers("127.0.0.2", other)
    assert not answers("127.0.0.2", one)


# What bind was, what it is after a reload, and where it answers then, and no more. %d is one port.
MOVES = {
    "one more": ("127.0.0.1:%d", "127.0.0.1:%d, [::1]:%d", ["127.0.0.1", "::1"], []),
    "one less": ("127.0.0.1:%d, [::1]:%d", "[::1]:%d", ["::1"], ["127.0.0.1"]),
    "another order": ("127.0.0.1:%d, [::1]:%d", "[::1]:%d, 127.0.0.1:%d", ["::1", "127.0.0.1"], []),
    "to all": ("127.0.0.1:%d", "0.0.0.0:%d", ["127.0.0.1", "127.0.0.2"], ["::1"]),
    "from all": ("0.0.0.0:%d", "127.0.0.2:%d", ["127.0.0.2"], ["127.0.0.1"]),
    "to both families": ("127.0.0.1:%d", "[::]:%d", ["127.0.0.1", "::1"], []),
    "one for each family": ("[::]:%d", "[::]:%d, 127.0.0.2:%d", ["::1", "127.0.0.2"],
                            ["127.0.0.1"]),
}


@pytest.mark.parametrize("name", MOVES)
def test_reload_moves(serve, name):
    """A reload closes and opens ports."""
    before, after, there, gone = MOVES[name]
    port = free_port()
    service = serve("[server]\nbind = %s\n" % before.replace("%d", str(port)), bind=None)

    service.reload("[server]\nbind = %s\n" % after.replace("%d", str(port)))

    assert all(answers(host, port) for host in there)
    assert not any(answers(host, port) for host in gone)


def test_reload_tells_of_moves(serve):
    """The log names what is new and what is gone, and warns of an address that others reach."""
    one, other = free_port(), free_port()
    service = serve("[server]\nbind = 127.0.0.1:%d\n" % one, bind=None)

    service.reload("[server]\nbind = 0.0.0.0:%d\n" % other)

    assert listening(service.log()) == [
        "listening on http://127.0.0.1:%d/" % one, "no longer listening on http://127.0.0.1:%d/"
        % one, "bound to 0.0.0.0", "listening on http://0.0.0.0:%d/" % other]


def sockets_of(service):
    """List the sockets that a service has."""
    folder = "/proc/%d/fd/" % service.process.pid
    return {os.readlink(folder + name) for name in os.listdir(folder)
            if os.readlink(folder + name).startswith("socket:")}


def test_what_stays_is_not_touched(serve):
    """A port that stays is the same socket; connections stay open, of a port that goes as well."""
    stays, goes, comes = free_port(), free_port(), free_port()
    service = serve("[server]\nbind = 127.0.0.1:%d, 127.0.0.1:%d\n" % (stays, goes), bind=None)
    service.port = goes
    before = sockets_of(service)
    with Wire(service) as client:
        client.send(get("Connection: keep-alive", path=INSTANCE_ID))
        client.answer()

        service.reload("[server]\nbind = 127.0.0.1:%d, 127.0.0.1:%d\n" % (comes, stays))

        assert len(before & sockets_of(service)) == len(before) - 1
        client.send(get(path=INSTANCE_ID))
        assert client.answer().status == 200
    assert answers("127.0.0.1", stays) and answers("127.0.0.1", comes)
    assert not answers("127.0.0.1", goes)


def test_reload_to_a_port_that_is_taken(serve):
    """What cannot be had is refused as a whole, and the log says why; all goes on as before."""
    mine, other = free_port(), free_port()
    text = "[server]\nbind = 127.0.0.1:%d\n" % mine
    service = serve(text + "[tags]\nName = before\n", bind=None)
    with socket.socket() as impostor:
        impostor.bind(("127.0.0.1", 0))
        impostor.listen()
        taken = impostor.getsockname()[1]

        service.reload("[server]\nbind = 127.0.0.1:%d, 127.0.0.1:%d\n" % (other, taken))

        log = service.log()
        assert "not reloaded, the old configuration stays: cannot listen on 127.0.0.1 port %d: " \
            "Address already in use" % taken in log
        assert answers("127.0.0.1", mine) and not answers("127.0.0.1", other)
    service.reload(text)
    assert answers("127.0.0.1", mine)


def test_reload_without_bind(serve):
    """Without bind it goes where it would without a configuration."""
    assert fake_metadata.load_config([])["server"]["bind"] == [("127.0.0.1", 8000)]


def test_bind_of_the_command_line_stays(serve):
    """A reload does not move away from the address of the command line."""
    service = serve("")

    service.reload("[server]\nbind = 127.0.0.1:%d\n" % free_port())

    assert service.get(INSTANCE_ID)[0] == 200


@pytest.mark.parametrize("reload", [False, True], ids=["start", "reload"])
def test_waiting_connections_are_served(serve, reload):
    """Who has come to a port that closes is served."""
    one, other = free_port(), free_port()
    service = serve("[server]\nbind = 127.0.0.1:%d\n" % one, bind=None)
    clients = [socket.create_connection(("127.0.0.1", one), timeout=5) for _ in range(50)]

    service.reload("[server]\nbind = 127.0.0.1:%d\n" % (other if reload else one))

    for client in clients:
        with client:
            client.sendall(get(path=INSTANCE_ID))
            assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


# ---------------------------------------------------------------- a network of its own

class Network:
    """A box and a neighbour, two network namespaces joined by a cable."""

    BOX, NEIGHBOUR = "10.9.0.1", "10.9.0.2"

    def __init__(self):
        self.box, self.neighbour = (
            subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep 1000"],
                             stdout=subprocess.PIPE) for _ in range(2))
        for namespace in (self.box, self.neighbour):
            namespace.stdout.readline()
        self.on(self.box, """
            ip link add eth0 type veth peer name eth0 netns %d
            ip addr add %s/24 dev eth0
            ip -6 addr add fd09::1/64 dev eth0 nodad
            ip link set lo up
            ip link set eth0 up
            ip addr add 169.254.169.254/32 dev lo scope host
            ip -6 addr add fd00:ec2::254/128 dev lo nodad
        """ % (self.neighbour.pid, self.BOX))
        self.on(self.neighbour, """
            ip addr add %s/24 dev eth0
            ip -6 addr add fd09::2/64 dev eth0 nodad
            ip link set lo up
            ip link set eth0 up
            ip route add default via %s
            ip -6 route add default via fd09::1
        """ % (self.NEIGHBOUR, self.BOX))

    def inside(self, namespace):
        """Return the command that runs its arguments there."""
        return ["nsenter", "--target", str(namespace.pid), "--net"]

    def on(self, namespace, script):
        """Run a script; return what it prints."""
        return subprocess.run(
            self.inside(namespace) + ["sh", "-ec", script], stdout=subprocess.PIPE, timeout=60,
            check=True, universal_newlines=True).stdout

    def curl(self, namespace, url, *options):
        """Return curl's exit code and what it received."""
        done = subprocess.run(
            self.inside(namespace) + ["curl", "--silent", "--max-time", "2", *options, url],
            stdout=subprocess.PIPE, timeout=60, universal_newlines=True)
        return done.returncode, done.stdout

    def close(self):
        for namespace in (self.box, self.neighbour):
            namespace.kill()
            namespace.wait()
            namespace.stdout.close()


@pytest.fixture
def network():
    network = Network()
    yield network
    network.close()


@pytest.fixture
def serve_on(network, tmp_path):
    """Start a service on the box: serve_on(config, LIMIT=...)."""
    services = []

    def start(config, **limits):
        within = network.inside(network.box) + (with_limits(**limits) if limits else [])
        services.append(Service(tmp_path, config, bind=None, within=within))
        return services[-1]

    yield start
    for service in services:
        service.stop()


IMDS = "http://169.254.169.254/latest/"
IMDS6 = "http://[fd00:ec2::254]/latest/"
PUT = ("--request", "PUT", "--header", TTL_HEADER + ": 60")
BOTH = ("[server]\nbind = 127.0.0.1:8000, [::1]:8000, 169.254.169.254:8000, [fd00:ec2::254]:8000\n"
        "addresses = 169.254.169.254, fd00:ec2::254\n")
REDIRECT = "iptables -t nat -I OUTPUT -d 169.254.169.254 -p tcp --dport 80 -j REDIRECT " \
    "--to-ports 8000\n" \
    "ip6tables -t nat -I OUTPUT -d fd00:ec2::254 -p tcp --dport 80 -j REDIRECT --to-ports 8000\n"
LET_IN = "iptables -t nat -I PREROUTING -i eth0 -d 169.254.169.254 -p tcp --dport 80 " \
    "-j DNAT --to-destination 169.254.169.254:8000\n" \
    "ip6tables -t nat -I PREROUTING -i eth0 -d fd00:ec2::254 -p tcp --dport 80 " \
    "-j DNAT --to-destination [fd00:ec2::254]:8000\n"


@needs_root
@pytest.mark.parametrize("bind", ["127.0.0.1:8000", "0.0.0.0:8000"], ids=["loopback", "all"])
def test_neighbour_that_is_led_to_loopback(network, serve_on, bind):
    """Where route_localnet and a rule lead a neighbour to loopback, it gets nothing; we do."""
    service = serve_on("[server]\nbind = %s\n" % bind)
    network.on(network.box, """
        echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
        iptables -t nat -A PREROUTING -d 169.254.169.254 -p tcp --dport 80 \
            -j DNAT --to-destination 127.0.0.1:8000
    """ + REDIRECT)

    assert network.curl(network.neighbour, IMDS) in [(52, ""), (56, "")]
    wait_for(lambda: "10.9.0.2: refused: not from this box" in service.log())
    code, text = network.curl(network.box, IMDS)
    assert code == 0 and "meta-data" in text
    for host in ("127.0.0.1", "10.9.0.1" if bind == "0.0.0.0:8000" else "127.0.0.1"):
        assert network.curl(network.box, "http://%s:8000/latest/" % host)[0] == 0


@needs_root
@pytest.mark.parametrize("limit, expected, packets", [(1, 28, 0), (2, 0, 1), (3, 0, 2)],
                         ids=["1", "2", "3"])
@pytest.mark.parametrize("url, match", [(IMDS, "iptables {0} -m ttl --ttl-eq"),
                                        (IMDS6, "ip6tables {0} -m hl --hl-eq")],
                         ids=["IPv4", "IPv6"])
def test_hop_limit_of_a_container(network, serve_on, url, match, limit, expected, packets):
    """Who comes in from elsewhere is one hop away: the limit less one, and silence for none."""
    service = serve_on(BOTH + "[metadata-options]\nhttp-put-response-hop-limit = %d\n" % limit)
    rule = match.format("{0} INPUT -p tcp --sport 80")
    network.on(network.box, LET_IN + REDIRECT)
    network.on(network.neighbour, rule.format("-A") + " %d" % max(packets, 1))

    code, token = network.curl(network.neighbour, url + "api/token", *PUT)

    assert (code, len(token)) == (expected, 0 if expected else 56)
    seen = network.on(network.neighbour, match.split()[0] + " -L INPUT -v -n -x").splitlines()[-1]
    assert bool(int(seen.split()[0])) == bool(packets)
    client = "10.9.0.2" if url == IMDS else "fd09::2"
    silent = '%s "PUT /latest/api/token HTTP/1.1" 0 0' % client
    assert packets or wait_for(lambda: silent in service.log(), what="the silence in the log")
    assert network.curl(network.neighbour, url + "meta-data/mac")[0] == 0
    code, token = network.curl(network.box, url + "api/token", *PUT)
    assert (code, len(token)) == (0, 56)


@needs_root
@pytest.mark.parametrize("options, allowed", [
    ("", True), ("http-protocol-ipv6 = enabled", True), ("http-protocol-ipv6 = disabled", False)],
    ids=["default", "enabled", "disabled"])
def test_http_protocol_ipv6(network, serve_on, options, allowed):
    """IMDS over IPv6 is there where its address is, unless it is disabled; IPv4 always."""
    service = serve_on(BOTH + "[metadata-options]\n" + options)
    network.on(network.box, REDIRECT)

    code, text = network.curl(network.box, IMDS6)

    assert code == 0 and ("meta-data" in text) == allowed
    if not allowed:
        wait_for(lambda: "http-protocol-ipv6 is disabled" in service.log(), what="the reason")
    assert "meta-data" in network.curl(network.box, IMDS)[1]


@pytest.mark.parametrize("text, expected", [
    ("", True),
    ("[server]\naddresses = 169.254.169.254", False),
    ("[server]\naddresses = 169.254.169.254, fd00:ec2::254", True),
    ("[server]\naddresses = fd00:ec2::254\n[metadata-options]\nhttp-protocol-ipv6 = disabled",
     False),
    ("[server]\naddresses = 169.254.169.254\n[metadata-options]\nhttp-protocol-ipv6 = enabled",
     True)], ids=["by hand", "box", "box with IPv6", "disabled", "enabled"])
def test_default_of_http_protocol_ipv6(make_metadata, text, expected):
    """Where nothing is said the addresses of the box decide; by hand, where it is bound."""
    assert make_metadata(text).serves_ipv6 is expected


@needs_root
def test_container_credentials_over_ipv6(network, serve_on):
    """EKS hands out credentials over IPv6 whatever IMDS does."""
    serve_on(BOTH.replace("addresses = 169.254.169.254, fd00:ec2::254",
                          "addresses = 169.254.169.254, fd00:ec2::23"))
    network.on(network.box, "ip -6 addr add fd00:ec2::23/128 dev lo nodad\n"
               + REDIRECT.replace("fd00:ec2::254", "fd00:ec2::23"))

    code, text = network.curl(network.box, "http://[fd00:ec2::23]/v1/credentials")

    assert code == 0 and '"AccessKeyId"' in text


@needs_root
def test_instance_and_role_of_a_container(network, serve_on):
    """Who comes in from elsewhere is told apart by its address, over IPv4 and IPv6."""
    service = serve_on(BOTH + "log-clients = yes\n[role A]\nfrom = 10.9.0.2, fd09::/64\n"
                       "[instance web]\nfrom = 10.9.0.0/24, fd09::/64\neach = yes\n")
    network.on(network.box, LET_IN + REDIRECT)
    roles = "meta-data/iam/security-credentials/"

    assert network.curl(network.neighbour, IMDS + "meta-data/local-ipv4") == (0, "10.9.0.2")
    assert network.curl(network.neighbour, IMDS6 + "meta-data/ipv6") == (0, "fd09::2")
    for url in (IMDS, IMDS6):
        assert network.curl(network.neighbour, url + roles) == (0, "A")
        assert network.curl(network.box, url + roles) == (0, "BaseIAMRole")
    wait_for(lambda: service.log().count(" user=") == 2, what="the users in the log")
    lines = [line for line in service.log().splitlines() if "GET /" in line]
    assert [" user=" in line for line in lines] == [False, False, False, True, False, True]


@needs_root
def test_address_that_comes_later(network, serve_on):
    """It listens at an address of ours that is not there yet, and answers when it is."""
    network.on(network.box, "ip addr del 169.254.169.254/32 dev lo")
    serve_on(BOTH)
    network.on(network.box, "ip addr add 169.254.169.254/32 dev lo scope host\n" + LET_IN)

    assert network.curl(network.neighbour, IMDS)[0] == 0


# ---------------------------------------------------------------- what becomes of the addresses

GONE = "169.254.169.254 is no longer an address of this box; remedy: service fake-metadata"
ASTRAY = "169.254.169.254 no longer leads to this service: its redirect is gone"
BACK = "169.254.169.254 leads to this service again"


@needs_root
def test_watch(network, serve_on):
    """The log says once what is lost, and once when it is back."""
    network.on(network.box, REDIRECT)
    service = serve_on(BOTH, WATCH_SECONDS=0.2, PROBE_SECONDS=0.1)
    steps = [
        ("iptables -t nat -F", ASTRAY),
        (REDIRECT, BACK),
        ("ip addr del 169.254.169.254/32 dev lo", GONE),
        ("ip addr add 169.254.169.254/32 dev lo scope host", BACK),
        ("iptables -I OUTPUT -d 169.254.0.0/16 -j DROP", ASTRAY),
        ("iptables -D OUTPUT -d 169.254.0.0/16 -j DROP", BACK),
        ("iptables -t nat -I OUTPUT -d 169.254.169.254 -p tcp -j REDIRECT --to-ports 9", ASTRAY),
    ]
    for count, (script, words) in enumerate(steps, 1):
        network.on(network.box, script)
        wait_for(lambda words=words: service.log().rstrip().split("Z ")[-1].startswith(
            "fake-metadata: " + words), what=words)
        assert len(re.findall("169.254.169.254 (?:is no|no longer|leads)", service.log())) == count
    assert "fd00:ec2::254 " not in service.log()
    assert '" 400' not in service.log() and '" 408' not in service.log()


@needs_root
def test_watch_follows_the_configuration(network, serve_on):
    """What a reload takes away is watched no more, what it adds is."""
    service = serve_on(BOTH, WATCH_SECONDS=0.2, PROBE_SECONDS=0.1)
    wait_for(lambda: "fd00:ec2::254 no longer leads to this service" in service.log())

    service.reload(BOTH.replace(", fd00:ec2::254\n", ", 169.254.170.2\n"))

    wait_for(lambda: "169.254.170.2 is no longer an address of this box" in service.log())
    assert service.log().count("fd00:ec2::254 ") == 1


def test_no_watch_by_hand(serve):
    """A service that is told its address by the command line looks at no other."""
    service = serve("[server]\naddresses = 169.254.169.254\n",
                    within=with_limits(WATCH_SECONDS=0.05, PROBE_SECONDS=0.05))
    service.reload()
    service.get(INSTANCE_ID)

    assert "169.254.169.254" not in service.log()


@pytest.mark.parametrize("host, expected", [
    ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("192.0.2.1", False),
    ("2001:db8::1", False)])
def test_is_own(host, expected):
    """Loopback is this machine's; addresses of documentation are nobody's."""
    assert fake_metadata.is_own(host) is expected


@pytest.mark.parametrize("address, expected", [
    (("127.0.0.1", 80), "127.0.0.1"), (("::ffff:10.0.0.7", 80, 0, 0), "10.0.0.7"),
    (("fd00::7", 80, 0, 0), "fd00::7")])
def test_plain_address(address, expected):
    """An IPv4 client of an IPv6 socket is an IPv4 client."""
    assert fake_metadata.plain_address(address) == expected
