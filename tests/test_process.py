"""The service as a process: start and stop, signals, what a supervisor is told, what is logged."""
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import pytest

import fake_metadata
from service import (CREDENTIALS, PROGRAM, ROOT, TTL_HEADER, Service, free_port, open_connections,
                     text_of, wait_for, with_limits)
from wire import Wire, get

INSTANCE_ID = "/latest/meta-data/instance-id"
ONE = "[instance]\ninstance-id = i-00000000000000001\n"
TWO = "[instance]\ninstance-id = i-00000000000000002\n"
SLOW = "[faults]\nslow = /latest/meta-data/hostname delay 300ms\n"
SLOW_REQUEST = b"GET /latest/meta-data/hostname HTTP/1.1\r\nHost: localhost\r\n\r\n"
PRINTED = json.dumps({
    "Version": 1, "AccessKeyId": "AKIAIOSFODNN7EXAMPLE", "SecretAccessKey": "je7MtGbClwBF/2Zp9Utk",
    "SessionToken": "IQoJb3JpZ2luX2VjEXAMPLE=="})


def run(*arguments, **options):
    """Run the program to its end; return (exit code, stdout, stderr)."""
    options.setdefault("command", [sys.executable, PROGRAM])
    done = subprocess.run(
        options.pop("command") + list(arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, timeout=30, **options)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


class Gate:
    """A credential command that begins, and gives credentials once the gate is open."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        (folder / "printed").write_text(PRINTED)
        (folder / "script").write_text(
            "cd %s\necho >> begun\nwhile [ ! -e open ]; do sleep 0.02; done\n"
            "cat printed\n" % folder)
        self.settings = "source = process\ncommand = sh %s/script\n" % folder

    def wait_until_begun(self, times=1):
        wait_for(lambda: self.begun() >= times, what="the command")

    def begun(self):
        return len((self.folder / "begun").read_text()) if (self.folder / "begun").exists() else 0

    def open(self):
        (self.folder / "open").touch()


@pytest.fixture
def gate(tmp_path):
    """A credential command that waits for the test, and ends with it."""
    made = Gate(tmp_path / "gate")
    yield made
    made.open()


class Supervisor:
    """A supervisor that is told by NOTIFY_SOCKET what becomes of the service."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(30)
        self.variables = {"NOTIFY_SOCKET": address}

    def next(self):
        return self.socket.recv(4096).decode()

    def has_more(self):
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            return self.socket.recv(4096).decode()
        return ""


@pytest.fixture
def supervisor():
    """A supervisor with a socket in the file system, whose path is short, as it has to be."""
    folder = tempfile.mkdtemp()
    made = Supervisor(os.path.join(folder, "notify"))
    yield made
    made.socket.close()
    shutil.rmtree(folder)


# Start.

def test_start_with_nothing(tmp_path):
    """With no configuration it says on stderr where it listens, and a line to paste that works."""
    with subprocess.Popen(
            [sys.executable, PROGRAM, "127.0.0.1:0"], stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE, cwd=str(tmp_path), universal_newlines=True) as process:
        try:
            said = [process.stderr.readline() for _ in range(5)]
            pasted = re.search(
                r"export AWS_EC2_METADATA_SERVICE_ENDPOINT=http://127\.0\.0\.1:(\d+)/\n",
                "".join(said))

            assert pasted, said
            socket.create_connection(("127.0.0.1", int(pasted.group(1)))).close()
            assert re.search(r"fake-metadata: listening on http://127\.0\.0\.1:%s/\n"
                             % pasted.group(1), "".join(said))
        finally:
            process.terminate()


@pytest.mark.parametrize("bind, host", [
    ("127.0.0.1:0", "127.0.0.1"), ("localhost:0", "127.0.0.1"), ("[::1]:0", "::1")])
def test_address(serve, bind, host):
    """It listens where it is told to."""
    if host == "::1":
        with socket.socket(socket.AF_INET6) as probe:
            try:
                probe.bind(("::1", 0))
            except OSError as error:
                pytest.skip("no IPv6 here: %s" % error)
    service = serve(bind=bind)

    assert service.host == host
    assert service.get(INSTANCE_ID)[0] == 200


def test_address_of_the_configuration(serve):
    """Without an address on the command line that of the configuration counts."""
    port = free_port()

    assert serve("[server]\nbind = 127.0.0.1:%d\n" % port, bind=None).port == port


def test_address_of_the_command_line_outranks(serve):
    """The address on the command line outranks that of the configuration."""
    port = free_port()

    assert serve("[server]\nbind = 192.0.2.1:80\n", bind="127.0.0.1:%d" % port).port == port


@pytest.mark.parametrize("bind, url", [
    ("0.0.0.0:%d", "http://127.0.0.1:%d/"), ("[::]:%d", "http://[::1]:%d/"),
    ("127.0.0.1:%d", "http://127.0.0.1:%d/"), ("[::1]:%d", "http://[::1]:%d/")])
def test_line_to_paste(bind, url):
    """The line to paste has an address that works, whatever it is bound to."""
    port = free_port()
    process = subprocess.Popen([sys.executable, PROGRAM, bind % port], stderr=subprocess.PIPE,
                               universal_newlines=True)
    lines = iter(process.stderr.readline, "")
    pasted = next(line for line in lines if "paste this" in line)
    process.terminate()
    process.communicate()

    assert pasted == ("fake-metadata: paste this in another shell: "
                      "export AWS_EC2_METADATA_SERVICE_ENDPOINT=%s\n" % (url % port))


def test_warning_about_other_addresses(serve):
    """An address that others can reach is mentioned in the log; 127.0.0.1 is not."""
    assert "bound to 0.0.0.0" in serve(bind="0.0.0.0:0").log()
    assert "bound to" not in serve().log()


@pytest.mark.parametrize("address, reason", [
    ("127.0.0.1:%d", r"Address already in use; to use another: fake_metadata.py 127.0.0.1:\d+ "
     r"\(on a box: PORT=\d+ in /etc/default/fake-metadata\); to see what uses it: "
     r"ss -ltnp sport = :\d+"),
    ("192.0.2.1:0", "Cannot assign requested address"),
    ("no-such-host.invalid:0", ""), ("[2001:db8::1]:0", "")])
def test_failure_to_listen(address, reason):
    """Where it cannot listen it says so in one line, and does not end with 0."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        code, said, error = run(address % taken.getsockname()[1] if "%" in address else address)

    assert code > 0 and said == ""
    assert re.fullmatch(r"fake-metadata: cannot listen on [^\n]*%s\n" % reason, error)


def nobody_can_run():
    """Return a Python that user nobody can run, or None."""
    for python in sys.executable, "/usr/bin/python3":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run([python, "-c", "import json"], check=True, preexec_fn=become_nobody,
                           cwd="/", stderr=subprocess.DEVNULL)
            return python
    return None


def become_nobody():
    os.setgid(65534)
    os.setuid(65534)


@pytest.fixture
def as_nobody():
    """Options of run and Service for user nobody if the tests run as root, else for their user."""
    if os.geteuid():
        yield {"python": sys.executable, "program": PROGRAM, "preexec_fn": None}
        return
    python = nobody_can_run()
    if not python:
        pytest.skip("user nobody can run no Python")
    folder = tempfile.mkdtemp()
    os.chmod(folder, 0o755)
    shutil.copy(PROGRAM, folder)
    os.chmod(os.path.join(folder, "fake_metadata.py"), 0o644)
    yield {"python": python, "program": os.path.join(folder, "fake_metadata.py"),
           "preexec_fn": become_nobody}
    shutil.rmtree(folder)


def test_port_80_without_permission(as_nobody):
    """Without permission for the port it says so in one line and ends with 1."""
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
        if int(file.read()) <= 80:
            pytest.skip("everybody may listen on port 80 here")

    code, _, error = run(
        "127.0.0.1:80", command=[as_nobody["python"], as_nobody["program"]], cwd="/",
        preexec_fn=as_nobody["preexec_fn"])

    assert code == 1
    assert re.fullmatch("fake-metadata: cannot listen on 127.0.0.1 port 80: [PA][a-z ]+\n", error)


def test_any_user_can_run_it(as_nobody):
    """It needs no rights: any user can have the whole tree."""
    code, said, error = run("--dump", command=[as_nobody["python"], as_nobody["program"]], cwd="/",
                            preexec_fn=as_nobody["preexec_fn"])

    assert (code, error) == (0, "")
    assert INSTANCE_ID in said


@pytest.mark.parametrize("arguments", [
    ["--nonsense"], ["-x"], ["--config"], ["--log"], ["--config="], ["--log", ""],
    ["127.0.0.1", "127.0.0.2"],
    ["--bind=127.0.0.1"], ["--conf=x"], ["--dump", "--test-config"]])
def test_usage_error(capfd, arguments):
    """A command line not understood ends with 2, the usage and one line of what is wrong."""
    with pytest.raises(SystemExit) as end:
        fake_metadata.main(arguments)
    said, error = capfd.readouterr()

    assert (end.value.code, said) == (2, "")
    assert error.startswith("usage: ")
    assert error.rstrip("\n").split("\n")[-1].startswith("fake_metadata.py: error: ")


@pytest.mark.parametrize("address", [
    "127.0.0.1:99999", "127.0.0.1:http", "http://127.0.0.1:8000/", "", "a b", "[::1"])
def test_bad_address(capfd, address):
    """An address that is none ends with 1 and one clear line."""
    code, (said, error) = fake_metadata.main([address]), capfd.readouterr()

    assert (code, said) == (1, "")
    assert re.fullmatch("fake-metadata: .* not an (IPv6 )?address.*\n", error)


def test_name_of_a_file_that_is_no_text(capfd):
    """The name of a file that is not UTF-8 is shown as it can be."""
    assert fake_metadata.main(["--test-config", "--config", "/nowhere/\udcff"]) == 1
    assert "/nowhere/\\udcff: No such file" in capfd.readouterr().err


def test_exit_code_of_a_usage_error():
    """The exit code of the process is that of main."""
    assert run("--nonsense")[0] == 2


def test_help():
    """--help tells every option, and ends with 0."""
    code, said, error = run("--help")

    assert (code, error) == (0, "")
    for option in "--config FILE", "--log FILE", "--test-config", "--dump", "--version", "--help":
        assert option in said


def test_version():
    """--version prints the version, and ends with 0."""
    assert run("--version") == (0, "fake-metadata %s\n" % fake_metadata.VERSION, "")


def test_good_configuration(tmp_path):
    """--test-config of a good configuration ends with 0 and starts nothing."""
    (tmp_path / "a.conf").write_text(
        ONE + "[server]\nbind = 192.0.2.1:80\nlog = %s/made.log\n" % tmp_path)

    code, said, error = run("--test-config", "--config", str(tmp_path / "a.conf"))

    assert (code, error) == (0, "")
    assert "configuration ok" in said
    assert not (tmp_path / "made.log").exists()


def test_bad_configuration(tmp_path):
    """--test-config of a bad configuration ends with 1 and one line on stderr; so does a start."""
    (tmp_path / "a.conf").write_text("[instance]\ninstance-id = x\n")

    for arguments in ["--test-config"], ["127.0.0.1:0"]:
        code, said, error = run("--config=%s" % (tmp_path / "a.conf"), *arguments)
        assert (code, said) == (1, "")
        assert re.fullmatch(
            r"fake-metadata: %s/a\.conf:2: \[instance\] instance-id: [^\n]+\n" % tmp_path, error)


def test_environment(serve):
    """EC2_LOCAL_HOSTNAME and EC2_LOCAL_IPV4 are served as public-hostname and public-ipv4."""
    service = serve(env={"EC2_LOCAL_HOSTNAME": "box.example.com", "EC2_LOCAL_IPV4": "198.51.100.9"})

    assert service.get("/latest/meta-data/public-hostname")[2] == "box.example.com"
    assert service.get("/latest/meta-data/public-ipv4")[2] == "198.51.100.9"


def test_bad_environment(tmp_path):
    """A bad value in the environment is one line and exit code 1."""
    code, _, error = run("127.0.0.1:0", env=dict(os.environ, EC2_LOCAL_IPV4="nowhere"))

    assert code == 1
    assert re.fullmatch("fake-metadata: [^\n]*EC2_LOCAL_IPV4[^\n]*\n", error)


# HUP.

@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with Service(tmp_path_factory.mktemp("running"), ONE) as service:
        yield service


@pytest.fixture
def one(running):
    """A service with the configuration ONE, shared by tests that reload it."""
    running.reload(ONE)
    return running


def test_reload(one):
    """HUP takes the configuration as it is now."""
    one.reload(TWO)

    assert one.get(INSTANCE_ID)[2] == "i-00000000000000002"


@pytest.mark.parametrize("text", [
    "[instance]\ninstance-id = x\n", TWO + "[faults]\nx = y\n", TWO + "garbage\n",
    TWO + "[metadata]\nplacement = x\n", TWO + "[role two words]\n"],
    ids=["value", "fault", "line", "conflict", "role"])
def test_bad_reload(one, text):
    """HUP with a bad configuration changes nothing and says why: file, section, key."""
    before = len(one.log())

    one.reload(text)

    assert re.search(r"fake-metadata: not reloaded, [^\n]*: %s:\d+: " % one.config_path,
                     one.log()[before:])
    assert one.get(INSTANCE_ID)[2] == "i-00000000000000001"


def test_reload_without_the_file(one):
    """HUP after the configuration was deleted changes nothing and says why."""
    before = len(one.log())

    os.remove(one.config_path)
    one.reload()

    assert "%s: No such file" % one.config_path in one.log()[before:]
    assert one.get(INSTANCE_ID)[2] == "i-00000000000000001"


def test_good_reload_after_a_bad_one(one):
    """After a bad configuration a good one is taken."""
    one.reload("garbage")
    one.reload(TWO)

    assert one.get(INSTANCE_ID)[2] == "i-00000000000000002"


@pytest.mark.parametrize("text", [TWO, "garbage"], ids=["good", "bad"])
def test_credentials_stay_over_a_reload(one, text):
    """A reload, good or bad, keeps credentials whose settings are the same."""
    before = one.get(CREDENTIALS)[2]

    one.reload(text)

    assert one.get(CREDENTIALS)[2] == before


def test_reload_with_other_credentials(one):
    """A reload that changes the settings of credentials brings new ones at once."""
    one.reload("[credentials]\nsource = static\n"
               "access-key-id = AKIAIOSFODNN7EXAMPLE\nsecret-access-key = x\n")

    assert json.loads(one.get(CREDENTIALS)[2])["AccessKeyId"] == "AKIAIOSFODNN7EXAMPLE"


def test_reload_with_a_request_in_flight(one):
    """A request that waits while the configuration changes is answered."""
    one.reload(ONE + SLOW)
    with one.connect() as client:
        client.sendall(SLOW_REQUEST)

        one.reload(TWO)

        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_connections_stay_over_a_reload(one):
    """An open connection goes on over a reload."""
    with Wire(one) as client:
        client.send(get(path=INSTANCE_ID))
        assert client.answer().body.endswith(b"1")

        one.reload(TWO)
        client.send(get(path=INSTANCE_ID))

        assert client.answer().body.endswith(b"2")


def test_reload_without_a_configuration(serve):
    """HUP without a configuration harms nobody."""
    service = serve()

    service.reload()

    assert service.get(INSTANCE_ID)[0] == 200


def test_storm_of_signals(serve):
    """Signals as fast as they can be sent are all survived."""
    service = serve(ONE)
    service.write_config(TWO)

    for _ in range(200):
        service.signal(signal.SIGHUP)
        service.signal(signal.SIGUSR1)

    assert wait_for(lambda: service.get(INSTANCE_ID)[2] == "i-00000000000000002")
    assert service.stop() == 0


# The log.

def test_log_after_a_rename(serve):
    """After a rename and HUP the lines go to a new file, and none is lost."""
    service = serve()
    service.get("/before")

    wait_for(lambda: "/before" in service.log())
    os.rename(service.log_path, service.log_path + ".1")
    service.get("/between")
    service.signal(signal.SIGHUP)
    wait_for(lambda: "reloaded" in service.log(), what="the new log")
    service.get("/after")

    wait_for(lambda: "/after" in service.log())
    with open(service.log_path + ".1") as file:
        old = file.read()
    assert "/before" in old and "/between" in old and "/after" not in old
    assert "/between" not in service.log()


def test_log_without_hup(serve):
    """Without HUP a renamed log is written on: the program waits to be told."""
    service = serve()

    os.rename(service.log_path, service.log_path + ".1")
    service.get("/renamed")

    with open(service.log_path + ".1") as file:
        assert wait_for(lambda: "/renamed" in file.read())
    assert service.log() == ""


def test_log_that_cannot_be_opened(serve, tmp_path):
    """A log that cannot be opened stops nobody: it says so, logs to stderr and retries at HUP."""
    path = tmp_path / "missing" / "server.log"
    service = serve(args=["--log", str(path)])
    assert "cannot open the log %s: No such file" % path in service.stderr()

    path.parent.mkdir()
    service.signal(signal.SIGHUP)

    assert wait_for(lambda: path.exists() and "reloaded" in path.read_text())


def test_log_of_the_configuration(serve, tmp_path):
    """Without --log that of the configuration is written, and a reload can move it."""
    def logs(name):
        return "[server]\nbind = 127.0.0.1:0\nlog = %s\n" % (tmp_path / name)
    (tmp_path / "a.conf").write_text(logs("a.log"))
    process = subprocess.Popen([sys.executable, PROGRAM, "--config", str(tmp_path / "a.conf")],
                               stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: ((tmp_path / "a.log").exists()
                          and "listening on" in (tmp_path / "a.log").read_text()))
        (tmp_path / "a.conf").write_text(logs("b.log"))
        process.send_signal(signal.SIGHUP)
        assert wait_for(lambda: ((tmp_path / "b.log").exists()
                                 and "reloaded" in (tmp_path / "b.log").read_text()))
    finally:
        process.terminate()
        process.wait()


def test_one_line_per_generation(serve):
    """Each generation is logged once: role, last four of the key id, expiry."""
    service = serve()
    served = [json.loads(service.get(CREDENTIALS)[2]) for _ in range(3)][0]

    lines = re.findall(r"new credentials for BaseIAMRole: (.*)", service.log())

    assert lines == ["...%s, until %s" % (served["AccessKeyId"][-4:], served["Expiration"])]


def test_no_secret_in_the_log(serve):
    """No key or token that is served or asked with is logged, but the last four of a key id."""
    service = serve(ONE + "[container]\nauthorization-token = Basic c2VjcmV0\n")
    token = service.token()
    served = json.loads(service.get(CREDENTIALS, token)[2])
    service.get("/v2/credentials/BaseIAMRole", Authorization="Basic c2VjcmV0")
    service.get("/latest/%s?%s" % (token, token))
    service.signal(signal.SIGUSR1)
    wait_for(lambda: service.log().count("new credentials for BaseIAMRole") == 2)
    service.stop()

    for secret in (served["AccessKeyId"], served["AccessKeyId"][-5:], served["SecretAccessKey"],
                   served["Token"][:40], token, "c2VjcmV0"):
        assert secret not in service.log()


# USR1, and sources that take time.

def test_new_credentials_now(serve):
    """USR1 makes new credentials, at once and for all roles."""
    service = serve("[role Build]\n")
    paths = CREDENTIALS, "/v2/credentials/Build"
    before = [service.get(path)[2] for path in paths]

    service.signal(signal.SIGUSR1)
    wait_for(lambda: service.log().count("new credentials for Build") == 2)

    assert not set(before) & {service.get(path)[2] for path in paths}
    assert "new credentials requested" in service.log()


def test_credentials_file_that_changes(serve, tmp_path):
    """A profile whose file changes is served anew, without a signal."""
    path = tmp_path / "credentials"
    path.write_text("[default]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\n"
                    "aws_secret_access_key = x\n")
    service = serve("[credentials]\nsource = profile\nfile = %s\n" % path,
                    within=with_limits(SWEEP_SECONDS=0.1))
    assert "AKIAIOSFODNN7EXAMPLE" in service.get(CREDENTIALS)[2]

    path.write_text("[default]\naws_access_key_id = AKIAI44QH8DHBEXAMPLE\n"
                    "aws_secret_access_key = y\n")

    assert wait_for(lambda: "AKIAI44QH8DHBEXAMPLE" in service.get(CREDENTIALS)[2])


def test_credentials_are_there_when_the_port_opens(serve, gate):
    """The port opens when the first credentials have come."""
    service = serve("[credentials]\n%s" % gate.settings, wait=False)
    gate.wait_until_begun()
    assert "listening on" not in service.log()

    gate.open()
    service.wait_until_listening()

    assert json.loads(service.get(CREDENTIALS)[2])["Code"] == "Success"


def test_source_that_hangs_at_the_start(serve, gate):
    """A source that hangs keeps the port closed for FIRST_FETCH_WAIT; then the rest is served."""
    begun = time.monotonic()
    service = serve("[credentials]\n%s" % gate.settings, within=with_limits(FIRST_FETCH_WAIT=1))

    assert 0.9 < time.monotonic() - begun < 6
    assert service.get(INSTANCE_ID)[0] == 200


def test_request_waits_for_credentials(serve, gate):
    """A request for credentials being fetched waits for them, while others are answered."""
    service, answers = serve(ONE), []
    service.reload(ONE + "[role Slow]\n%s" % gate.settings)
    gate.wait_until_begun()
    waiting = threading.Thread(
        target=lambda: answers.append(service.get("/v2/credentials/Slow")[0]))

    waiting.start()
    assert service.get(INSTANCE_ID)[0] == 200
    gate.open()
    waiting.join(30)

    assert answers == [200]


def test_request_does_not_wait_for_ever(serve, gate):
    """A request waits for credentials for less than the second that clients wait for it."""
    service = serve(ONE)
    service.reload("[credentials]\n%s" % gate.settings)

    status, _, body = service.get(CREDENTIALS)

    assert (status, json.loads(body)["Code"]) == (200, "Failed")
    took = wait_for(lambda: re.search(r'BaseIAMRole HTTP/1\.1" 200 \d+ ([\d.]+)ms', service.log()))
    assert 700 < float(took.group(1)) < 1000


def test_new_credentials_during_a_fetch(serve, gate):
    """USR1 during a fetch means one more fetch, not a second one beside it."""
    service = serve(ONE)
    service.reload("[credentials]\n%s" % gate.settings)
    gate.wait_until_begun()

    for _ in range(5):
        service.signal(signal.SIGUSR1)
        wait_for(lambda: "new credentials requested" in service.log())
    assert gate.begun() == 1
    gate.open()
    gate.wait_until_begun(2)

    assert wait_for(lambda: '"Success"' in service.get(CREDENTIALS)[2])
    assert gate.begun() == 2


def test_reload_before_the_port_opens(serve, gate):
    """HUP while the first credentials are fetched is acted on."""
    service = serve(ONE + "[credentials]\n%s" % gate.settings, wait=False)
    gate.wait_until_begun()

    service.reload(TWO + "[credentials]\n%s" % gate.settings)
    gate.open()
    service.wait_until_listening()

    assert service.get(INSTANCE_ID)[2] == "i-00000000000000002"
    assert gate.begun() == 1


def test_bad_reload_before_the_port_opens(serve, gate):
    """HUP with a bad configuration before the port opens changes nothing."""
    service = serve(ONE + "[credentials]\n%s" % gate.settings, wait=False)
    gate.wait_until_begun()

    service.reload("garbage")
    gate.open()
    service.wait_until_listening()

    assert service.get(INSTANCE_ID)[2] == "i-00000000000000001"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_stop_before_the_port_opens(serve, gate, number):
    """TERM and INT during the first fetch end the service and the command at once."""
    service = serve("[credentials]\n%s" % gate.settings, wait=False)
    gate.wait_until_begun()

    service.signal(number)

    assert service.process.wait(30) == 0
    assert service.log().endswith("fake-metadata: stopped\n")
    assert "listening on" not in service.log()


# TERM and INT.

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_stop(serve, number):
    """TERM and INT end an idle service with 0; the last line of the log says so."""
    service = serve()

    service.signal(number)

    assert service.process.wait(30) == 0
    assert service.log().endswith("Z fake-metadata: stopped\n")
    assert service.stderr() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_stop_with_a_request_in_flight(serve, number):
    """A request in flight is answered and logged before the end; nobody new is accepted."""
    service = serve(SLOW)
    with service.connect() as client, service.connect() as idle:
        client.sendall(SLOW_REQUEST)
        service.get("/later")  # when this one is answered, the first one has come

        service.signal(number)
        wait_for(lambda: "stopping" in service.log())
        assert idle.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            service.connect()
        answer = client.recv(65536)

    assert answer.startswith(b"HTTP/1.1 200 ") and b"Connection: close\r\n" in answer
    assert service.process.wait(30) == 0
    assert '/hostname HTTP/1.1" 200 ' in service.log()
    assert service.log().endswith("Z fake-metadata: stopped\n")


def test_stop_twice(serve):
    """A second TERM while the first is acted on changes nothing."""
    service = serve(SLOW)
    with service.connect() as client:
        client.sendall(SLOW_REQUEST)
        service.get("/later")

        for _ in range(3):
            service.signal(signal.SIGTERM)
            wait_for(lambda: "stopping" in service.log())

        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert service.process.wait(30) == 0
    assert service.log().count("stopping") == 1


def test_stop_with_a_client_that_says_nothing_more(serve):
    """A client that never ends its request holds up the end for STOP_SECONDS and a tick at most."""
    service = serve(within=with_limits(STOP_SECONDS=0.3, SWEEP_SECONDS=0.1))
    with service.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        service.get("/later")

        service.signal(signal.SIGTERM)

        assert service.process.wait(9) == 0  # before REQUEST_SECONDS would end it


def test_session_token_over_a_restart(serve, tmp_path):
    """With a runtime directory a session token is good after a restart, for what it has left."""
    box = {"RUNTIME_DIRECTORY": str(tmp_path)}
    service = serve(env=box)
    token = service.token(300)
    service.stop()

    status, headers, _ = serve(env=box).get(INSTANCE_ID, token)

    assert status == 200
    assert 290 <= int(headers[TTL_HEADER]) <= 300


def test_session_token_ends_with_a_process(serve):
    """Without a runtime directory a session token ends with its process."""
    token = serve().token(300)

    assert serve().get(INSTANCE_ID, token)[0] == 401


def test_same_instance_over_a_restart(serve):
    """A restart does not make another instance of the box."""
    paths = INSTANCE_ID, "/latest/meta-data/mac", "/latest/dynamic/instance-identity/document"
    service = serve()
    before = [service.get(path)[2] for path in paths]
    service.stop()
    service = serve()

    assert [service.get(path)[2] for path in paths] == before


# NOTIFY_SOCKET.

def test_ready(serve, supervisor):
    """READY=1 comes when it answers, and not before."""
    port = free_port()
    serve(bind="127.0.0.1:%d" % port, env=supervisor.variables, wait=False)

    assert supervisor.next() == "READY=1"
    socket.create_connection(("127.0.0.1", port)).close()


def test_ready_on_an_abstract_socket(serve):
    """A socket whose name begins with @ is an abstract one."""
    supervisor = Supervisor("@fake-metadata-test-%d" % os.getpid())
    serve(env=supervisor.variables)

    assert supervisor.next() == "READY=1"
    supervisor.socket.close()


def test_ready_after_a_reload_before_the_port_opens(serve, gate, supervisor):
    """A reload before the port opens does not say READY=1 too early."""
    service = serve("[credentials]\n%s" % gate.settings, wait=False, env=supervisor.variables)
    gate.wait_until_begun()
    service.reload()

    assert "READY=1" not in supervisor.has_more() + supervisor.has_more()
    gate.open()
    service.wait_until_listening()


@pytest.mark.parametrize("text, bind, number", [
    ("[instance]\ninstance-id = x\n", "127.0.0.1:0", 22), ("", "192.0.2.1:0", 99),
    ("", "taken", 98)],
    ids=["configuration", "address", "port"])
def test_failure_to_start(serve, supervisor, text, bind, number):
    """A failure to start is told as ERRNO, and READY=1 is not."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        service = serve(
            text, bind="127.0.0.1:%d" % taken.getsockname()[1] if bind == "taken" else bind,
            env=supervisor.variables, wait=False)
        assert service.process.wait(30) > 0

    assert supervisor.next() == "ERRNO=%d" % number
    assert supervisor.has_more() == ""


def test_watchdog(serve, supervisor):
    """A supervisor with a watchdog hears again and again that the service is alive."""
    serve(env=dict(supervisor.variables, WATCHDOG_USEC="30000000"))

    assert supervisor.next() == "READY=1"
    assert [supervisor.next(), supervisor.next()] == ["WATCHDOG=1", "WATCHDOG=1"]


def test_address_that_is_not_there_yet():
    """The exit code tells an address that may come later from one that will not do."""
    assert run("192.0.2.1:8000")[0] == os.EX_TEMPFAIL
    assert run("127.0.0.1:99999")[0] != os.EX_TEMPFAIL


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_signal_in_the_first_moment(tmp_path, number):
    """A signal that is ignored when the program begins harms it at no moment of the start."""
    command = [sys.executable, PROGRAM, "--log", str(tmp_path / "log"), "127.0.0.1:0"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               preexec_fn=lambda: signal.signal(number, signal.SIG_IGN))

    while "listening" not in text_of(str(tmp_path / "log")) and process.poll() is None:
        process.send_signal(number)
    process.send_signal(number)
    process.terminate()
    assert process.wait(30) == 0


def test_stopping(serve, supervisor):
    """STOPPING=1 comes with TERM."""
    service = serve(env=supervisor.variables)
    assert supervisor.next() == "READY=1"

    service.stop()

    assert supervisor.next() == "STOPPING=1"


@pytest.mark.parametrize("text", [TWO, "garbage"], ids=["good", "bad"])
def test_reloading(serve, supervisor, text):
    """A reload, good or bad, is told when it begins and when it is over."""
    service = serve(ONE, env=supervisor.variables)
    assert supervisor.next() == "READY=1"

    service.reload(text)

    assert supervisor.next().startswith("RELOADING=1")
    assert supervisor.next() == "READY=1"


def test_supervisor_that_does_not_read(tmp_path):
    """A supervisor whose queue is full holds nobody up."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(address)
        began = time.monotonic()
        for _ in range(2000):
            fake_metadata.notify("READY=1", {"NOTIFY_SOCKET": address})

    assert time.monotonic() - began < 5


def test_dump_without_stdout(tmp_path):
    """--dump with stdout closed from the outset is quiet."""
    code, _, error = run("--dump", preexec_fn=lambda: os.close(1))

    assert (code, error) == (0, "")


@pytest.mark.parametrize("address", ["/nowhere/notify", "nonsense", "@", "/" + "x" * 200])
def test_supervisor_that_is_not_there(address):
    """A supervisor that cannot be told stops nobody."""
    assert fake_metadata.notify("READY=1", {"NOTIFY_SOCKET": address}) is None


def test_stop_is_bounded_after_a_late_delay(serve):
    """A request that is completed after TERM and then delayed does not hold up the end."""
    service = serve("[faults]\nslow = /latest/meta-data/mac delay 1m\n",
                    within=with_limits(STOP_SECONDS=0.3, SWEEP_SECONDS=0.1))
    with service.connect() as connection:
        connection.sendall(b"GET /latest/meta-data/mac HTTP/1.1\r\n")
        wait_for(lambda: open_connections(service) == 1, what="the connection")
        service.process.terminate()
        wait_for(lambda: "stopping" in service.log(), what="the word in the log")
        connection.sendall(b"Host: 127.0.0.1\r\n\r\n")

        assert service.process.wait(30) == 0


def test_dump_that_is_stopped_leaves_no_command(tmp_path):
    """--dump ended by INT ends the credential command and shows no traceback."""
    (tmp_path / "conf").write_text(
        "[credentials]\nsource = process\ncommand = sh -c \"echo $$ > %s; sleep 60\"\n"
        % (tmp_path / "pid"))
    dump = subprocess.Popen([sys.executable, PROGRAM, "--dump", "--config", str(tmp_path / "conf")],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    pid = wait_for(
        lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip(),
        what="the command")

    dump.send_signal(signal.SIGINT)

    assert b"Traceback" not in dump.communicate(timeout=30)[1]
    assert not os.path.exists("/proc/" + pid)


def test_import_leaves_modules_alone():
    """After the import http.server and all below it are whole, and what everybody imports."""
    said = run(command=[sys.executable, "-S", "-c", """
import email, http, http.server, socket, sys
before = dict(sys.modules)
sys.path.insert(0, %r)
import fake_metadata
assert all(sys.modules[name] is module for name, module in before.items())
assert fake_metadata.http.server is http.server and fake_metadata.socket is socket
assert fake_metadata.Handler.__mro__[1] is http.server.BaseHTTPRequestHandler
""" % ROOT])

    assert said == (0, "", "")


def test_modules_imported_by_the_service_are_whole():
    """A program that has them from the service alone can use all of http.server, email, socket."""
    said = run(command=[sys.executable, "-S", "-c", """
import sys
sys.path.insert(0, %r)
import fake_metadata
from http import client, server
import email.utils, http.client, http.server, shutil, socket, socketserver, urllib.parse
assert client.HTTPConnection("x") and server is http.server
assert http.server.email.utils is email.utils and email.utils.formatdate()
assert socketserver.threading.Thread and urllib.parse.quote(" ") == "%%20" and shutil.which("sh")
one, other = socket.socketpair()
with open("/dev/null", "rb") as nothing:
    assert one.sendfile(nothing) == 0
""" % ROOT])

    assert said == (0, "", "")
