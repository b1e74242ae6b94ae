"""Which user is asking, as the kernel, the log and --who tell it."""
import gzip
import json
import os
import pwd
import re
import shutil
import socket
import struct
import subprocess
import sys
import types

import pytest

import fake_metadata
from service import CREDENTIALS, PROGRAM, Service, check_lines, open_connections
from service import wait_for
from test_addresses import BOTH, IMDS, IMDS6, LET_IN, REDIRECT, Network
from wire import Wire, get

NEEDS = ["setpriv", "unshare", "nsenter", "ip", "iptables", "ip6tables", "curl"]
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, NEEDS)),
    reason="needs root, and " + ", ".join(NEEDS))

LOG_CLIENTS = "[server]\nlog-clients = yes\n"
ROLE = "/latest/meta-data/iam/security-credentials/BaseIAMRole"
OWN_NAME = fake_metadata.name_of_user(os.geteuid())
DAEMON = pwd.getpwnam("daemon").pw_uid
NAMELESS = 54321


def logged(path=ROLE, peer="127.0.0.1", status=200, agent="curl/8.5.0", client="", rest="",
           time="2026-12-01T08:00:00Z", method="GET"):
    """Return a line of the log."""
    return '%s %s "%s %s HTTP/1.1" %d 1 0.1ms "%s"%s%s\n' % (
        time, peer, method, path, status, agent, client, rest)


def asked_by(*lines):
    """Return what is read from lines of a log."""
    asked = fake_metadata.CredentialsAsked()
    for line in lines:
        asked.add(line)
    return asked


def summed_up(asked):
    """Return (client, user agent, version, count) of each row of the table."""
    return [(str(client), agent, version, tally.count)
            for client, agent, version, tally in asked.rows()]


# ---------------------------------------------------------------- the log, read

USER = ("user deploy", "curl/8.5.0", "v1")

# What a line is -> the line, and who has asked for credentials by it.
LINES = {
    "user with v1": (logged(client=" v1 user=deploy"), USER),
    "user with v2": (logged(client=" v2 user=deploy"), ("user deploy", "curl/8.5.0", "v2")),
    "number": (logged(client=" v1 user=54321"), ("user 54321", "curl/8.5.0", "v1")),
    "user who has gone": (logged(client=" v1 user=?"), ("127.0.0.1", "curl/8.5.0", "v1")),
    "address": (logged(peer="10.0.3.7", client=" v1"), ("10.0.3.7", "curl/8.5.0", "v1")),
    "IPv6": (logged(peer="fd00::7", client=" v1"), ("fd00::7", "curl/8.5.0", "v1")),
    "link-local": (logged(peer="fe80::7%eth0", client=" v1"),
                   ("fe80::7%eth0", "curl/8.5.0", "v1")),
    "IPv4 in IPv6": (logged(peer="::ffff:10.0.3.7", client=" v1"),
                     ("10.0.3.7", "curl/8.5.0", "v1")),
    "without version": (logged(), ("127.0.0.1", "curl/8.5.0", None)),
    "fault": (logged(client=" v1 user=deploy", rest=" fault slow: delay 1.5s"), USER),
    "fault without version": (logged(rest=" fault v1 user=root: delay 1.5s"),
                              ("127.0.0.1", "curl/8.5.0", None)),
    "fault of an unknown user": (logged(client=" v1", rest=" fault user=root: delay 1s"),
                                 ("127.0.0.1", "curl/8.5.0", "v1")),
    "agent like a field": (logged(agent="x v1 user=root", client=" v1 user=deploy"),
                           ("user deploy", "x v1 user=root", "v1")),
    "agent with escaped quotes": (logged(agent=r"x\x22 v1 user=root", client=" v2"),
                                  ("127.0.0.1", r"x\x22 v1 user=root", "v2")),
    "no agent": (logged(agent="", client=" v1 user=deploy"), ("user deploy", "", "v1")),
    "query": (logged(ROLE + "?x=%20", client=" v1 user=deploy"), USER),
    "long target": (logged(client=" v1 user=deploy").replace(" HTTP/1.1", "?aa (999 more)"), USER),
    "dated version": (logged(ROLE.replace("latest", "2021-03-23"), client=" v1 user=deploy"), USER),
    "odd slashes": (logged(ROLE.replace("/iam", "//x/../%69am/."), client=" v1 user=deploy"), USER),
    "absolute": (logged("http://169.254.169.254" + ROLE, client=" v1 user=deploy"), USER),
    "extended": (logged(ROLE.replace("credentials/", "credentials-extended/"),
                        client=" v1 user=deploy"), USER),
    "identity credentials": (
        logged("/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
               client=" v1 user=deploy"), USER),
    "ECS": (logged("/v2/credentials/BaseIAMRole", client=" v1 user=deploy"),
            ("user deploy", "curl/8.5.0", "container")),
    "first ECS": (logged("/v1/credentials?id=BaseIAMRole", client=" v1 user=deploy"),
                  ("user deploy", "curl/8.5.0", "container")),
    "container of an older version": (logged("/creds"), ("127.0.0.1", "curl/8.5.0", "container")),
    "role of a container": (logged("/role/BaseIAMRole", client=" v1 user=deploy"),
                            ("user deploy", "curl/8.5.0", "container")),

    "other path": (logged("/latest/meta-data/mac", client=" v1 user=deploy"), None),
    "listing": (logged(ROLE.replace("BaseIAMRole", ""), client=" v1 user=deploy"), None),
    "refused": (logged(status=401, client=" v1 user=deploy"), None),
    "unanswered": (logged(status=0, client=" v1 user=deploy", rest=" client closed"), None),
    "head": (logged(method="HEAD", client=" v1 user=deploy"), None),
    "of the service": ("2026-12-01T08:00:00Z fake-metadata: \"GET %s HTTP/1.1\" 200 1 0.1ms \"x\" "
                       "v1 user=root\n" % ROLE, None),
    "not at its end yet": (logged(client=" v1 user=deploy")[:-3], None),
    "cut by the start of a service": (
        logged(client=" v1 user=dep")[:-1] + "2026-12-01T09:00:00Z fake-metadata: 1.6 started\n",
        None),
    "cut behind the agent": (
        logged()[:-1] + " 2026-12-01T09:00:00Z fake-metadata: 1.6 started\n", None),
    "cut by a request": (logged(client=" v1 user=dep")[:-1] + logged(client=" v2"), None),
    "cut in the agent": (logged()[:-5] + logged(client=" v2 user=deploy"), None),
    "cut in the target": (logged()[:60] + logged(client=" v2 user=deploy"), None),
    "no line of ours": ("nobody\x1b[2J\n", None),
    "two users": (logged(client=" v1 user=a user=b"), ("user a", "curl/8.5.0", "v1")),
    "quotes in the user": (logged(client=' v1 user="a"'), None),
    "no status": (logged(client=" v1 user=deploy").replace(" 200 ", " "), None),
}


@pytest.mark.parametrize("name", LINES)
def test_line(name):
    """A line names who has asked for credentials only where it stands for that, whole."""
    line, expected = LINES[name]

    assert summed_up(asked_by(line)) == ([expected + (1,)] if expected else [])


def test_reason_has_no_quotes(tmp_path):
    """A quote in the name of a fault is none in the log, where quotes stand around two fields."""
    path = tmp_path / "log"
    log = fake_metadata.Log(str(path))
    head = fake_metadata.parse_head(("GET %s HTTP/1.1" % ROLE).encode())

    log.request("127.0.0.1", head, 200, 1, 0, 'fault "x" v1: empty', client=lambda: "v2 user=ann")
    log.close()

    assert path.read_text().count('"') == 4
    assert summed_up(asked_by(path.read_text())) == [("user ann", "", "v2", 1)]


def test_no_one_hides_behind_many_agents():
    """Of one client some user agents are kept, the rest are one row; other clients have theirs."""
    flood = [logged(agent="x%d" % number, client=" v1 user=mallory") for number in range(5000)]

    rows = summed_up(asked_by(*flood, logged(client=" v1 user=deploy")))

    assert len(rows) == fake_metadata.MAX_AGENTS + 2
    assert rows[0] == ("user mallory", None, "v1", 5000 - fake_metadata.MAX_AGENTS)
    assert ("user deploy", "curl/8.5.0", "v1", 1) in rows


def test_many_clients():
    """Beyond a limit clients are one row, and so are long user agents that begin alike."""
    flood = [logged(peer="10.0.%d.%d" % divmod(number, 250), agent="y" * 300 + str(number % 9),
                    client=" v2") for number in range(2000)]

    rows = summed_up(asked_by(*flood))

    assert len(rows) == fake_metadata.MAX_CLIENTS + 1
    assert rows[0] == ("(others)", "y" * fake_metadata.MAX_AGENT, "v2", 1500)


SOME = [
    logged(client=" v2 user=ann", time="2026-12-01T09:00:00Z"),
    logged(client=" v1 user=deploy", agent="old" * 40, time="2026-12-01T10:00:00Z"),
    logged(client=" v1 user=deploy", agent="old" * 40, time="2026-12-01T07:00:00Z"),
    logged("/creds", client=" v1 user=ci"),
    logged(peer="10.0.0.7"),
]


def test_table():
    """The table has first who would break, then whom it cannot tell; its last line sums it up."""
    assert asked_by(*SOME).as_table() == """\
how        times  first                 last                  who          user agent
v1             2  2026-12-01T07:00:00Z  2026-12-01T10:00:00Z  user deploy  %s...
?              1  2026-12-01T08:00:00Z  2026-12-01T08:00:00Z  10.0.0.7     curl/8.5.0
container      1  2026-12-01T08:00:00Z  2026-12-01T08:00:00Z  user ci      curl/8.5.0
v2             1  2026-12-01T09:00:00Z  2026-12-01T09:00:00Z  user ann     curl/8.5.0

container: with http-tokens = required it needs an authorization-token, no session token
?: 1 request was logged without v1 or v2; to log it from now on:
   service fake-metadata set server.log-clients yes
1 of 3 would break with http-tokens = required
""" % ("old" * 20)


def test_json():
    """The document for programs has the same, each key always."""
    document = json.loads(asked_by(*SOME).as_json())

    assert {key: document[key] for key in document if key != "clients"} == {
        "log": {"first": "2026-12-01T07:00:00Z", "last": "2026-12-01T10:00:00Z"},
        "would-break": 1, "of": 3}
    assert document["clients"][:2] == [
        {"user": "deploy", "address": None, "user-agent": "old" * 40, "version": "v1", "count": 2,
         "first": "2026-12-01T07:00:00Z", "last": "2026-12-01T10:00:00Z"},
        {"user": None, "address": "10.0.0.7", "user-agent": "curl/8.5.0", "version": None,
         "count": 1, "first": "2026-12-01T08:00:00Z", "last": "2026-12-01T08:00:00Z"}]


def who(*arguments):
    """Run --who; return exit code, stdout and stderr."""
    done = subprocess.run([sys.executable, PROGRAM, "--who", *map(str, arguments)], timeout=60,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    return done.returncode, done.stdout, done.stderr


def test_files(tmp_path):
    """It reads a log and what is rotated and compressed of it; what is missing is no error."""
    log, older, oldest = (tmp_path / name for name in ("log", "log.1", "log.2.gz"))
    log.write_text(logged(client=" v1 user=ann"))
    older.write_text("x" * 50000 + logged(client=" v1 user=root") + logged(client=" v2 user=ci"))
    oldest.write_bytes(gzip.compress(logged(client=" v1 user=ann",
                                            time="2026-11-30T08:00:00Z").encode()))

    code, out, err = who(log, tmp_path / "none", older, oldest)

    assert (code, err) == (0, "")
    assert re.search("^v1 +2  2026-11-30T08:00:00Z  2026-12-01T08:00:00Z  user ann ", out, re.M)
    assert "user ci" in out and "root" not in out
    assert out.endswith("\n1 of 2 would break with http-tokens = required\n")


@pytest.mark.parametrize("name, data", [
    ("log.gz", gzip.compress(logged().encode())[:-9]), ("log.gz", b"no gzip"), ("folder", None)],
    ids=["cut", "no gzip", "folder"])
def test_file_that_cannot_be_read(tmp_path, name, data):
    """What cannot be read is named, the rest is told, and the exit code is 1."""
    (tmp_path / "log").write_text(logged(client=" v1 user=ann"))
    path = tmp_path / name
    path.mkdir() if data is None else path.write_bytes(data)

    code, out, err = who(path, tmp_path / "log")

    assert code == 1 and "user ann" in out
    assert err.startswith("fake-metadata: cannot read %s: " % path) and err.count("\n") == 1


def test_nobody(tmp_path):
    """Where nobody has asked it says so, and since when that is known."""
    path = tmp_path / "log"
    assert who(path)[1] == "nobody has asked for credentials: the log is empty\n"

    path.write_text(logged("/latest/"))

    assert who(path)[1] == "nobody has asked for credentials since 2026-12-01T08:00:00Z, where " \
        "the log begins\n"
    assert json.loads(who(path, "--json")[1])["clients"] == []


@pytest.mark.parametrize("arguments", [["--json"], ["--who"], ["--who", "x", "--", "true"]],
                         ids=["json alone", "no file", "COMMAND"])
def test_wrong_usage(arguments):
    """--who needs a file, --json needs --who, and neither goes with a COMMAND."""
    assert subprocess.run([sys.executable, PROGRAM, *arguments], timeout=60,
                          stderr=subprocess.DEVNULL).returncode == 2


# ---------------------------------------------------------------- the kernel, asked

CLIENT, SERVED = ("127.0.0.1", 40000), ("127.0.0.1", 8000)
DESTINATION = socket.inet_aton("127.0.0.1"), 8000
ESTABLISHED, TIME_WAIT, LISTEN, SYN_SENT, FIN_WAIT2 = 1, 6, 10, 2, 5


def answer(client=CLIENT, service=SERVED, state=ESTABLISHED, uid=1001, inode=7, kind=20, mapped=""):
    """Return the netlink message of a socket."""
    ends = [mapped + end[0] for end in (client, service)]
    family = socket.AF_INET6 if ":" in ends[0] else socket.AF_INET
    packed = [socket.inet_pton(family, end) for end in ends]
    body = struct.pack("=BBxx", family, state) + struct.pack("!HH", client[1], service[1])
    body += struct.pack("=16s16s4x8x", *packed) + struct.pack("=12xII", uid, inode)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body


# What an answer is -> the answer, and the user that it names. (Of root: 0.)
ANSWERS = {
    "user": (answer(), 1001),
    "root": (answer(uid=0), 0),
    "IPv6 socket with an IPv4 address": (answer(mapped="::ffff:"), 1001),
    "half closed": (answer(state=FIN_WAIT2), 1001),
    "TIME_WAIT": (answer(state=TIME_WAIT, uid=0, inode=0), None),
    "closed, in FIN_WAIT2": (answer(state=FIN_WAIT2, uid=0, inode=0), None),
    "who listens at the port": (answer(service=("0.0.0.0", 0), state=LISTEN), None),
    "who listens everywhere": (answer(("0.0.0.0", 40000), ("0.0.0.0", 0), state=LISTEN), None),
    "who connects only now": (answer(state=SYN_SENT), None),
    "other port": (answer(client=("127.0.0.1", 40001)), None),
    "other port of the service": (answer(service=("127.0.0.1", 80)), None),
    "other address": (answer(client=("127.0.0.2", 40000)), None),
    "other address of the service": (answer(service=("169.254.169.254", 8000)), None),
    "the other end": (answer(client=SERVED, service=CLIENT), None),
    "error": (answer(kind=2), None),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answer(name):
    """An answer names a user only if it is about this very connection, and somebody has it."""
    data, expected = ANSWERS[name]

    wanted = fake_metadata.connection_id(CLIENT, *DESTINATION)

    assert fake_metadata.diagnosed_user(data, wanted) == expected


def test_cut_answer():
    """An answer that is too short is an error, as such a question is unanswered."""
    with pytest.raises(struct.error):
        fake_metadata.diagnosed_user(
            answer()[:80], fake_metadata.connection_id(CLIENT, *DESTINATION))


def connected(server_family, host, client_family, target):
    """Return the client's end of a connection; the other one, with the client's address."""
    with socket.socket(server_family) as listener:
        listener.bind((host, 0))
        listener.listen()
        client = socket.socket(client_family)
        client.connect((target, listener.getsockname()[1]))
        return client, listener.accept()


IPV4, IPV6 = socket.AF_INET, socket.AF_INET6
PAIRS = {
    "IPv4": (IPV4, "127.0.0.1", IPV4, "127.0.0.1"),
    "IPv6": (IPV6, "::1", IPV6, "::1"),
    "IPv4 to IPv6": (IPV6, "::", IPV4, "127.0.0.1"),
    "mapped to IPv6": (IPV6, "::", IPV6, "::ffff:127.0.0.1"),
    "mapped to IPv4": (IPV4, "127.0.0.1", IPV6, "::ffff:127.0.0.1"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_user_of_a_connection(name):
    """The kernel knows a client that is there, or has sent all; of one that has gone, nothing."""
    users = fake_metadata.ClientUsers()
    client, service = connected(*PAIRS[name])
    with client, service[0]:
        assert users.user_of(*service) == OWN_NAME
        client.shutdown(socket.SHUT_WR)
        assert users.user_of(*service) == OWN_NAME
        client.close()
        assert users.user_of(*service) is None
    users.close()


def test_late_answer():
    """An answer to a former question, which has come too late, is passed over."""
    users = fake_metadata.ClientUsers()
    client, service = connected(*PAIRS["IPv4"])
    with client, service[0]:
        assert users.user_of(*service) == OWN_NAME
        others = fake_metadata.connection_id(("127.0.0.1", 9), *DESTINATION)
        users._socket.send(fake_metadata.diagnosis_request(77, *others, 0))
        assert users.user_of(*service) == OWN_NAME
    users.close()


def test_without_netlink(monkeypatch):
    """Where there is no netlink the user is unknown."""
    def refuse():
        raise OSError(97, "Address family not supported by protocol")

    monkeypatch.setattr(fake_metadata, "open_diagnosis", refuse)
    client, service = connected(*PAIRS["IPv4"])
    with client, service[0]:
        assert fake_metadata.ClientUsers().user_of(*service) is None


def test_user_namespace(monkeypatch):
    """A user who has no number in our user namespace is unknown, not nobody."""
    monkeypatch.setattr(fake_metadata, "diagnosed_user", lambda *_: fake_metadata.OVERFLOW_UID)
    client, service = connected(*PAIRS["IPv4"])
    with client, service[0]:
        assert fake_metadata.ClientUsers().user_of(*service) == fake_metadata.name_of_user(65534)
        monkeypatch.setattr(fake_metadata, "is_in_user_namespace", lambda: True)
        assert fake_metadata.ClientUsers().user_of(*service) is None


@pytest.mark.parametrize("name, expected", [
    ("deploy", "deploy"), ("a.b-c_d", "a.b-c_d"), ("host$", "host$"), ("0", "1001"),
    ("7seas", "7seas"), ("CORP\\ann", "1001"), ("x user=root", "1001"), ("", "1001"),
    (None, "1001")],
    ids=["name", "signs", "machine", "like a number", "digit in front", "domain", "blanks",
         "empty", "none"])
def test_name_of_user(monkeypatch, name, expected):
    """A user without a name, with one like another's number, or of odd signs, is a number."""
    def getpwuid(uid):
        if name is None:
            raise KeyError(uid)
        return types.SimpleNamespace(pw_name=name)

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)

    assert fake_metadata.name_of_user(1001) == expected


def test_names_are_looked_up_again(monkeypatch, clock):
    """A name is believed for some seconds."""
    names = iter(["before", "after"])
    monkeypatch.setattr(fake_metadata, "name_of_user", lambda uid: next(names))
    users = fake_metadata.ClientUsers(clock)
    client, service = connected(*PAIRS["IPv4"])
    with client, service[0]:
        assert [users.user_of(*service), users.user_of(*service)] == ["before", "before"]
        clock.now += fake_metadata.NAME_SECONDS
        assert users.user_of(*service) == "after"
    users.close()


@pytest.mark.parametrize("user", ["deploy", None], ids=["known", "unknown"])
def test_one_question_for_a_connection(user):
    """A handler asks when it is asked, and once."""
    questions = []

    def user_of(*question):
        questions.append(question)
        return user

    server = types.SimpleNamespace(users=types.SimpleNamespace(user_of=user_of))
    handler = fake_metadata.Handler("a connection", CLIENT, server)

    assert questions == []
    assert [handler.user(), handler.user()] == [user, user]
    assert questions == [("a connection", CLIENT)]


# ---------------------------------------------------------------- a service

def ends_with(service, words):
    """Wait until the log ends with words: a line is written behind the answer."""
    wait_for(lambda: service.log().endswith(words), timeout=10, what=repr(words))


def test_off_by_default(serve):
    """Without log-clients nobody asks the kernel, and a line is as it was."""
    service = serve()

    service.get(CREDENTIALS)

    ends_with(service, 'ms ""\n')
    wait_for(lambda: open_connections(service) == 0, what="no socket but those of before")


def test_keep_alive(serve):
    """Each request of a connection names the user, with its own version."""
    service = serve(LOG_CLIENTS)
    token = service.token()
    with Wire(service) as client:
        for headers in [], ["X-aws-ec2-metadata-token: " + token]:
            client.send(get(*headers, path=CREDENTIALS))
            assert client.answer().status == 200

    ends_with(service, " v2 user=%s\n" % OWN_NAME)
    lines = [line.rpartition('"')[2] for line in check_lines(service.log()) if "/iam/" in line]
    assert lines == [" v1 user=" + OWN_NAME, " v2 user=" + OWN_NAME]


def test_reload_turns_it_on(serve):
    """A reload turns it on and off."""
    service = serve("")
    for text, expected in (LOG_CLIENTS, ' v1 user=%s\n' % OWN_NAME), ("", '"\n'):
        service.reload(text)
        service.get(CREDENTIALS)
        ends_with(service, expected)


def test_request_that_cannot_be_read(serve):
    """It is neither v1 nor v2, and nobody's."""
    service = serve(LOG_CLIENTS)

    service.raw(b"nonsense\r\n\r\n", timeout=1)

    ends_with(service, ' "" malformed request line\n')
    check_lines(service.log())


def test_client_that_has_gone(serve):
    """Who has closed before it could be asked for has no user, and is not taken for root."""
    service = serve(LOG_CLIENTS + "[faults]\nslow = /latest/* delay 2s\n")
    with service.connect() as client:
        client.sendall(get(path=CREDENTIALS))
        wait_for(lambda: open_connections(service) == 1, what="the connection")

    wait_for(lambda: "client closed the connection" in service.log(), what="the line")
    assert service.log().endswith(
        '" v1 user=? fault slow: delay 2s; client closed the connection\n')


@pytest.fixture
def network():
    network = Network()
    yield network
    network.close()


def curl_as(network, uid, url, *options):
    """Have a user of the box ask."""
    done = subprocess.run(
        network.inside(network.box) + ["setpriv", "--reuid", str(uid), "--regid", str(uid),
                                       "--clear-groups", "curl", "-sSg", "-m", "5", *options, url],
        stdout=subprocess.PIPE, timeout=60, universal_newlines=True)
    assert done.returncode == 0, (url, done)
    return done.stdout


@needs_root
def test_users_of_a_box(network, tmp_path):
    """Behind the redirect, by IPv4 and IPv6, each user is named; a neighbour is its address."""
    network.on(network.box, REDIRECT + LET_IN)
    role, creds = ("meta-data/iam/security-credentials/BaseIAMRole", "http://127.0.0.1:8000/creds")
    with Service(tmp_path, BOTH + "log-clients = yes\n", bind=None,
                 within=network.inside(network.box)) as service:
        curl_as(network, DAEMON, IMDS + role, "-A", "one v2 user=root")
        curl_as(network, NAMELESS, IMDS6 + role, "-A", "two")
        curl_as(network, DAEMON, "http://[::1]:8000/latest/" + role, "-A", "three")
        token = curl_as(network, NAMELESS, IMDS + "api/token", "-X", "PUT", "-H",
                        "X-aws-ec2-metadata-token-ttl-seconds: 60")
        header = "X-aws-ec2-metadata-token: " + token
        curl_as(network, NAMELESS, IMDS + role, IMDS + role, "-H", header, "-A", "four")
        curl_as(network, 0, creds, "-A", "five")
        assert network.curl(network.neighbour, IMDS + role, "-A", "six")[0] == 0
        assert network.curl(network.neighbour, IMDS6 + role, "-g", "-A", "six")[0] == 0
        check_lines(service.log())

    document = json.loads(who(service.log_path, "--json")[1])

    named = {(row["user"], row["address"], row["user-agent"], row["version"], row["count"])
             for row in document["clients"]}
    assert named == {
        ("daemon", None, "one v2 user=root", "v1", 1), ("54321", None, "two", "v1", 1),
        ("daemon", None, "three", "v1", 1), ("54321", None, "four", "v2", 2),
        ("root", None, "five", "container", 1), (None, Network.NEIGHBOUR, "six", "v1", 1),
        (None, "fd09::2", "six", "v1", 1)}
    assert (document["would-break"], document["of"]) == (5, 7)


@needs_root
@pytest.mark.parametrize("bind", ["0.0.0.0", "[::]"], ids=["IPv4", "both"])
def test_any_socket(network, tmp_path, bind):
    """An IPv4 client of whatever socket is named, behind the redirect and without it."""
    network.on(network.box, REDIRECT)
    with Service(tmp_path, LOG_CLIENTS + "bind = %s:8000\n" % bind, bind=None,
                 within=network.inside(network.box)) as service:
        for host in "169.254.169.254", "127.0.0.1:8000", "[::ffff:127.0.0.1]:8000":
            curl_as(network, DAEMON, "http://%s/latest/" % host, "-A", host)
            wait_for(lambda host=host: re.search(
                '"%s" v1 user=daemon\n$' % re.escape(host), service.log()), 10, host)


@needs_root
def test_role_by_user(network, tmp_path):
    """Behind the redirect each user gets its role, by IPv4 and IPv6."""
    network.on(network.box, REDIRECT)
    roles = "[role A]\nusers = daemon\n[role B]\nusers = root\n[role C]\nusers = %d\n" % NAMELESS
    with Service(tmp_path, BOTH + roles, bind=None, within=network.inside(network.box)):
        for url in IMDS, IMDS6:
            for uid, role in (DAEMON, "A"), (0, "B"), (NAMELESS, "C"), (DAEMON + 1, "BaseIAMRole"):
                assert curl_as(network, uid, url + "meta-data/iam/security-credentials/") == role
