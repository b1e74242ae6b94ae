"""What the README says of a box works as it stands, in its order, on a booted one."""
import json
import re

import pytest

from box import HOME, Box, why_not
from readme import ON_A_BOX, SUDO, Shell, sections_at
from service import CREDENTIALS, readme
from test_box import GET, INSTALL, LOG, META_DATA, credentials, fact

pytestmark = [pytest.mark.skipif(bool(why_not()), reason=why_not() or ""),
              pytest.mark.xdist_group("readme")]

# Of the README's two machines there is one, root's.
HEAD = SUDO + """
ssh() { shift; "$@"; }
scp() { [ -f "$2/install.sh" ]; }
SECRET=a-secret
"""
# Sections that install the service themselves, on a box without it.
INSTALL_THEMSELVES = ("On a box", "Vagrant, images, many boxes")
# The requests of which the README shows a report: (time, address, path, user agent, the rest).
LOGGED = 12 * [
    ("07", "169.254.169.254", CREDENTIALS, "aws-sdk-go/1.38.0 (go1.16; linux; amd64)",
     "v1 user=deploy")
] + [
    ("08", "172.17.0.2", "/v2/credentials/BaseIAMRole", "curl/8.5.0", "v1"),
] + 107 * [
    ("09", "169.254.169.254", CREDENTIALS, "Boto3/1.26.90 md/Botocore#1.29.90 ua/2.0",
     "v2 user=ann"),
]
LINE = '2026-12-01T%s:00:00Z %s "GET %s HTTP/1.1" 200 1278 0.1ms "%s" %s\n'


@pytest.fixture(scope="module")
def box(tmp_path_factory):
    """A box with a copy of the product's folder, and nothing installed yet."""
    with Box("sysvinit", tmp_path_factory.mktemp("readme")) as booted:
        booted.copy_product()
        booted.write("/root/.curlrc", "silent\n")
        yield booted


@pytest.fixture
def shell(box):
    """A shell of root on the box, in the folder beside the product's."""
    with Shell(box.entered(), env=box.environment(), head="cd %s\n%s" % (HOME, HEAD)) as opened:
        yield opened


def prepare(box, section):
    """Bring the box to where a section of the README begins."""
    if section in INSTALL_THEMSELVES:
        box.run("dpkg --purge fake-metadata")
    else:
        box.ok("[ -d /apps ] || " + INSTALL)
    if section == "Real keys":
        box.ok("mkdir /root/.aws")
        box.write("/root/.aws/credentials", "[default]\naws_access_key_id = ASIAIOSFODNN7EXAMPLE\n"
                  "aws_secret_access_key = other\n")
    if section == "Diagnose":
        box.ok("rm -f /run/fake-metadata/set.conf && service fake-metadata reload")
    if section == "Usage report":
        box.write(LOG, "".join(LINE % line for line in LOGGED))


@pytest.mark.parametrize("section", sections_at("box"))
def test_section(box, shell, section):
    """What a section says works as it stands, in its order."""
    prepare(box, section)

    printed = shell.run_section("box", section)

    CHECKS.get(section, lambda *_: None)(box, printed)


def serves_keys(box, printed):
    assert credentials(box)["Code"] == "Success"


def shows_the_notice_and_takes_it_back(box, printed):
    assert "event spot-interruption has begun" in printed
    assert box.run(GET + META_DATA + "spot/instance-action").code != 0
    box.ok(GET + "-H 'Authorization: a-secret' http://127.0.0.1:8000/creds")
    assert box.run(GET + "http://127.0.0.1:8000/creds").code != 0


def is_gone(box, printed):
    assert box.run("test -e /apps").code == 1


def is_another_instance(box, printed):
    other = fact(box, "instance-id")
    box.ok("rm /var/lib/fake-metadata/id && service fake-metadata restart")
    assert other != fact(box, "instance-id")


def serves_the_profile(box, printed):
    assert credentials(box)["AccessKeyId"] == "ASIAIOSFODNN7EXAMPLE"
    box.ok("service fake-metadata unset credentials.source")
    box.ok("service fake-metadata unset credentials.file")


def recommends_a_move(box, printed):
    assert "noticeTime" in printed


def is_verified(box, printed):
    assert "Verified OK" in printed


# Section -> what must be true then, where the README does not show it.
CHECKS = {
    "On a box": serves_keys,
    "Manage the service": shows_the_notice_and_takes_it_back,
    "Upgrade, repair, uninstall": is_gone,
    "Vagrant, images, many boxes": is_another_instance,
    "Real keys": serves_the_profile,
    "Spot interruption and rebalance recommendation": recommends_a_move,
    "Signatures": is_verified,
}


@pytest.mark.parametrize("command", sorted(ON_A_BOX))
def test_command_within_the_text(box, shell, command):
    """A command within the text works on a box."""
    prepare(box, command)

    shell.run_example(command)


def test_actions(box, shell):
    """Each action that the README names beside start works, and so does start after it."""
    prepare(box, "actions")
    others, = re.findall("start +# also (.*)$", readme(), re.M)

    for action in others.split(", "):
        shell.run_example("sudo service fake-metadata %s" % action)
        shell.run_example("sudo service fake-metadata start")


def test_report_for_programs(box, shell):
    """The report as JSON names the clients of the table."""
    prepare(box, "Usage report")

    clients = json.loads(box.ok("service fake-metadata who --json"))["clients"]

    assert [client["user"] or client["address"] for client in clients] == [
        "deploy", "172.17.0.2", "ann"]


def test_profile_that_the_service_cannot_read(box):
    """Check prints the whole remedy for a credentials file of somebody else."""
    prepare(box, "a profile")
    box.ok("mkdir -p /home/ann && chmod 700 /home/ann && touch /home/ann/credentials")
    box.ok("service fake-metadata set credentials.file /home/ann/credentials")
    box.ok("service fake-metadata set credentials.source profile")

    said = box.run("service fake-metadata check").out

    assert ("remedy: sudo install -o fake-metadata -m 400 /home/ann/credentials "
            "/etc/fake-metadata.credentials; then write file = /etc/fake-metadata.credentials in "
            "/etc/fake-metadata.conf; none are served") in said
    box.ok("service fake-metadata unset credentials.source && "
           "service fake-metadata unset credentials.file")
