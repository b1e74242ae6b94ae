"""What an audit found: each attack, done to the service from outside, and what stops it."""
import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import time

import pytest

import fake_metadata
from conversation import converse
from service import (CREDENTIALS, TTL_HEADER, open_connections, resident, text_of, wait_for,
                     with_limits)
from wire import PROBE, Wire, get, request

KIB = 1024
QUOTES = '"' * (8 * KIB - 1)
FOREIGN = "evil.example"


# Nothing worse than linear.

def slowest(act, count=3):
    """Return the seconds that an act takes at best."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        with contextlib.suppress(fake_metadata.HTTPError):
            act()
        times.append(time.perf_counter() - began)
    return min(times)


STARS = ["/*" * 20 + "/info", "*a" * 200, "/" + "*" * 500, "/*/*/*/info"]


@pytest.mark.parametrize("pattern", STARS)
def test_pattern_of_a_fault(make_metadata, pattern):
    """Whatever the pattern of a fault, the longest path is looked at in no time."""
    metadata = make_metadata("[faults]\nx = /%s status 500\n" % pattern)

    for path in ("/" + "a/" * (4 * KIB), "/" + "a" * (8 * KIB), "/info" * 1600):
        assert slowest(lambda: metadata.fault_actions(path, False)) < 0.05


@pytest.mark.parametrize("pattern, path, matches", [
    ("/latest/*", "/latest/x/y", True), ("/latest/*", "/latest", False), ("/a", "/a", True),
    ("/a", "/ab", False), ("/*", "/", True), ("/*/info", "/a/info", True), ("/a*a", "/a", False),
    ("/a*b*a", "/aba", True), ("/a*b*b", "/ab", False), ("/**/x", "/x", False),
    ("/*a*b*", "/xaybz", True), ("/*b*a*", "/xaybz", False), ("/a*", "/a\n", True)])
def test_pieces_of_a_pattern(make_metadata, pattern, path, matches):
    """A star stands for anything, also for nothing and for slashes."""
    metadata = make_metadata("[faults]\nx = %s status 500\n" % pattern)

    assert bool(metadata.fault_actions(path, False)) is matches


BLANKS = b" \t" * (8 * KIB)
LARGEST = {  # what scans it -> the largest input that is allowed, made to be scanned again
    "head": b"GET / HTTP/1.1\r\nX:" + BLANKS[:16000] + b"\x00\r\n\r\n",
    "names": b"GET / HTTP/1.1\r\n" + b"a" * 16000 + b"\r\n\r\n",
    "lines": b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 127 + b"\r\n",
    "target": b"GET /" + b"%" * 8000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "dots": b"GET /" + b"../" * 2700 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "request line": b"GET " + b"a" * 8000 + b" HTTP/1." + b"1" * 99 + b"\r\n\r\n",
    "host": b"GET / HTTP/1.1\r\nHost: " + b"%41" * 5000 + b"%\r\n\r\n",
    "address": b"GET / HTTP/1.1\r\nHost: [" + b":" * 15000 + b"]\r\n\r\n",
    "query": b"GET /v1/credentials?" + b"id&" * 2600 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "chunk": request("PUT /", "Transfer-Encoding: chunked", body=b"5;" + b'a="\\"' * 200),
    "extensions": request("PUT /", "Transfer-Encoding: chunked", body=b"5" + b";a=b" * 255),
    "trailers": request("PUT /", "Transfer-Encoding: chunked", body=b"0\r\nX:" + BLANKS[:15000]),
}


@pytest.mark.parametrize("name", list(LARGEST))
def test_largest_input(name):
    """The largest inputs are read, or refused, in no time."""
    fake_metadata.cached_head.cache_clear()

    assert slowest(lambda: fake_metadata.read_request(LARGEST[name])) < 0.05


@pytest.mark.parametrize("text", [QUOTES, "\\" * 8000, "AQAE" * 2000, "\xe9" * 8000])
def test_escaping(text):
    """What goes to the log is cut before it is escaped: that takes no time, and is 1 KB at most."""
    shown = fake_metadata.escaped(text, fake_metadata.MAX_LOGGED_LINE)

    assert slowest(lambda: fake_metadata.escaped(text, 1024)) < 0.01
    assert len(shown.partition(" (")[0]) <= 1024 and re.search(r" \(\d+ more\)$", shown)


# Nothing before the Host is admitted.

def test_foreign_host_uses_up_no_fault(make_metadata):
    """A fault neither counts nor strikes for a Host that is refused."""
    metadata = make_metadata("[faults]\nonce = /* status 500 times 1\nslow = /* delay 1h\n")
    tokens = fake_metadata.SessionTokens(b"key")

    def ask(host):
        loop, client = converse(metadata, tokens, request("GET /", host=host))
        return client.sent.split()[1], loop.slept

    assert [ask(FOREIGN) for _ in range(3)] == [(b"403", [])] * 3
    assert [ask("127.0.0.1") for _ in range(2)] == [(b"500", [3600]), (b"200", [3600])]


def test_foreign_host_has_a_short_line(serve):
    """A request that is not admitted has a line of some hundred characters in the log."""
    service = serve()
    with Wire(service) as wire:
        wire.send(get("User-Agent: " + "a" * 4000, path="/" + "x" * 4000, host=FOREIGN))
        assert wire.answer().status == 403
    line = wait_for(lambda: re.search(".*GET /xxx.*", service.log())).group()

    assert len(line) < 500 and "(38" in line


# The volume of the log.

def test_flood_of_refusals(serve):
    """Refusals of one peer are summed after some tens a second; others' lines stay."""
    service = serve(within=with_limits(SWEEP_SECONDS=0.2))
    with Wire(service) as wire:
        for _ in range(20):
            wire.send(get(path="/" + QUOTES[:4000], host=FOREIGN) * 100)
            assert [wire.answer().status for _ in range(100)] == [403] * 100
    service.get("/latest/meta-data/mac")

    def told():
        summed = re.findall(r"127\.0\.0\.1: (\d+) more requests refused", service.log())
        return service.log().count('" 403 ') + sum(map(int, summed))

    wait_for(lambda: told() == 2000, what="a line or a sum for each refusal")
    assert len(service.log()) < 1 << 20 and "/latest/meta-data/mac" in service.log()


def test_sum_of_the_last_second(tmp_path):
    """What was refused just before the end is summed at the end."""
    log = fake_metadata.Log(str(tmp_path / "log"))
    refused = fake_metadata.UnreadableRequest(b"nonsense")
    for _ in range(60):
        log.request("10.0.0.1", refused, 400, 0, 0, "")

    log.close()

    text = text_of(str(tmp_path / "log"))
    assert text.count("nonsense") == 50 and "10.0.0.1: 10 more requests refused\n" in text


def test_quotes_cost_no_memory(serve):
    """Hundreds of connections with heads full of quotes cost little memory."""
    service = serve()
    before = resident(service)
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(service)) for _ in range(500)]
        for wire in wires:
            wire.send(get("User-Agent: " + QUOTES, path="/" + QUOTES[:8000]))
        assert {wire.answer().status for wire in wires} == {404}

        assert resident(service) - before < 24 << 20


def test_gathered_lines_are_written_at_a_limit(tmp_path):
    """Lines that are gathered are written as soon as they are 64 KB."""
    log = fake_metadata.Log(str(tmp_path / "log"))

    for _ in range(200):
        log.say("x" * 1000)

    assert len(text_of(str(tmp_path / "log"))) > 100000
    log.close()


# Slow and gone clients.

def test_client_that_leaves_while_it_waits(serve):
    """A postponed request whose client has gone is dropped at once."""
    service = serve("[faults]\nslow = /latest/meta-data/mac delay 1h\n")
    wires = [Wire(service) for _ in range(100)]
    for wire in wires:
        wire.send(get(path="/latest/meta-data/mac"))
    wait_for(lambda: open_connections(service) == 100, what="the connections")
    for wire in wires:
        wire.socket.close()

    wait_for(lambda: open_connections(service) == 0, what="the end of the connections")
    assert service.get("/")[0] == 200
    told = wait_for(lambda: re.findall("mac HTTP/1.1\" 0 .* client closed", service.log()))
    assert 50 <= len(told) <= 100


def test_client_that_leaves_behind_unread_bytes(serve):
    """A client that sends one byte more before it goes does not stay in the table either."""
    service = serve("[faults]\nslow = /latest/meta-data/mac delay 1h\n",
                    within=with_limits(SWEEP_SECONDS=0.1))
    wires = [Wire(service) for _ in range(20)]
    for wire in wires:
        wire.send(get(path="/latest/meta-data/mac"))
    wait_for(lambda: open_connections(service) == 20, what="the connections")
    for wire in wires:
        wire.send(b"G")
        wire.socket.close()

    wait_for(lambda: open_connections(service) == 0, what="the end of the connections")


def test_half_closed_client_gets_all_answers(service):
    """However many requests a client sends before it half-closes, each is answered."""
    with Wire(service) as wire:
        wire.send(get() * 40)
        wire.socket.shutdown(socket.SHUT_WR)

        assert [wire.answer().status for _ in range(40)] == [200] * 40


def test_timers_of_clients_that_left(make_metadata):
    """A long delay whose client has gone leaves no timer behind."""
    tokens = fake_metadata.SessionTokens(b"key")
    server = fake_metadata.Server([("127.0.0.1", 0)], tokens, fake_metadata.Log(os.devnull))
    for _ in range(1000):
        server.cancel(server.call_later(3600, server.stop))

    server.close_overdue()

    assert len(server._timers) == 1
    server.server_close()


def test_client_that_stays_while_it_waits(serve):
    """A client that sends its next request during a delay gets both answers, without any spin."""
    service = serve("[faults]\nslow = /latest/meta-data/mac delay 400ms times 1\n")
    with Wire(service) as wire:
        wire.send(get(path="/latest/meta-data/mac"))
        wire.send(get() + get())

        assert [wire.answer().status for _ in range(3)] == [200] * 3


def test_idle_connections_shut_nobody_out(serve):
    """When a place is needed the connection goes that was idle for longest."""
    service = serve(within=with_limits(MAX_CONNECTIONS=20))
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(Wire(service)) for _ in range(20)]
        for wire in idle:
            wire.send(PROBE)
            assert wire.answer().status == 200
        idle[0].send(PROBE)
        assert idle[0].answer().status == 200  # the first is idle for the shortest time now
        late = [stack.enter_context(Wire(service)) for _ in range(5)]
        for wire in late:
            wire.send(PROBE)
            assert wire.answer().status == 200

        assert idle[0].kept() and all(wire.closed() for wire in idle[1:6])
        assert all(wire.kept() for wire in idle[6:] + late)


def test_idle_connection_with_a_request_under_way(serve):
    """A connection whose request has come already is answered before it makes room."""
    service = serve(within=with_limits(MAX_CONNECTIONS=5))
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(service)) for _ in range(5)]
        for wire in wires:
            wire.send(PROBE)
            assert wire.answer().status == 200
        service.signal(signal.SIGSTOP)
        wires.append(stack.enter_context(Wire(service)))
        for wire in wires:
            wire.send(PROBE)
        service.signal(signal.SIGCONT)

        assert [wire.answer().status for wire in wires] == [200] * 6


# Session tokens.

def test_forged_token(service):
    """Who knows the boot id cannot make a session token."""
    seed = b"fake-metadata session tokens " + open("/proc/sys/kernel/random/boot_id", "rb").read()
    key = hashlib.blake2b(seed, digest_size=32).digest()  # as it was until 1.3
    forged = fake_metadata.SessionTokens(key).issue(21600)

    assert service.get("/", token=forged)[0] == 401


# Secrets.

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@pytest.mark.parametrize("text", [
    "[credentials]\nsource = %s\n", "[%s]\nx = y\n", "[role %s]\nx = y\n", "[%s\nx = y\n",
    "[credentials]\nlifetime = %s\n", "[credentials]\ntimeout = %s\n", "%s\n", "%s = x\n",
    "[credentials]\n%s = x\n", "[credentials]\naccess-key-id = %s\n",
    "[credentials]\nextended = %s\n", "[credentials]\nrole = %s\n", "[role x]\nform = %s\n",
    "[role x]\npath = %s\n", "[container]\nauthorization-token = \u00e9%s\n",
    "[metadata-options]\nhttp-tokens = %s\n", "[events]\nspot-interruption = %s\n",
    "[tags]\n%s = x\n", "[metadata]\n/%s//x = y\n",
    "[faults]\nx = %s\n", "[faults]\nx = /* %s\n", "[instance]\nmac = %s\n",
    "[instance]\nlocal-ipv4 = %s\n", "[server]\nbind = %s\n", "[instance]\nlaunch-time = %s\n",
    "[instance]\nipv6-prefix = %s\n", "[instance]\nebs-volumes = %s\n",
    "[interface x]\ndevice-number = %s\n", "[instance]\nhost-id = %s\n",
    "[faults]\nx = /* status 500 probability %s\n"])
def test_secret_in_a_configuration(check, text):
    """An error of the configuration does not show what could be a secret at a wrong place."""
    code, said = check(text % SECRET)

    assert code == 1 and "wJalr" not in said and "EXAMPLEKEY" not in said


def test_words_of_a_failed_command(serve):
    """What a failed credential command says is nowhere."""
    service = serve("[credentials]\nsource = process\n"
                    "command = sh -c 'echo hunter2 >&2; echo hunter2; exit 1'\n")
    wait_for(lambda: "failed with status 1" in service.log(), what="the failure in the log")

    assert "hunter2" not in service.get(CREDENTIALS)[2]
    assert "hunter2" not in service.log() + service.stderr().replace("command =", "")


@pytest.mark.parametrize("mode, is_reported", [(0o644, True), (0o640, False)])
def test_configuration_that_others_can_read(serve, mode, is_reported):
    """A configuration with keys in it that others can read is reported, at a reload too."""
    text = ("[credentials]\nsource = static\naccess-key-id = AKIAIOSFODNN7EXAMPLE\n"
            "secret-access-key = %s\n" % SECRET)
    service = serve("")
    service.write_config(text)
    os.chmod(service.config_path, mode)

    service.reload()

    words = "other users can read the secrets in " + service.config_path
    assert (words in service.log()) is is_reported
    assert SECRET not in service.log()


def test_configuration_without_secrets_is_not_reported(serve):
    """A configuration without keys may be read by anybody."""
    service = serve("[instance]\naccount-id = 111122223333\n")

    assert "other users can read" not in service.log()


# The Host, from the side of a browser.

@pytest.mark.parametrize("host", [
    FOREIGN, "localhost.evil.example", "127.0.0.1.evil.example", "169-254-169-254.evil.example",
    "evil.example:8000", "0x7f.1", "2130706433", "127.1", "xn--e1awd7f.com",
    "localhost.localdomain"])
@pytest.mark.parametrize("method, path, headers", [
    ("GET", CREDENTIALS, []), ("GET", "/v2/credentials/BaseIAMRole", []), ("GET", "/creds", []),
    ("PUT", "/latest/api/token", [TTL_HEADER + ": 60"]), ("OPTIONS", "/latest/api/token", [])])
def test_page_with_a_rebound_name(make_metadata, host, method, path, headers):
    """A web page that has rebound its name to our address gets nothing."""
    answer = converse(make_metadata(), fake_metadata.SessionTokens(b"key"), request(
        "%s %s" % (method, path), "Origin: http://" + host, *headers, host=host))[1].sent

    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"AccessKeyId" not in answer and b"Access-Control" not in answer


def test_page_with_another_origin(make_metadata):
    """A page cannot read what it asks of our own address: there is no CORS header."""
    for method in "GET", "OPTIONS":
        answer = converse(make_metadata(), fake_metadata.SessionTokens(b"key"), request(
            method + " " + CREDENTIALS, "Origin: http://" + FOREIGN,
            "Access-Control-Request-Method: GET"))[1].sent

        assert b"Access-Control" not in answer


# Credential commands.

def test_child_of_a_credential_command(serve, tmp_path):
    """A child that a credential command puts into its process group ends with it."""
    script = tmp_path / "script"
    script.write_text("sleep 1000 & echo $! > %s; exit 1" % (tmp_path / "pid"))
    service = serve("[credentials]\nsource = process\ncommand = sh %s\n" % script)
    wait_for(lambda: "failed with status 1" in service.log(), what="the failure in the log")
    pid = (tmp_path / "pid").read_text().strip()

    wait_for(lambda: subprocess.run(
        ["ps", "-o", "stat=", "-p", pid], stdout=subprocess.PIPE).stdout.strip()[:1] in (b"", b"Z"),
        what="the end of the child")


def test_token_at_the_cut_of_a_line():
    """A token that stands at the cut of a line in the log is replaced as a whole."""
    token = fake_metadata.SessionTokens(b"key").issue(60)

    for before in range(1024 - 60, 1024):
        shown = fake_metadata.escaped("x" * before + token, 1024)
        assert token[:20] not in shown


def test_token_behind_others():
    """Nor is one shown in part that the cut has moved into view, as others were replaced."""
    first, last = (fake_metadata.SessionTokens(b"key").issue(60) for _ in range(2))

    for length in range(1, 1080):
        shown = fake_metadata.escaped(first * 3 + "x" * length + last, 1024)
        assert last[:20] not in shown


def test_secret_behind_a_long_name(check):
    """A section is shown only if all of it is harmless."""
    code, said = check("[role %s %s]\n" % ("a-long-name" * 5, SECRET))

    assert code == 1 and "EXAMPLEKEY" not in said
