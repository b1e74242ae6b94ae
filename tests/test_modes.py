"""The ways in which SDKs ask: IMDS over IPv4 and IPv6, ECS, EKS Pod Identity; on a box, behind it.

One box with all addresses, and a container behind a bridge of it. Debian's botocore knows nothing
of Pod Identity; a newer one is kept beside the root file systems of the boxes. Needs root,
debootstrap, and pip once.
"""
import json
import os
import re
import shlex
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


# Prints what boto3 finds in each environment that its argument lists: how, a key id, a region.
SESSIONS = r"""
import json, os, sys
import boto3, botocore.session
from botocore.utils import IMDSRegionProvider

def find():
    keys = boto3.Session().get_credentials()
    if keys is None:
        return "no credentials"
    region = IMDSRegionProvider(botocore.session.Session()).provide()
    return [keys.method, keys.get_frozen_credentials().access_key, region]

common, found = dict(os.environ), []
for mode in json.loads(sys.argv[1]):
    os.environ.clear()
    os.environ.update(common, **mode)
    try:
        found.append(find())
    except Exception as error:
        found.append(type(error).__name__)
print(json.dumps(found))
"""


class Place:
    """Where SDKs and curl run: on the box (`run` is its own), or in a container behind it."""

    def __init__(self, run, python, path, token):
        self.run, self.python, self.path, self.token = run, python, path, token

    def sessions(self, *modes, old=False):
        """Run boto3 once with the variables of each mode; return what each finds, or its error."""
        words = ["env", "-i", "PATH=" + boxes.PATH, "HOME=/nonexistent",
                 "AWS_METADATA_SERVICE_TIMEOUT=5", "PYTHONDONTWRITEBYTECODE=1"]
        words += [] if old else ["PYTHONPATH=" + self.path]
        modes = [{name: self.token if value == TOKEN_FILE else value
                  for name, value in mode.items()} for mode in modes]
        words += [self.python, "-c", SESSIONS, json.dumps(modes)]
        result = self.run(" ".join(map(shlex.quote, words)))
        assert result.code == 0, result
        return json.loads(result.out)

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
            "box": Place(sdk_box.run, "python3", LIBRARY, TOKEN_FILE),
            "container": Place(container.run, sys.executable, library(), str(token)),
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


def expected(box, names):
    """Return what boto3 should find in modes: how, the key id of the box, its region."""
    base = "http://127.0.0.1:8000/"
    keys = json.loads(box.ok(GET + "-H 'Authorization: of-the-pod' " + base
                             + "v2/credentials/BaseIAMRole"))
    token = box.ok(GET + "-X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' " + base
                   + "latest/api/token")
    where = box.ok(GET + "-H 'X-aws-ec2-metadata-token: %s' %slatest/meta-data/placement/region"
                   % (token, base))
    return [[MODES[name][1], keys["AccessKeyId"], where] for name in names]


def test_every_mode(sdk_box, place):
    """boto3 finds keys and region in every mode, with nothing configured."""
    reconfigure(sdk_box, DEFAULT)
    assert place.sessions(*(mode for mode, _ in MODES.values())) == expected(sdk_box, MODES)


def test_boto3_of_debian(sdk_box, places):
    """Debian's boto3 finds keys and region in the modes that it knows."""
    reconfigure(sdk_box, DEFAULT)
    names = ["imds", "imds ipv6", "relative"]
    modes = [MODES[name][0] for name in names]
    assert places["box"].sessions(*modes, old=True) == expected(sdk_box, names)


def test_tokens_required(sdk_box, place):
    """With http-tokens = required each mode finds keys that sends a token; others get nothing."""
    reconfigure(sdk_box, REQUIRED + TOKENS)
    modes = [dict(MINE, **mode) for mode, _ in MODES.values()]
    assert place.sessions(*modes) == expected(sdk_box, MODES)

    refused = [dict(OTHER, AWS_CONTAINER_CREDENTIALS_FULL_URI=TO_POD),
               dict(OTHER, AWS_CONTAINER_CREDENTIALS_FULL_URI=TO_POD_IPV6), RELATIVE]
    assert place.sessions(*refused) == ["CredentialRetrievalError"] * 3
    for where in (TO_POD, TO_POD_IPV6):
        assert place.status(where) == 400
        assert place.status(where, "-H 'Authorization: of-another'") == 400
        assert place.status(where, "-H 'Authorization: of-the-pod'") == 200
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
    others = [name for name in MODES if name != "imds ipv6"]
    modes = [IMDS_IPV6] + [dict(MINE, **MODES[name][0]) for name in others]
    assert place.sessions(*modes) == ["no credentials"] + expected(sdk_box, others)


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
