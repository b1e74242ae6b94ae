"""The service in a test: `with fake_metadata.serve(...) as imds`."""
import concurrent.futures
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest

import fake_metadata
from service import ROOT, wait_for

ROLE = "latest/meta-data/iam/security-credentials/BaseIAMRole"
INSTANCE_ID = "latest/meta-data/instance-id"
FAILING = "[credentials]\nsource = process\ncommand = %s\n"


def get(url, headers=()):
    """Return what is at a URL, never by way of a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, headers=dict(headers)), timeout=10) as answer:
        return answer.read().decode()


def put_token(url):
    """Return a new session token."""
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    request = urllib.request.Request(url + "latest/api/token", headers=ttl, method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


def open_files():
    return sorted(os.readlink("/proc/self/fd/" + name) for name in os.listdir("/proc/self/fd")
                  if os.path.exists("/proc/self/fd/" + name))


CONFIGURATIONS = {
    "text": "[instance]\ninstance-id = i-0123456789abcdef0\n",
    "mapping": {"instance": {"instance-id": "i-0123456789abcdef0"}},
    "number": {"instance": {"instance-id": "i-0123456789abcdef0"},
               "metadata-options": {"http-put-response-hop-limit": 3}},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configuration(name):
    """A configuration is a text in the form of a file, or {section: {key: value}}."""
    with fake_metadata.serve(CONFIGURATIONS[name]) as imds:
        assert get(imds.url + INSTANCE_ID) == "i-0123456789abcdef0"


@pytest.mark.parametrize("config, error", [
    ("[instance]\nregion = x\n", "configuration:2: [instance] region: "),
    ({"instance": {"region": "x"}}, "configuration: [instance] region: "),
    ("[events]\nspot-interruption = soon\n[x]\n", "configuration:3: [x]: unknown section"),
    ("[instance-identity]\nkey = /nowhere\n", "configuration:2: [instance-identity] key: "),
    ("[user-data]\nfile = /nowhere\n", "configuration:2: [user-data] file: "),
])
def test_mistake(config, error):
    """A mistake is a ConfigError that tells where it is; no file or socket is left."""
    before = open_files()
    with pytest.raises(fake_metadata.ConfigError) as raised, fake_metadata.serve(config):
        pass
    assert error in str(raised.value)
    assert open_files() == before


def test_nothing_is_left():
    """After the block there is no thread, socket or file more than before; no signal is touched."""
    signals = {number: signal.getsignal(number) for number in signal.Signals}
    before = open_files(), threading.enumerate(), resource.getrlimit(resource.RLIMIT_NOFILE)
    environ = dict(os.environ)

    with fake_metadata.serve() as imds:
        assert get(imds.url + INSTANCE_ID)
        assert signals == {number: signal.getsignal(number) for number in signal.Signals}
    after = open_files(), threading.enumerate(), resource.getrlimit(resource.RLIMIT_NOFILE)

    assert after == before
    assert environ == os.environ


def test_error_in_the_block():
    """What a test raises comes out of the block, and the service ends."""
    with pytest.raises(ZeroDivisionError), fake_metadata.serve() as imds:
        url = imds.url
        raise ZeroDivisionError
    with pytest.raises(urllib.error.URLError):
        get(url)


def test_methods_after_the_end():
    """A service that has ended says so, instead of waiting for ever."""
    with fake_metadata.serve() as imds:
        pass
    for call in (imds.rotate, lambda: imds.configure(""), lambda: imds.requests):
        with pytest.raises(RuntimeError, match="this service has stopped"):
            call()


def test_end_while_another_thread_waits(tmp_path):
    """Who waits for new keys when the service ends is told so."""
    begun = tmp_path / "begun"
    slow = FAILING % ("sh -c 'echo > %s; exec sleep 60'" % begun)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with fake_metadata.serve() as imds:
            waiting = pool.submit(imds.configure, slow)
            wait_for(begun.exists, what="the source")
        with pytest.raises(RuntimeError, match="this service has stopped"):
            waiting.result(10)


def test_ten_at_once():
    """Ten run side by side, each in a thread that is not the main one, each as configured."""
    def run(number):
        with fake_metadata.serve({"tags": {"n": number}, "metadata-options": {
                "instance-metadata-tags": "enabled"}}) as imds:
            together.wait()
            return get(imds.url + "latest/meta-data/tags/instance/n")

    together = threading.Barrier(10, timeout=20)
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        assert list(pool.map(run, range(10))) == [str(number) for number in range(10)]


def test_port_is_taken():
    """A port that somebody else has is an OSError that names another one."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        with pytest.raises(OSError, match="fake_metadata.py 127.0.0.1:%d" % (port + 1)):
            with fake_metadata.serve(bind="127.0.0.1:%d" % port):
                pass


def test_bind_wins_over_the_configuration():
    """It listens where the test says, whatever the configuration does."""
    with fake_metadata.serve("[server]\nbind = 127.0.0.1:1\nlog = /nowhere/log\n") as imds:
        assert get(imds.url + INSTANCE_ID)


def test_rotate():
    """When rotate() returns new keys are served."""
    with fake_metadata.serve() as imds:
        seen = [get(imds.url + ROLE)]
        for _ in range(20):
            imds.rotate()
            seen.append(get(imds.url + ROLE))
    assert len(set(seen)) == 21


SLOW_SOURCE = """#!%s
import json, time
time.sleep(0.2)
key_id = "ASIA%%020d" %% time.time_ns()
print(json.dumps({"Version": 1, "AccessKeyId": key_id, "SecretAccessKey": "secret"}))
""" % sys.executable


def test_rotate_waits_for_the_source(tmp_path):
    """When rotate() returns the keys of a slow source are served."""
    command = tmp_path / "source"
    command.write_text(SLOW_SOURCE)
    command.chmod(0o755)
    with fake_metadata.serve(FAILING % command) as imds:
        before = get(imds.url + ROLE)
        imds.rotate()
        assert '"Code" : "Success"' in before
        assert get(imds.url + ROLE) not in (before, "")


def test_rotate_without_a_source(capfd):
    """A source that fails is an error of rotate(), and is said on stderr."""
    with fake_metadata.serve(FAILING % "false") as imds:
        with pytest.raises(fake_metadata.SourceError, match="BaseIAMRole: the command failed"):
            imds.rotate()
    assert "fake-metadata: no new credentials for BaseIAMRole" in capfd.readouterr().err


def test_configure():
    """When configure() returns the new configuration is served, credentials of new roles too."""
    with fake_metadata.serve() as imds:
        imds.configure("[credentials]\nrole = Other\n[events]\nspot-interruption = +0s terminate\n")
        assert '"Success"' in get(imds.url + ROLE.replace("BaseIAMRole", "Other"))
        assert "terminate" in get(imds.url + "latest/meta-data/spot/instance-action")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(imds.url + ROLE)


@pytest.mark.parametrize("text", ["[x]\n", "[metadata]\nplacement = x\n"])
def test_configure_with_a_mistake(text):
    """A mistake is a ConfigError, and the old configuration stays."""
    with fake_metadata.serve(CONFIGURATIONS["text"]) as imds:
        with pytest.raises(fake_metadata.ConfigError):
            imds.configure(text)
        assert get(imds.url + INSTANCE_ID) == "i-0123456789abcdef0"


def test_requests():
    """requests tells what was asked since the last look, and how."""
    with fake_metadata.serve() as imds:
        token = put_token(imds.url)
        get(imds.url + INSTANCE_ID, {"User-Agent": "tester/1",
                                     "X-aws-ec2-metadata-token": token})
        get(imds.url + "2021-03-23/meta-data/?x=y", {"User-Agent": "tester/2"})
        with pytest.raises(urllib.error.HTTPError):
            get(imds.url + "latest/nothing", {"User-Agent": "tester/3"})

        asked = imds.requests
        assert asked[0][:4] == ("PUT", "/latest/api/token", 200, "v2")
        assert asked[1:] == [
            ("GET", "/" + INSTANCE_ID, 200, "v2", "tester/1"),
            ("GET", "/2021-03-23/meta-data/", 200, "v1", "tester/2"),
            ("GET", "/latest/nothing", 404, "v1", "tester/3"),
        ]
        assert asked[1].user_agent == "tester/1" and asked[1].version == "v2"
        assert imds.requests == []


def test_requests_that_are_unanswered_or_unreadable():
    """A request that a fault leaves without an answer has status 0; what is none is not told."""
    with fake_metadata.serve("[faults]\nx = /latest/meta-data/* reset\n") as imds:
        with pytest.raises(OSError):
            get(imds.url + INSTANCE_ID)
        address = imds.url.split("/")[2].split(":")
        with socket.create_connection((address[0], int(address[1]))) as connection:
            connection.sendall(b"nonsense\r\n\r\n")
            assert b" 400 " in connection.recv(4096)
        assert [asked[:3] for asked in imds.requests] == [("GET", "/" + INSTANCE_ID, 0)]


def test_requests_are_bounded(monkeypatch):
    """Of more than it keeps, the last ones are there."""
    monkeypatch.setattr(fake_metadata, "MAX_KEPT_REQUESTS", 3)
    with fake_metadata.serve() as imds:
        for number in range(5):
            get(imds.url + "latest/?%d" % number, {"User-Agent": "tester/%d" % number})
        assert [asked.user_agent for asked in imds.requests] == ["tester/2", "tester/3", "tester/4"]


def test_end_does_not_wait_for_a_client():
    """A client that waits for an answer that does not come is cut off at the end."""
    def ask(url):
        try:
            return get(url)
        except OSError as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with fake_metadata.serve("[faults]\nx = /latest/meta-data/* no-answer\n") as imds:
            answer = pool.submit(ask, imds.url + INSTANCE_ID)
            wait_for(lambda: imds.requests, what="the request")
        assert isinstance(answer.result(1), OSError)


def test_signature_under_way_ends_with_the_block():
    """A key that is being made is not waited for, and no process of ours is left."""
    def ask(url):
        with pytest.raises(OSError):
            get(url)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with fake_metadata.serve() as imds:
            pool.submit(ask, imds.url + "latest/dynamic/instance-identity/rsa2048")
            wait_for(children, what="the child that makes the key")
        assert children() == []


def children():
    path = "/proc/self/task/%d/children"
    found = [open(path % int(task)).read().split() for task in os.listdir("/proc/self/task")]
    return sum(found, [])


HIDING = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_SESSION_TOKEN": "x", "AWS_SECURITY_TOKEN": "x", "AWS_PROFILE": "dev",
    "AWS_DEFAULT_PROFILE": "dev", "AWS_WEB_IDENTITY_TOKEN_FILE": "/x", "AWS_ROLE_ARN": "x",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1/x",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/x", "AWS_CONTAINER_AUTHORIZATION_TOKEN": "x",
    "AWS_EC2_METADATA_DISABLED": "true", "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "IPv6",
    "FAKE_METADATA_PID": "1",
}


@pytest.mark.parametrize("name", HIDING)
def test_environment_hides_nothing(monkeypatch, name):
    """What comes before the metadata service in an SDK's chain is taken out."""
    monkeypatch.setenv(name, HIDING[name])
    monkeypatch.setenv("KEPT", "yes")
    with fake_metadata.serve() as imds:
        environ = imds.environ
    assert name not in environ
    assert environ["KEPT"] == "yes"
    assert environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"] == environ["FAKE_METADATA_URL"] == imds.url
    assert os.environ[name] == HIDING[name]


@pytest.mark.parametrize("name", ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "BOTO_CONFIG"])
def test_environment_has_no_files(name):
    """Files with keys and profiles, also those at their usual places, are not looked at."""
    with fake_metadata.serve() as imds:
        assert imds.environ[name] == os.devnull


@pytest.mark.parametrize("given, regions", [
    ({}, ("eu-central-1", "eu-central-1")),
    ({"AWS_REGION": "us-west-2"}, ("us-west-2", "us-west-2")),
    ({"AWS_DEFAULT_REGION": "us-west-2"}, ("us-west-2", "us-west-2")),
    ({"AWS_REGION": "a", "AWS_DEFAULT_REGION": "b"}, ("a", "b")),
    ({"AWS_REGION": ""}, ("eu-central-1", "eu-central-1")),
])
def test_region(given, regions):
    """The region is that of the instance, unless one is set."""
    environ = fake_metadata.client_environment(given, "http://127.0.0.1:1/", "eu-central-1")

    assert (environ["AWS_REGION"], environ["AWS_DEFAULT_REGION"]) == regions


@pytest.mark.parametrize("given, upper, lower", [
    ({}, "127.0.0.1", "127.0.0.1"),
    ({"NO_PROXY": ""}, "127.0.0.1", "127.0.0.1"),
    ({"NO_PROXY": "a,b"}, "a,b,127.0.0.1", "a,b,127.0.0.1"),
    ({"no_proxy": "a"}, "a,127.0.0.1", "a,127.0.0.1"),
    ({"NO_PROXY": "a", "no_proxy": "b"}, "a,127.0.0.1", "b,127.0.0.1"),
    ({"NO_PROXY": "*"}, "*", "*"),
])
def test_no_proxy(given, upper, lower):
    """No proxy comes between; and none where there was none before."""
    environ = fake_metadata.client_environment(given, "http://127.0.0.1:1/", "eu-central-1")

    assert (environ["NO_PROXY"], environ["no_proxy"]) == (upper, lower)


def test_environment_is_that_of_now(monkeypatch):
    """environ follows the environment and the configuration."""
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    with fake_metadata.serve() as imds:
        assert imds.environ["AWS_REGION"] == "us-east-1"
        imds.configure("[instance]\navailability-zone = eu-central-1b\n")
        assert imds.environ["AWS_REGION"] == "eu-central-1"


def test_folders_of_another_service(monkeypatch, tmp_path):
    """Nothing is written to the folders of the unit that runs the tests."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "socket"))
    with fake_metadata.serve() as imds:
        put_token(imds.url)
        imds.rotate()
    assert list(tmp_path.iterdir()) == []


def test_log(tmp_path):
    """The log goes to a file that the test names."""
    with fake_metadata.serve(log=str(tmp_path / "log")) as imds:
        get(imds.url + INSTANCE_ID)
    text = (tmp_path / "log").read_text()
    assert "GET /%s " % INSTANCE_ID in text
    assert text.endswith("stopped\n")


WARNINGS = """
import sys, urllib.request
sys.path.insert(0, %r)
import fake_metadata
with fake_metadata.serve() as imds:
    urllib.request.urlopen(imds.url + "latest/").read()
    imds.rotate()
    imds.configure("")
""" % ROOT


def test_no_warning():
    """Nothing is left for Python's development mode to warn of."""
    result = subprocess.run([sys.executable, "-W", "error", "-X", "dev", "-c", WARNINGS],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            universal_newlines=True)
    assert (result.returncode, result.stderr) == (0, "")
