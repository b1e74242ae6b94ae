"""Who asks: the Unix user of a client, in the log and read back from it."""
import gzip
import json
import os
import shutil
import socket
import subprocess
import sys

import pytest

import fake_metadata
from fake_metadata import Asker, Asking
from service import CREDENTIALS, PROGRAM, check_lines, wait_for

NEEDS = ["unshare", "setpriv", "ip", "iptables", "ip6tables", "curl"]
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, NEEDS)),
    reason="needs root, and " + ", ".join(NEEDS))

LOG_CLIENTS = "[server]\nlog-clients = yes\n"


# ---------------------------------------------------------------- what is logged

def test_nothing_of_it_unless_asked_for(serve):
    """By default a line of the log ends with the user agent."""
    service = serve("")
    service.get(CREDENTIALS)

    assert wait_for(lambda: CREDENTIALS in service.log())
    assert "user=" not in service.log() and '" v1' not in service.log()


def test_client_in_the_log(serve):
    """Version and user stand behind the user agent, the reason of a refusal behind them."""
    service = serve(LOG_CLIENTS)
    token = service.token()
    service.get(CREDENTIALS, **{"User-Agent": 'x" v2 user=root'})
    service.get(CREDENTIALS, token=token)
    service.get("/latest/", Host="evil.example")

    lines = wait_for(lambda: "evil" in service.log() and check_lines(service.log()))
    me = fake_metadata.pwd.getpwuid(os.geteuid()).pw_name
    ends = [line.rpartition('" ')[2] for line in lines if " \"GET " in line]
    assert ends[:2] == ["v1 user=" + me, "v2 user=" + me]
    assert ends[2].startswith("v1 user=%s host evil.example is not allowed" % me)
    assert '"x\\x22 v2 user=root" v1' in service.log()


def test_once_for_each_connection(make_pair):
    """The kernel is asked once for a connection, and only when somebody wants to know."""
    users, connection, _ = make_pair("127.0.0.1")
    assert users._socket is None
    name = users.user_of(connection)

    assert name == fake_metadata.pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture
def make_pair():
    """Connect to a port of ours: make_pair(host) returns ClientUsers, our end and the client's."""
    opened = []

    def make(host, connect_to=None):
        listener = socket.socket(fake_metadata.family_of(host))
        if host == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, 0))
        listener.listen()
        to = connect_to or host
        client = socket.socket(fake_metadata.family_of(to))
        client.connect((to, listener.getsockname()[1]))
        connection, _ = listener.accept()
        users = fake_metadata.ClientUsers()
        opened.extend([listener, client, connection, users])
        return users, connection, client

    yield make
    for one in opened:
        one.close()


@pytest.mark.parametrize("host, connect_to", [
    ("127.0.0.1", None), ("::1", None), ("::", "127.0.0.1"), ("::", "::ffff:127.0.0.1")],
    ids=["IPv4", "IPv6", "IPv4 at [::]", "mapped IPv4"])
def test_user_of(make_pair, host, connect_to):
    """The user is found by IPv4 and IPv6; none is once the client has closed."""
    users, connection, client = make_pair(host, connect_to)

    assert users.user_of(connection) == fake_metadata.pwd.getpwuid(os.geteuid()).pw_name
    client.close()
    connection.recv(1)
    assert users.user_of(connection) is None


def test_user_where_the_kernel_tells_nothing(make_pair, monkeypatch):
    """Without netlink nobody is known, and nothing breaks."""
    users, connection, _ = make_pair("127.0.0.1")

    def refuse(*_):
        raise OSError(97, "Address family not supported by protocol")
    monkeypatch.setattr(fake_metadata.socket, "socket", refuse)

    assert users.user_of(connection) is None


@pytest.mark.parametrize("name, shown", [
    ("ci", "ci"), ("a.b-c_d", "a.b-c_d"), ("host$", "host$"), ("DOMAIN\\user", "7"),
    ("two words", "7"), ("x user=root", "7"), (None, "7")])
def test_name_of_a_user(monkeypatch, name, shown):
    """A user without a name, or with one that a log cannot have, is shown by number."""
    def getpwuid(uid):
        if name is None:
            raise KeyError(uid)
        return fake_metadata.types.SimpleNamespace(pw_name=name)
    monkeypatch.setattr(fake_metadata.pwd, "getpwuid", getpwuid)

    assert fake_metadata.ClientUsers()._name_of(7) == shown


# In a network of its own: two users, behind the redirect, by IPv4 and IPv6.
SCRIPT = r"""
ip link set lo up
ip addr add 169.254.169.254/32 dev lo scope host
ip -6 addr add fd00:ec2::254/128 dev lo nodad
iptables -t nat -I OUTPUT -d 169.254.169.254 -p tcp --dport 80 -j REDIRECT --to-ports 8000
ip6tables -t nat -I OUTPUT -d fd00:ec2::254 -p tcp --dport 80 -j REDIRECT --to-ports 8000
"$PYTHON" "$PROGRAM" --config "$CONFIG" --log "$LOG" 2>/dev/null & service=$!
for _ in $(seq 600); do grep -qs '::1' "$LOG" && break; sleep 0.05; done
for user in 1 65534; do
    for host in 169.254.169.254 '[fd00:ec2::254]'; do
        setpriv --reuid $user --regid $user --clear-groups curl -sS --max-time 15 \
            "http://$host/latest/meta-data/iam/security-credentials/"
        echo " $user $host"
    done
done
kill $service
wait $service
"""


@needs_root
def test_users_behind_the_redirect(tmp_path):
    """Each user gets its role, and is named in the log, by IPv4 and IPv6."""
    name = fake_metadata.pwd.getpwuid(1).pw_name
    config, log = tmp_path / "conf", tmp_path / "log"
    config.write_text(LOG_CLIENTS + "bind = 127.0.0.1:8000, [::1]:8000\n"
                      "[role A]\nusers = %s\n[role B]\nusers = root\n" % name)

    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", SCRIPT], stdout=subprocess.PIPE, timeout=120,
        universal_newlines=True, env=dict(os.environ, PYTHON=sys.executable, PROGRAM=PROGRAM,
                                          CONFIG=str(config), LOG=str(log)))

    assert done.stdout.splitlines() == [
        "A 1 169.254.169.254", "A 1 [fd00:ec2::254]",
        "BaseIAMRole 65534 169.254.169.254", "BaseIAMRole 65534 [fd00:ec2::254]"]
    assert log.read_text().count("v1 user=%s\n" % name) == 2


# ---------------------------------------------------------------- what is read back

LINE = '2026-12-01T08:00:0%d %s "GET %s HTTP/1.1" 200 27 0.1ms "%s"%s\n'
ROLE = "/latest/meta-data/iam/security-credentials/BaseIAMRole"


@pytest.mark.parametrize("line, asker", [
    (LINE % (0, "127.0.0.1", ROLE, "curl/8", " v1 user=ci"), Asker("user ci", "v1", "curl/8")),
    (LINE % (0, "172.18.0.5", ROLE, "curl/8", " v2"), Asker("172.18.0.5", "v2", "curl/8")),
    (LINE % (0, "fd00::5", ROLE, "", " v2"), Asker("fd00::5", "v2", "")),
    (LINE % (0, "127.0.0.1", ROLE, "x", ""), Asker("127.0.0.1", "?", "x")),
    (LINE % (0, "127.0.0.1", ROLE, "x", " fault a: delay 1s"), Asker("127.0.0.1", "?", "x")),
    (LINE % (0, "127.0.0.1", ROLE, "x", " v1 user=? fault a: delay 1s"),
     Asker("user ?", "v1", "x")),
    (LINE % (0, "10.0.0.1", ROLE, "\\x22 v2 user=root", " v1"),
     Asker("10.0.0.1", "v1", "\\x22 v2 user=root")),
    (LINE % (0, "127.0.0.1", "//2021-07-15/meta-data/iam/security-credentials/R/?x", "", " v1"),
     Asker("127.0.0.1", "v1", "")),
    (LINE % (0, "127.0.0.1", "/v1/credentials", "", " v1"), Asker("127.0.0.1", "v1", "")),
    (LINE % (0, "127.0.0.1", "/v2/credentials/R", "", " v1"), Asker("127.0.0.1", "v1", "")),
    (LINE % (0, "127.0.0.1", "/latest/meta-data/iam/security-credentials/", "", " v1"), None),
    (LINE % (0, "127.0.0.1", "/latest/meta-data/mac", "", " v1"), None),
    (LINE.replace("200", "401") % (0, "127.0.0.1", ROLE, "", " v1"), None),
    (LINE[:-20] % (0, "127.0.0.1", ROLE), None), ("garbage\n", None), ("\n", None)])
def test_line(tmp_path, line, asker):
    """A line is read by its form: nothing that a client sends is taken for what we write."""
    log = tmp_path / "log"
    log.write_text(line.replace("08:00:00 ", "08:00:00Z "))

    assert list(fake_metadata.who_asked([str(log)])) == ([asker] if asker else [])


def write_logs(folder):
    """Write a log, and two that were rotated; return their names, and that of none."""
    line = LINE.replace("0%d %s", "0%dZ %s")
    now, before, old = (str(folder / name) for name in ("log", "log.1", "log.2.gz"))
    with open(now, "w") as log:
        log.write(line % (5, "127.0.0.1", ROLE, "aws", " v2 user=ci"))
        log.write(line % (6, "127.0.0.1", ROLE, "curl", " v1 user=ci"))
    with open(before, "w") as log:
        log.write(line % (3, "127.0.0.1", ROLE, "curl", " v1 user=ci"))
    with gzip.open(old, "wt") as log:
        log.write(line % (1, "127.0.0.1", ROLE, "curl", " v1 user=ci"))
        log.write(line % (1, "10.0.0.1", ROLE, "curl", ""))
    return [now, before, old, str(folder / "log.*")]


def test_who_asked(tmp_path):
    """All logs are read, in whatever order, rotated and compressed ones too."""
    assert fake_metadata.who_asked(write_logs(tmp_path)) == {
        Asker("user ci", "v1", "curl"): Asking(3, "2026-12-01T08:00:01Z", "2026-12-01T08:00:06Z"),
        Asker("user ci", "v2", "aws"): Asking(1, "2026-12-01T08:00:05Z", "2026-12-01T08:00:05Z"),
        Asker("10.0.0.1", "?", "curl"): Asking(1, "2026-12-01T08:00:01Z", "2026-12-01T08:00:01Z")}


def test_who_for_people(tmp_path, capfd):
    """Who would break comes first, and is counted at the end."""
    assert fake_metadata.main(["--who", *write_logs(tmp_path)]) == 0

    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["WHO", "user"] and " v1 " in lines[1]
    assert "1 of 3 would break with http-tokens = required" in lines
    assert "service fake-metadata set server.log-clients yes" in lines[-1]


def test_who_for_programs(tmp_path, capfd):
    """--json has the same as a document."""
    assert fake_metadata.main(["--json", "--who", *write_logs(tmp_path)]) == 0

    found = json.loads(capfd.readouterr().out)
    assert {"client": "user ci", "version": "v1", "user-agent": "curl", "requests": 3,
            "first": "2026-12-01T08:00:01Z", "last": "2026-12-01T08:00:06Z"} in found
    assert len(found) == 3


def test_nobody_asked(tmp_path, capfd):
    """Without a log nobody has asked."""
    assert fake_metadata.main(["--who", str(tmp_path / "log")]) == 0
    assert "nobody has asked" in capfd.readouterr().out


def test_flood_of_askers(tmp_path):
    """Of a flood of user agents those that are too many are summed up."""
    log = tmp_path / "log"
    count = fake_metadata.MAX_ASKERS + 500
    line = LINE.replace("0%d %s", "0%dZ %s")
    log.write_text("".join(line % (0, "127.0.0.1", ROLE, n, " v1") for n in range(count)))

    found = fake_metadata.who_asked([str(log)])

    assert found[Asker("(others)", "v1", "")].requests == 500
    assert sum(asking.requests for asking in found.values()) == count
