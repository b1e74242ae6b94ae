"""--capture URL: another metadata service as a configuration of this one."""
import contextlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies

import fake_metadata
from service import PROGRAM, free_port, wait_for

META = "/latest/meta-data/"
USER_DATA = "/latest/user-data"

# Every key of an instance, and values that an INI file does not have by itself.
RICH = r'''
[instance]
instance-id = i-0123456789abcdef0
instance-type = c4.large
instance-life-cycle = spot
architecture = x86_64
system = xen
ami-id = ami-0123456789abcdef0
reservation-id = r-0123456789abcdef0
account-id = 111122223333
availability-zone = eu-central-1b
availability-zone-id = euc1-az9
launch-time = 2026-01-01T00:00:00Z
key-name = my key
public-key = ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA first
  ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAB second key
instance-profile = /a/path/profile
instance-profile-id = AIPAIOSFODNN7EXAMPLEAB
kernel-id = aki-01234567
ramdisk-id = ari-01234567
product-codes = abc, "d,e"
billing-products = bp-1, bp-2
root-device = /dev/sda1
root-device-type = instance-store
ebs-volumes = sdf, ebs4=sdg
ephemeral-volumes = sdb
mac = 0e:00:00:00:00:01
interface-id = eni-0123456789abcdef0
local-ipv4 = 172.31.40.8, 172.31.40.10
local-hostname = box.internal other.internal
public-ipv4 = 198.51.100.8, 198.51.100.10
public-hostname = box.example.com
ipv6 = 2001:db8:8:4::1, 2001:db8:8:4::2
security-groups = default, "web, ""db""", café
security-group-ids = sg-0123456789abcdef0, sg-01234567, sg-0123456789abcdef1
subnet-id = subnet-0123456789abcdef0
subnet-ipv4-cidr-block = 172.31.32.0/20
subnet-ipv6-cidr-blocks = 2001:db8:8:4::/64
vpc-id = vpc-0123456789abcdef0
vpc-ipv4-cidr-blocks = 172.31.0.0/16, 10.0.0.0/16
vpc-ipv6-cidr-blocks = 2001:db8:8::/56
ipv4-prefix = 172.31.48.0/28
ipv6-prefix = 2001:db8:8:4:1::/80

[interface eth1]
local-ipv4 =
ipv6 = 2001:db8:8:5::1
public-ipv4 =
vpc-ipv4-cidr-blocks =
device-number = 3

[interface eth2]
local-ipv4 = 172.31.40.9
network-card = 1

[metadata-options]
instance-metadata-tags = enabled

[credentials]
role = Build
extended = yes

[role Task]
path = /latest/meta-data/iam-ecs-1/security-credentials/0ee1-Task, /latest/meta-data/my/keys
form = instance

[tags]
Name = build 7
zebra = ; not a comment
alpha =
"a=b#c:d" = = [x]
quoted = "quoted"
_end = "

[metadata]
metrics =
instance-action =
iam/info = {"Code" : "Success", "LastUpdated" : "2026-01-01T00:00:00Z"}
placement/host-id = h-0123456789abcdef0
hibernation/configured = ""
several = one
  two
blanks = " \n\n  three\t\n"
comment = "a\n#b\n;c"
control = "\u001b[31m\r\u0000"
string = "\"quoted\""
json = {
  "a" : 1
  }
iam/security-credentials/Second = {"AccessKeyId" : "ASIAIOSFODNN7EXAMPLE"}
"key=with:signs" = x
"[odd]" = x
/latest/meta-data/latest/x = 1
/latest/dynamic/fws/instance-monitoring = enabled

[user-data]
base64 = IyEvYmluL3NoCiAgZWNobwo=

[events]
spot-interruption = +0s terminate
rebalance-recommendation = +0s
scheduled-maintenance = +0s system-reboot +1d +2d,
  2026-01-01T00:00:00Z instance-stop 2026-01-01T00:00:00Z 2026-01-01T01:00:00Z
target-lifecycle-state = Standby
'''

CONFIGURATIONS = {
    "rich": RICH,
    "default": "",
    "v2": "[metadata-options]\nhttp-tokens = required\n",
    "ec2-errors": "[server]\nerror-bodies = ec2\n[credentials]\nrole =\n",
    "rich-v2-ec2": RICH.replace("= enabled", "= enabled\nhttp-tokens = required")
    + "[server]\nerror-bodies = ec2\n",
    "no-role": "[credentials]\nrole =\n",
    "no-addresses": "[instance]\nlocal-ipv4 =\npublic-ipv4 =\nipv6 = 2001:db8:8:4::1\n",
    "no-hostname": "[instance]\npublic-hostname =\nlocal-hostname =\n",
    "little": "[metadata]\nnetwork =\nplacement =\niam =\nservices =\n/latest/dynamic =\n",
    "no-tags": "[metadata-options]\ninstance-metadata-tags = enabled\n",
    "text": "[user-data]\ntext = #cloud-config\n  x: 1\n",
    "binary": "[user-data]\nbase64 = H4sI/wAB\n",
    "hibernate": "[events]\nspot-interruption = +0s hibernate 2026-01-01T00:00:00Z\n",
}
CREDENTIALS = re.compile("security-credentials|my/keys$")
SIGNED = re.compile("/instance-identity/(pkcs7|rsa2048|signature)$")


def captured(url):
    """Return the configuration of the service at a URL, and the notes."""
    return fake_metadata.capture(fake_metadata.MetadataClient(url), time.time())


def tree_at(url):
    """Return {path: text} of a service, without what rotates or is signed; and all paths."""
    client = fake_metadata.MetadataClient(url)
    client.open_session()
    tree, left = {}, ["/latest/meta-data/", "/latest/dynamic/"]
    while left:
        directory = left.pop()
        listing = client.get(directory)
        tree[directory] = listing
        for name in listing.decode().split("\n") if listing else ():
            if directory.endswith("/public-keys/"):
                name = name.partition("=")[0] + "/"
            if name.endswith("/"):
                left.append(directory + name)
            elif CREDENTIALS.search(directory + name) or SIGNED.search(directory + name):
                tree[directory + name] = "rotates, or is signed"
            else:
                tree[directory + name] = re.sub(
                    b'"LastUpdated" : "[^"]*"', b"", client.get(directory + name))
    tree[USER_DATA] = client.get(USER_DATA)
    return tree


def without_times(text):
    """Return a configuration without what changes from second to second."""
    text = re.sub('("LastUpdated" : )"[^"]*"', r"\1", text)
    return text.partition("\n")[2]


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_our_own_is_the_same_again(name):
    """What is captured of our own service serves the same tree again, path by path."""
    with fake_metadata.serve(CONFIGURATIONS[name]) as imds:
        text, notes = captured(imds.url)
        expected = tree_at(imds.url)

    with fake_metadata.serve(text) as imds:
        assert tree_at(imds.url) == expected
        assert without_times(captured(imds.url)[0]) == without_times(text)
    assert notes == []


def test_facts_have_their_keys():
    """Facts stand by their keys, events and tags too, and only what has none is a path."""
    with fake_metadata.serve(RICH) as imds:
        text, _ = captured(imds.url)

    given = fake_metadata.load_config([fake_metadata.ConfigText(text)], environ={}).texts
    assert given["instance"]["instance-id"] == "i-0123456789abcdef0"
    assert given["instance"]["local-ipv4"] == "172.31.40.8, 172.31.40.10"
    assert given["instance"]["security-groups"] == 'default, "web, ""db""", café'
    assert given["instance"]["key-name"] == "my key"
    assert given["interface eth2"]["network-card"] == "1"
    assert given["credentials"] == {"role": "Build", "extended": "yes"}
    assert given["metadata-options"] == {"instance-metadata-tags": "enabled"}
    assert list(given["tags"]) == ["Name", "zebra", "alpha", "a=b#c:d", "quoted", "_end"]
    assert set(given["events"]) == {
        "spot-interruption", "rebalance-recommendation", "target-lifecycle-state"}
    assert given["user-data"] == {"base64": "IyEvYmluL3NoCiAgZWNobwo="}
    assert sorted(key for key in given["metadata"] if key.startswith("network/")) == []


def test_nothing_secret(serve):
    """No key, no token and no user of the URL is printed; credentials are not even asked for."""
    service = serve(RICH + "[metadata]\nmy/key = -----BEGIN PRIVATE KEY-----\n"
                    "my/document = {\"SecretAccessKey\" : \"wJalrXUtnFEMI\"}\n")

    code, said, error = run_capture("http://user:password@127.0.0.1:%d" % service.port)

    assert code == 0
    secret = "ASIA|wJalr|PRIVATE|AQAE|password|SecretAccessKey|Expiration"
    assert not re.search(secret, said + error)
    assert error == ("fake-metadata: # /latest/meta-data/my/document contains a secret: left out\n"
                     "fake-metadata: # /latest/meta-data/my/key contains a secret: left out\n")
    asked = re.findall('"GET ([^ "]+)', service.log())
    assert META + "iam/info" in asked
    assert [path for path in asked if re.search("security-credentials[^/]*/.", path)] == []


SECRETS = {
    "json": '{"secretAccessKey":"wJalr"}',
    "json-in-json": json.dumps({"x": json.dumps({"SecretAccessKey": "wJalr"})}),
    "token": '{"Token" : "wJalr"}',
    "file": "[default]\naws_session_token = wJalr",
    "variables": "export AWS_SECRET_ACCESS_KEY='wJalr'",
    "xml": "<SecretAccessKey>wJalr</SecretAccessKey>",
    "key": "-----BEGIN OPENSSH PRIVATE KEY-----\nwJalr",
}


@pytest.mark.parametrize("name", SECRETS)
def test_secret_in_a_value(name):
    """A value with a key or a token in it is left out, whatever its form."""
    with mock({META: "instance-id\nmine\n", META + "instance-id": "i-0123456789abcdef0",
               META + "mine": SECRETS[name]}) as url:
        text, notes = captured(url)

    assert notes == [META + "mine contains a secret: left out"]
    assert "wJalr" not in text


def test_word_that_is_no_secret():
    """A name or a value that is only the word for a secret is kept."""
    with mock({META: "instance-id\nmy/\n", META + "instance-id": "i-0123456789abcdef0",
               META + "my/": "SecretAccessKey\nother", META + "my/SecretAccessKey": "see Vault",
               META + "my/other": "no SecretAccessKey here"}) as url:
        text, notes = captured(url)

    assert notes == []
    assert "my/SecretAccessKey = see Vault\nmy/other = no SecretAccessKey here\n" in text


KEYS = {"AccessKeyId": "ASIAIOSFODNN7EXAMPLE", "SecretAccessKey": "wJalrXUtnFEMI", "Token": "AQAE"}


@pytest.mark.parametrize("listing", [json.dumps(KEYS, separators=(",", ":")),
                                     json.dumps(KEYS, indent=2)], ids=["one-line", "pretty"])
def test_credentials_instead_of_a_listing(listing):
    """A mock that serves credentials where it should list roles has none of them printed."""
    with mock({META: "instance-id\n", META + "instance-id": "i-0123456789abcdef0",
               META + "iam/security-credentials/": listing}) as url:
        text, notes = captured(url)

    assert notes == [META + "iam/security-credentials contains a secret: left out"]
    assert not re.search("ASIA|wJalr|AQAE|SecretAccessKey", text)


def test_role_that_is_listed_as_a_directory():
    """A role with a slash behind it is a role all the same, and is not asked for."""
    def asked(handler):
        raise AssertionError("credentials were asked for")

    roles = META + "iam/security-credentials/"
    with mock({META: "instance-id\n", META + "instance-id": "i-0123456789abcdef0",
               roles: "Build/", roles + "Build": asked, roles + "Build/": asked}) as url:
        text, notes = captured(url)

    assert "[credentials]\nrole = Build\n" in text
    assert notes == []


def run_capture(url, python=sys.executable, **environ):
    """Run --capture; return its exit code, stdout and stderr."""
    done = subprocess.run(
        [python, PROGRAM, "--capture", url], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=dict(os.environ, **environ), timeout=60)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_command_line(service):
    """The command prints a configuration that begins by telling what it is; no proxy is asked."""
    proxy = "http://127.0.0.1:%d" % free_port()

    code, said, error = run_capture(service.url, http_proxy=proxy, HTTP_PROXY=proxy)

    assert (code, error) == (0, "")
    assert re.match(r"# The instance at %s/, captured at \S+Z by fake-metadata" % service.url, said)


@pytest.mark.parametrize("arguments", [
    ["--config", "x"], ["--set", "a.b=c"], ["--dump"], ["127.0.0.1:0"], ["--", "true"]],
    ids=["config", "set", "dump", "address", "command"])
def test_options_that_do_not_go_together(arguments, capfd):
    """--capture goes with nothing that would have no effect."""
    with pytest.raises(SystemExit) as ended:
        fake_metadata.main(["--capture", "http://127.0.0.1:1/"] + arguments)

    assert ended.value.code == 2
    assert capfd.readouterr().out == ""


# Other services.

class Mock(http.server.BaseHTTPRequestHandler):
    """A metadata service that is a dict: path -> body, status, or function of the handler."""

    def do_GET(self):
        found = self.server.answers.get(self.path, self.server.answers.get("*", 404))
        if callable(found):
            found(self)
            return
        status, body = (found, b"") if isinstance(found, int) else (200, found)
        self.send_response(status)
        for header in self.server.headers.items():
            self.send_header(*header)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_GET

    def log_message(self, *words):
        pass


@contextlib.contextmanager
def mock(answers, **headers):
    """Serve a dict; yield the URL."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mock) as server:
        server.daemon_threads = True
        server.block_on_close = False
        server.answers = {path: body.encode() if isinstance(body, str) else body
                          for path, body in answers.items()}
        server.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield "http://127.0.0.1:%d" % server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def metadata_of(text):
    """Return the MetadataService of a configuration, and how to read a path of it."""
    config = fake_metadata.load_config([fake_metadata.ConfigText(text)], environ={})
    credentials = fake_metadata.make_credentials(config, print, None)
    metadata = fake_metadata.MetadataService(config, credentials, None, "another box")

    def value(path):
        found = metadata.find(path)
        return found and found.current().body.decode()
    return metadata, value


WITHOUT_SLASHES = {
    META: "ami-id\niam\nplacement\nlocal-ipv4\ninstance-id\nown\npublic-keys",
    META + "ami-id": "ami-0123456789abcdef0", META + "instance-id": "i-0123456789abcdef0",
    META + "local-ipv4": "10.0.0.5", META + "iam": "info\nsecurity-credentials",
    META + "iam/info": "{}", META + "iam/security-credentials": "Role",
    META + "iam/security-credentials/": "Role",
    META + "iam/security-credentials/Role": '{"AccessKeyId": "ASIAIOSFODNN7EXAMPLE"}',
    META + "placement": "availability-zone\nregion",
    META + "placement/availability-zone": "eu-west-1a", META + "placement/region": "eu-west-1",
    META + "own": "deep", META + "own/deep": "value", META + "own/deep/value": 404,
    META + "public-keys": "0=my-key", META + "public-keys/0/": "openssh-key",
    META + "public-keys/0/openssh-key": "ssh-rsa AAAA my-key",
    USER_DATA: "#!/bin/sh\n\nexit\n",
}

# As AEMM does: whole paths in one listing, no slashes, JSON with tabs.
WHOLE_PATHS = {
    META: "ami-id\niam/info\niam/security-credentials/Role\ninstance-id\nmac\n"
          "network/interfaces/macs/0e:00:00:00:00:01/local-ipv4s\nplacement/availability-zone\n"
          "public-keys/0/openssh-key\nspot/instance-action\nspot/not-yet\n",
    META + "ami-id": "ami-0123456789abcdef0", META + "instance-id": "i-0123456789abcdef0",
    META + "mac": "0e:00:00:00:00:01",
    META + "network/interfaces/macs/0e:00:00:00:00:01/local-ipv4s": "10.0.0.5",
    META + "iam/info": '{\n\t"Code": "Success"\n}',
    META + "placement/availability-zone": "eu-west-1a",
    META + "public-keys/0/openssh-key": "ssh-rsa AAAA my-key",
    META + "spot/instance-action":
        '{\n\t"action": "terminate",\n\t"time": "2026-01-01T00:02:00Z"\n}',
    "/latest/dynamic/": "instance-identity/document\ninstance-identity/pkcs7\n",
    "/latest/dynamic/instance-identity/document":
        '{\n\t"accountId": "111122223333",\n\t"own": "x"\n}',
    "/latest/dynamic/instance-identity/pkcs7": "MIIC",
}

# As moto does: all of it.
MOTO = {
    META: "iam", META + "iam": '{"security-credentials": {"Role": {"SecretAccessKey": "s"}}}',
    META + "iam/security-credentials/": "Role",
    META + "iam/security-credentials/Role": '{"SecretAccessKey": "s"}',
}


@pytest.mark.parametrize("name", ["WITHOUT_SLASHES", "WHOLE_PATHS", "MOTO"])
@pytest.mark.parametrize("token", [404, 405, 501, "<html>", "token"])
def test_mock(name, token):
    """A mock that lists in its own way, with session tokens or without, is captured as it is."""
    answers = globals()[name]
    with mock({**answers, "/latest/api/token": token}) as url:
        text, notes = captured(url)

    _, value = metadata_of(text)
    expected = {path: body for path, body in answers.items()
                if isinstance(body, str) and not path.endswith(("/", "pkcs7"))
                and not SECRET_OR_DIRECTORY.search(path)}
    assert {path: is_same_as(value(path), body) for path, body in expected.items()} == {
        path: True for path in expected}
    assert value(META + "iam/security-credentials") == "Role"
    assert "[credentials]\nrole = Role\n" in text
    assert "SecretAccessKey" not in text


SECRET_OR_DIRECTORY = re.compile("/iam$|credentials|/(placement|own|public-keys)$")


def is_same_as(value, body):
    """Tell whether a value is what a mock has, but for blanks in JSON, and a key's line feed."""
    with contextlib.suppress(ValueError, TypeError):
        return json.loads(value) == json.loads(body)
    return value.rstrip("\n") == body.rstrip("\n")


@pytest.mark.parametrize("name", ["WITHOUT_SLASHES", "WHOLE_PATHS", "MOTO"])
def test_nothing_is_added_to_a_mock(name):
    """What the default would serve and a mock does not have is removed."""
    answers = globals()[name]
    with mock(answers) as url:
        text, _ = captured(url)

    metadata, value = metadata_of(text)
    named = {path for path in metadata.paths() if path.startswith(META)}
    assert named - {path.rstrip("/") for path in answers} <= {
        META + "iam/security-credentials/Role", META + "public-keys"}
    assert value(META + "ami-launch-index") is None


def test_only_tokens():
    """A service that wants session tokens gets one, and it is sent each time."""
    tokens = []

    def with_token(path):
        def answer(handler):
            tokens.append(handler.headers["X-aws-ec2-metadata-token"])
            body = WITHOUT_SLASHES[path].encode()
            handler.send_response(200 if tokens[-1] == "the-token" else 401)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)
        return answer

    answers = {path: with_token(path) for path, body in WITHOUT_SLASHES.items() if body != 404}
    with mock({**answers, "/latest/api/token": "the-token"}) as url:
        captured(url)

    assert set(tokens) == {"the-token"}


# Failures.

def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b"x" * 65536)


def cut_off(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b"half")


def cut_off_chunk(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nhalf")


def reset(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


def garbage(handler):
    handler.wfile.write(b"\x1b[31mSSH-2.0-\r\n")


def trickle(handler):
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            handler.wfile.write(b"x")
            time.sleep(0.05)  # what a hostile server does, not what the test waits for


def silent(handler):
    handler.rfile.read(1)


def redirect(handler):
    handler.send_response(302)
    handler.send_header("Location", "http://127.0.0.1:1" + handler.path)
    handler.end_headers()


def html(handler):
    body = b"<!DOCTYPE html>\n<html>\ninstance-id\n"
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


GOOD = {META: "instance-id\nlocal-ipv4\nplacement/", META + "instance-id": "i-0123456789abcdef0",
        META + "placement/": "region", META + "placement/region": "x"}
FAILURES = {
    "empty": ({}, "no metadata service at"),
    "html": ({"*": "<!DOCTYPE html>\n<html>x</html>"}, "no metadata service at"),
    "text": ({"*": "ok"}, "no metadata service at"),
    "redirects": ({"*": redirect}, "no metadata service at"),
    "forbidden": ({"*": 403}, "answers 403 for /latest/meta-data/"),
    "wants-tokens": ({"*": 401}, "it requires a session token, and issues none"),
    "error": ({**GOOD, META + "placement/region": 500}, "answers 500 for /latest/meta-data/plac"),
    "cut-off": ({**GOOD, META + "local-ipv4": cut_off}, "local-ipv4: the connection was lost"),
    "cut-off-chunk": ({**GOOD, META + "local-ipv4": cut_off_chunk}, "the connection was lost"),
    "lost": ({**GOOD, META + "local-ipv4": reset}, "local-ipv4: the connection was lost"),
    "garbage": ({"*": garbage}, "the answer is not HTTP"),
    "endless": ({**GOOD, META + "local-ipv4": endless}, "the answer for"),
    "endless-token": ({**GOOD, "/latest/api/token": endless}, "the answer for"),
    "trickle": ({**GOOD, META + "local-ipv4": trickle}, "took more than 1 seconds"),
    "silent": ({**GOOD, META + "local-ipv4": silent}, "no answer within 0.3 seconds"),
    "loop": ({META: "instance-id\nx/", META + "instance-id": "i", "*": "x/"},
             "directories too deep"),
    "many": ({META: "instance-id\n" + "\n".join("x%d" % number for number in range(300)),
              "*": "v"}, "more than 200 paths"),
}


@pytest.mark.parametrize("answer", [reset, garbage, silent, redirect, html],
                         ids=["reset", "garbage", "silent", "redirect", "html"])
def test_no_token_to_be_had(small_limits, answer):
    """A service that cannot do anything with a PUT is captured without a session token."""
    with mock({**WITHOUT_SLASHES, "/latest/api/token": answer}) as url:
        assert "instance-id = i-0123456789abcdef0" in captured(url)[0]


@pytest.fixture
def small_limits(monkeypatch):
    for name, value in (("CAPTURE_SECONDS", 1), ("ANSWER_SECONDS", 0.3),
                        ("MAX_CAPTURED_PATHS", 200)):
        monkeypatch.setattr(fake_metadata, name, value)


@pytest.mark.parametrize("name", FAILURES)
def test_failure(small_limits, capfd, name):
    """What is no whole metadata service is told in one line; nothing is printed of it."""
    answers, words = FAILURES[name]
    with mock(answers) as url:
        code = fake_metadata.main(["--capture", url])

    said, error = capfd.readouterr()
    assert (code, said) == (1, "")
    assert re.fullmatch("fake-metadata: [ -~]+\n", error) and words in error


def test_nobody_there(capfd):
    """Where nobody listens the line says so."""
    code = fake_metadata.main(["--capture", "http://127.0.0.1:%d/" % free_port()])

    said, error = capfd.readouterr()
    assert (code, said) == (1, "")
    assert re.fullmatch(r"fake-metadata: nothing answers at \S+: Connection refused\n", error)


@pytest.mark.parametrize("url", [
    "", "169.254.169.254", "ftp://127.0.0.1/", "http://", "http://127.0.0.1:x/", "http://[::1/",
    "http://127.0.0.1/latest/", "http://127.0.0.1/?x", "http://127.0.0.1\n/", "http://a b/",
    "http://127.0.0.1:80\n"])
def test_bad_address(capfd, url):
    """What is no address of a service is refused with what would be right."""
    assert fake_metadata.main(["--capture", url]) == 1
    said, error = capfd.readouterr()
    assert said == ""
    assert re.fullmatch("fake-metadata: [ -~]+ write it like http://169.254.169.254/\n", error)


# Hostile answers.

HOSTILE = {
    "control": ("x\r\n[credentials]\nsource = process\n  command = touch /tmp/x", False),
    "escape": ("\x1b[2J\x1b]0;x\x07", False),
    "section": ("\n[instance]\ninstance-id = i-00000000000000000", False),
    "comment": ("a\n# b\n; c\n\n[x]", False),
    "quotes": ('"a\n"b" = "c', False),
    "string": ('"\\u001b"', False),
    "nul": ("\0", False),
    "unicode": ("\u2028x\u0085y\u00a0", False),
    "bytes": (b"\xff\xfe", True),
    "long": ("x" * 100000, False),
    "deep": ("[" * 100000, False),
    "number": ("9" * 10000, False),
}
PLACES = ["own", "instance-id", "placement/availability-zone", "tags/instance/Name", "iam/info",
          "security-groups", "public-keys/0/openssh-key", "spot/instance-action", "mac",
          "network/interfaces/macs/0e:00:00:00:00:01/device-number", "block-device-mapping/ebs1",
          "events/maintenance/scheduled", "autoscaling/target-lifecycle-state"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_value(place, name):
    """A value, whatever is in it, stays in its place: it is served again, or left out with a note.
    """
    body, is_left_out = HOSTILE[name]
    with mock({META: "instance-id\n%s\n" % place, META + "instance-id": "i-0123456789abcdef0",
               META + place: body}) as url:
        text, notes = captured(url)

    metadata, value = metadata_of(text)
    if is_left_out:
        assert notes[0] == META + place + " is not text: left out"
    else:
        assert (value(META + place), notes) == (body, [])
    assert set(metadata.paths()) - {META + "instance-id", META + place} == {
        path for path in metadata_of("[metadata]\n/latest/meta-data =\n/latest/dynamic =\n"
                                     "[credentials]\nrole =\n")[0].paths()}
    assert not re.search(r"[\0-\x08\x0b-\x1f\x7f-\x9f]", text)


@pytest.mark.parametrize("listed", [
    "a\r\n", "../../etc", "a/../b", "%2e%2e/", "a?b", "a b", "\x1b[2J", "caf\u00e9", "//", "/a",
    "x = y", "[x]", '"', "#", 'a"=b', "a=b", "." , "meta-data/x", "latest/", "a\ta"])
def test_hostile_listing(listed):
    """A name that is none is left out; any other stays a name."""
    with mock({META: "instance-id\n%s\n" % listed, "*": "v", "/latest/api/token": 404,
               "/latest/dynamic/": 404, "/latest/dynamic": 404, USER_DATA: 404,
               META + "iam/security-credentials/": 404, META + "iam/security-credentials": 404,
               META + listed: "v"}) as url:
        text, notes = captured(url)

    metadata, _ = metadata_of(text)
    assert all(re.fullmatch("/latest/meta-data/[ -~]* left out", note) for note in notes)
    assert not re.search(r"[\0-\x08\x0b-\x1f\x7f-\x9f]|\u00e9", text)
    assert len([path for path in metadata.paths() if path.startswith("/latest/")]) <= 2


@settings(deadline=None)
@given(strategies.text(alphabet=strategies.one_of(
    strategies.sampled_from("a =#;[]\"'\\\n\t\r:"), strategies.characters(
        blacklist_categories=("Cs",)))))
def test_value_is_read_as_it_was_written(text):
    """A value that is written reads back as it was, as a value of any section and of [metadata]."""
    written = fake_metadata.ini_value(text)
    if written is not None:
        assert read("[x]\nkey = %s\n[y]\n" % written) == ("key", text)
    _, quoted = read(fake_metadata.ini_text({"metadata": {"key": fake_metadata.quoted(text)}}))
    assert fake_metadata.unquoted(quoted) == text


@settings(deadline=None)
@given(strategies.text(alphabet=strategies.characters(min_codepoint=33, max_codepoint=126),
                       min_size=1))
def test_key_is_read_as_it_was_written(key):
    """A key that is written reads back as it was; one with a double quote cannot be."""
    written = fake_metadata.ini_key(key)
    assert bool(written) == ('"' not in key)
    if written:
        assert read("[x]\n%s = a = b\n" % written) == (key, "a = b")


def read(content):
    """Return key and text of the only setting of a configuration."""
    with fake_metadata.Mistakes({}) as mistakes:
        found = fake_metadata.read_settings(content, "name", mistakes)
    (setting,) = [setting for setting in found if setting.key]
    return setting.key, setting.text


# Real mocks.

@pytest.mark.skipif(not shutil.which("amazon-ec2-metadata-mock"),
                    reason="no amazon-ec2-metadata-mock: no registry has it")
def test_aemm():
    """AEMM is captured, and its paths are served again."""
    port = free_port()
    aemm = subprocess.Popen(["amazon-ec2-metadata-mock", "--port", str(port)],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = "http://127.0.0.1:%d" % port
        wait_for(lambda: can_connect(port), what="AEMM")
        text, notes = captured(url)
        client = fake_metadata.MetadataClient(url)
        _, value = metadata_of(text)
        for path in client.get(META).decode().split():
            body = client.get(META + path)
            if body and "security-credentials" not in path:
                assert is_same_as(value(META + path), body.decode()), path
    finally:
        aemm.terminate()
        aemm.wait()


def can_connect(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
