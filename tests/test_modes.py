"""The ways in which SDKs ask: IMDS over IPv4 and IPv6, ECS, EKS Pod Identity; on a box, behind it.

One box with all addresses, and a container behind a bridge of it. Debian's botocore knows nothing
of Pod Identity; a newer one is kept beside the root file systems of the boxes. Needs root,
debootstrap, and pip once.
"""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

import box as boxes
from box import Box, difference, why_not
from service import wait_for
from test_box import CHECK, GET, INSTALL, LOG, PURGE, SERVICE, configure
from test_network import ALL_ADDRESSES, EVERYTHING, Container, url

pytestmark = [pytest.mark.skipif(bool(why_not()), reason=why_not() or ""),
              pytest.mark.xdist_group("modes")]

SESSION = os.path.join(os.path.dirname(os.path.abspath(__file__)), "clients", "boto3_session.py")
LIBRARY = "/home/dev/boto3"  # in the box; without the services that it knows
TOKEN_FILE = "/home/dev/token"
DEFAULT = "# as it comes\n"
REQUIRED = "[metadata-options]\nhttp-tokens = required\n"
TOKENS = "[container]\nauthorization-token-file = /home/dev/token\n"
TO_POD = "http://169.254.170.23/v1/credentials"
TO_POD_IPV6 = "http://[fd00:ec2::23]/v1/credentials"
MINE = {"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": TOKEN_FILE}
OTHER = {"AWS_CONTAINER_AUTHORIZATION_TOKEN": "of-another"}

IMDS = {}
IMDS_IPV6 = {"AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "IPv6"}
RELATIVE = {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/credentials/BaseIAMRole"}
POD = dict(MINE, AWS_CONTAINER_CREDENTIALS_FULL_URI=TO_POD)
POD_IPV6 = dict(MINE, AWS_CONTAINER_CREDENTIALS_FULL_URI=TO_POD_IPV6)
MODES = {"imds": (IMDS, "iam-role"), "imds ipv6": (IMDS_IPV6, "iam-role"),
         "relative": (RELATIVE, "container-role"), "pod": (POD, "container-role"),
         "pod ipv6": (POD_IPV6, "container-role")}


def library():
    """Return the folder of a boto3 that knows Pod Identity; get it if it isn't there."""
    folder = os.path.join(boxes.CACHE, "boto3")
    if not os.path.isdir(folder):
        partial = "%s.%d" % (folder, os.getpid())
        os.makedirs(boxes.CACHE, exist_ok=True)
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q",
                   "--no-compile", "--only-binary=:all:", "--target", partial, "boto3 >= 1.34"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=120, universal_newlines=True)
        if done.returncode:
            shutil.rmtree(partial, ignore_errors=True)
            pytest.skip("needs pip, to get boto3: " + done.stdout[-200:])
        os.rename(partial, folder)
    return folder


class Place:
    """Where SDKs and curl run: on the box (`run` is its own), or in a container behind it."""

    def __init__(self, run, python, path, script, token):
        self.run, self.python, self.path, self.script, self.token = run, python, path, script, token

    def session(self, mode, old=False):
        """Run boto3 with the variables of a mode; return Result(code, out, err)."""
        variables = dict(mode, HOME="/nonexistent", AWS_METADATA_SERVICE_TIMEOUT="5",
                         PATH=boxes.PATH, PYTHONDONTWRITEBYTECODE="1")
        if not old:
            variables["PYTHONPATH"] = self.path
        if "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE" in mode:
            variables["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"] = self.token
        words = " ".join("%s='%s'" % item for item in sorted(variables.items()))
        return self.run("env -i %s %s %s </dev/null" % (words, self.python, self.script))

    def finds(self, mode, old=False):
        """Return (how, access key id, region) of what boto3 finds; it has to find keys."""
        result = self.session(mode, old)
        assert result.code == 0, (mode, result)
        found = json.loads(result.out)
        return found["Method"], found["AccessKeyId"], found["Region"]

    def status(self, where, *options):
        """Return the HTTP status that curl gets."""
        result = self.run("curl -s --globoff --max-time 15 -o /dev/null -w '%%{http_code}' %s '%s'"
                          % (" ".join(options), where))
        return int(result.out)


@pytest.fixture(scope="module")
def sdk_box(tmp_path_factory):
    """A box with all addresses and a newer boto3, as long as the module runs."""
    path = library()
    with Box("sysvinit", tmp_path_factory.mktemp("modes")) as box:
        box.copy_product()
        archive = subprocess.run(["tar", "-C", path, "--exclude=./botocore/data/*/*", "-cf", "-",
                                  "."], stdout=subprocess.PIPE, check=True).stdout
        box.ok("mkdir %s && tar -C %s -xf -" % (LIBRARY, LIBRARY), stdin=archive)
        with open(SESSION) as file:
            box.write("/home/dev/session.py", file.read())
        box.write(TOKEN_FILE, "of-the-pod")
        box.before = box.snapshot()
        box.ok(EVERYTHING + INSTALL)
        yield box


@pytest.fixture(scope="module")
def places(sdk_box, tmp_path_factory):
    """Return the box and a container behind it, as places."""
    token = tmp_path_factory.mktemp("container") / "token"
    token.write_text("of-the-pod")  # botocore refuses a line end
    with Container(sdk_box, "br-test") as container:
        sdk_box.container = container
        yield {
            "box": Place(sdk_box.run, "python3", LIBRARY, "/home/dev/session.py", TOKEN_FILE),
            "container": Place(container.run, sys.executable, library(), SESSION, str(token)),
        }


@pytest.fixture(params=["box", "container"])
def place(request, places):
    """Return one place after the other."""
    return places[request.param]


def reconfigure(box, text):
    """Have the service take a configuration, with which check finds nothing wrong."""
    configure(box, text)
    box.ok(SERVICE + "reload")
    result = box.run(CHECK)
    assert result.code == 0 and "all is well" in result.out, result.out


def expected(box, method):
    """Return what boto3 should find."""
    keys = json.loads(box.ok(GET + "http://127.0.0.1:8000/v2/credentials/BaseIAMRole"))
    where = box.ok(GET + "http://127.0.0.1:8000/latest/meta-data/placement/region")
    return method, keys["AccessKeyId"], where


def test_every_mode(sdk_box, place):
    """boto3 finds keys and region in every mode, with nothing configured."""
    reconfigure(sdk_box, DEFAULT)
    for name, (mode, method) in MODES.items():
        assert place.finds(mode) == expected(sdk_box, method), name


@pytest.mark.parametrize("mode", ["imds", "imds ipv6", "relative"])
def test_boto3_of_debian(sdk_box, places, mode):
    """Debian's boto3 finds keys and region in the modes that it knows."""
    reconfigure(sdk_box, DEFAULT)
    variables, method = MODES[mode]
    assert places["box"].finds(variables, old=True) == expected(sdk_box, method)


def expected_with_tokens(box, method):
    """Return what boto3 should find where a token is asked for everywhere."""
    headers = "-H 'Authorization: of-the-pod' "
    keys = json.loads(box.ok(GET + headers + "http://127.0.0.1:8000/v2/credentials/BaseIAMRole"))
    return method, keys["AccessKeyId"]


def test_tokens_required(sdk_box, place):
    """With http-tokens = required each mode finds keys that sends a token; others get nothing."""
    reconfigure(sdk_box, REQUIRED + TOKENS)
    for name, (mode, method) in MODES.items():
        found = place.finds(dict(MINE, **mode))
        assert found[:2] == expected_with_tokens(sdk_box, method) and found[2], name

    for where in (TO_POD, TO_POD_IPV6):
        refused = place.session(dict(OTHER, AWS_CONTAINER_CREDENTIALS_FULL_URI=where))
        assert refused.code == 1 and "CredentialRetrievalError" in refused.err, refused
        assert place.status(where) == 400
        assert place.status(where, "-H 'Authorization: of-another'") == 400
        assert place.status(where, "-H 'Authorization: of-the-pod'") == 200
    assert place.session(RELATIVE).code == 1

    for address in ALL_ADDRESSES.split():
        assert place.status(url(address).strip("'") + "latest/meta-data/") == 401, address


CONTAINER_PATHS = ["v1/credentials", "v1/credentials?id=BaseIAMRole",
                   "v2/credentials/BaseIAMRole", "creds", "role/BaseIAMRole"]


@pytest.mark.parametrize("config, without", [(DEFAULT, 404), (REQUIRED + TOKENS, 401)],
                         ids=["optional", "required"])
def test_no_container_credentials_at_the_addresses_of_imds(sdk_box, places, config, without):
    """Where IMDS is, no path of containers has keys, with the right Authorization neither."""
    reconfigure(sdk_box, config)
    for host in ("169.254.169.254", "[fd00:ec2::254]"):
        for path in CONTAINER_PATHS:
            where = "http://%s/%s" % (host, path)
            assert places["container"].status(where) == without, where
            assert places["container"].status(
                where, "-H 'Authorization: of-the-pod'") == without, where


def test_ipv6_disabled(sdk_box, place):
    """http-protocol-ipv6 = disabled ends the IPv6 mode alone, not Pod Identity over IPv6."""
    reconfigure(sdk_box, "[metadata-options]\nhttp-protocol-ipv6 = disabled\n" + TOKENS)

    refused = place.session(IMDS_IPV6)

    assert refused.code == 1 and "no credentials" in refused.err, refused
    for name in ("imds", "relative", "pod", "pod ipv6"):
        mode, method = MODES[name]
        found = place.finds(dict(MINE, **mode))
        assert found[:2] == expected_with_tokens(sdk_box, method) and found[2], name


def test_addresses_in_the_log(sdk_box, places):
    """A container is in the log with its own address, of the family by which it asks."""
    reconfigure(sdk_box, DEFAULT)
    for number, address in enumerate(ALL_ADDRESSES.split()):
        place = url(address).strip("'") + "latest/meta-data/instance-id"
        assert places["container"].status(place, "-A", "number-%d" % number) == 200, address
        line = wait_for(lambda: sdk_box.run("grep number-%d %s" % (number, LOG)).out,
                        what="a line in the log")
        client = "fd00:cafe::2" if ":" in address else "172.30.0.2"
        assert re.search(r"(^|[\s\[])%s([\s\]:]|$)" % re.escape(client), line), line


def test_nothing_is_left(sdk_box, places):
    """After all that a purge leaves nothing; last here, for it ends what the others need."""
    sdk_box.container.close()
    wait_for(lambda: sdk_box.run("ip link show veth0").code, what="the end of the container")
    sdk_box.ok("ip link del br-test")

    sdk_box.ok(PURGE)
    assert difference(sdk_box.before, sdk_box.snapshot()) == []
