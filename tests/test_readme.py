"""Every command and block of the README does what the README says, as it stands.

Here are those that need no root; those of the box are in test_readme_box.py, those of containers in
test_docker.py. They run in a network namespace, with the clients that `sh tests/clients/install.sh`
installs.
"""
import inspect
import os
import re
import shlex
import shutil
from typing import List, NamedTuple

import pytest

import fake_metadata
from readme import (
    COMMANDS,
    NOT_RUN,
    ON_A_BOX,
    PLACES,
    Shell,
    blocks,
    commands_of,
    configurations,
    sections_at,
    without_blocks,
    without_remark,
)
from service import PROGRAM, ROOT, readme
from test_clients import (
    FOLDER,
    HIDDEN_BY,
    NAMESPACE,
    aws_cli,
    namespace_trouble,
    need,
    node,
    python_with,
)

# Files that a test of their own reads: test_clients.py.
CHECKED_APART = ("/etc/cloud/cloud.cfg.d/99-ec2.cfg",)

# What a section finds there: run first.
HIDE = "".join("export %s=%s\n" % variable for variable in HIDDEN_BY.items())
HEADS = {
    "fake-metadata": HIDE,
    "pytest": HIDE,
    "Copy a real instance": """
mkdir instance
scp() { cp "$1" instance/; }
ssh() { shift; (cd instance && "$@"); }
python3 fake_metadata.py >serving 2>&1 & SERVER=$!
until curl -so there http://127.0.0.1:8000/; do sleep 0.1; done
""",
    "Move from amazon-ec2-metadata-mock": """
python3 fake_metadata.py 127.0.0.1:1338 >serving 2>&1 & SERVER=$!
until curl -so there http://127.0.0.1:1338/; do sleep 0.1; done
""",
    "Container credentials and further roles": """
python3 fake_metadata.py --set 'role Reporting.authorization-token=another-secret' >serving 2>&1 &
SERVER=$!
until curl -so there http://127.0.0.1:8000/; do sleep 0.1; done
""",
}
PROFILES = """\
[default]
aws_access_key_id = AKIAI44QH8DHBEXAMPLE
aws_secret_access_key = other
[dev]
aws_access_key_id = ASIAIOSFODNN7EXAMPLE
aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY
aws_session_token = the-token
"""


@pytest.fixture
def shell(tmp_path):
    """Open a shell in a copy of the project; shell(head): run that first."""
    need(not namespace_trouble(), namespace_trouble())
    node("javascript.mjs")
    home, clone = tmp_path / "home", tmp_path / "fake-metadata"
    for folder in (home, clone, tmp_path / "bin"):
        folder.mkdir()
    (home / ".curlrc").write_text("silent\n")  # no progress, as at a terminal
    shutil.copy(PROGRAM, str(clone))
    (clone / "node_modules").symlink_to(FOLDER + "/node_modules")
    for name, program in (("python3", python_with("boto3, pytest")), ("aws", aws_cli("2"))):
        (tmp_path / "bin" / name).write_text('#!/bin/sh\nexec %s "$@"\n' % program)
        (tmp_path / "bin" / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("AWS_", "PYTEST_")) and not name.lower().endswith("_proxy")}
    environ = dict(kept, HOME=str(home), PATH="%s:%s" % (tmp_path / "bin", os.environ["PATH"]))
    shells = []

    def open_shell(head=""):
        shells.append(Shell(NAMESPACE, str(clone), environ, head))
        return shells[0]

    yield open_shell
    for opened in shells:
        opened.close()


@pytest.mark.parametrize("section", sections_at("shell"))
def test_section(shell, section, tmp_path):
    """What a section says works as it stands, in its order."""
    if section == "Real keys":
        (tmp_path / "home" / ".aws").mkdir()
        (tmp_path / "home" / ".aws" / "credentials").write_text(PROFILES)

    printed = shell(HEADS.get(section, "")).run_section("shell", section)

    CHECKS.get(section, lambda text: None)(printed)


def lists_keys_of_ours(printed):
    assert re.search(r"secret_key +\*+\S{4} +(iam|container)-role", printed), printed


def lists_different_keys(printed):
    keys = re.findall("^ASIA.*", printed, re.M)
    assert len(keys) == 6 and len(set(keys)) >= 2


def lists_keys_of_the_profile(printed):
    assert len(re.findall(r"access_key +\*+MPLE +iam-role", printed)) == 2, printed


def passes_two_tests(printed):
    assert re.search("^# pass 2$", printed, re.M), printed


# Section -> what must be true of what it prints, where the README does not show it.
CHECKS = {
    "One shell": lists_keys_of_ours,
    "Watch keys rotate with boto3": lists_different_keys,
    "Real keys": lists_keys_of_the_profile,
    "Copy a real instance": lists_keys_of_ours,
    "Container credentials and further roles": lists_keys_of_ours,
    "Any other language": passes_two_tests,
}


def test_line_that_is_printed_to_be_pasted(shell):
    """The line that a service by hand says to paste is that of the README."""
    opened = shell()

    said = opened.start("python3 fake_metadata.py")

    export, = re.findall("^(export .*)$", readme(), re.M)[:1]
    assert export in said


# Commands within the text. They are those of blocks, or here; some are only names.

INLINE = re.compile(r"`((?:sudo|sh|aws|python3|export|unset|curl|service|docker|apt|dpkg|nft|npm|"
                    r"pip|journalctl|firewall-cmd|ec2-metadata-mock|base64) [^`\n]+)`")
SERVE = """python3 fake_metadata.py >serving 2>&1 & SERVER=$!
until curl -so there http://127.0.0.1:8000/; do sleep 0.1; done
"""
LIST = "aws configure list | grep 'secret_key.*%s-role'\n"
QUEUE = "python3 -c 'import boto3; boto3.client(\"sqs\")'"
RUN_INLINE = {
    "aws configure set ec2_metadata_service_endpoint http://127.0.0.1:8000/":
        SERVE + "{}\n" + LIST % "iam"
        + "python3 -c 'import boto3; print(boto3.Session().get_credentials().access_key)'",
    "export AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1:8000/v2/credentials/BaseIAMRole":
        SERVE + "{}\n" + LIST % "container",
    "aws configure set region us-east-1": "! %s\n{}\n%s" % (QUEUE, QUEUE),
    "export AWS_DEFAULT_REGION=us-east-1": "! %s\n{}\n%s" % (QUEUE, QUEUE),
    "unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_PROFILE":
        SERVE + "export AWS_EC2_METADATA_SERVICE_ENDPOINT=http://127.0.0.1:8000/\n"
        "export AWS_ACCESS_KEY_ID=AKIAI44QH8DHBEXAMPLE AWS_SECRET_ACCESS_KEY=other\n"
        "! " + LIST % "iam" + "{}\n" + LIST % "iam",
    "export AWS_ENDPOINT_URL=http://127.0.0.1:4566":
        "{}\npython3 -c 'import boto3; assert \"4566\" in "
        "boto3.client(\"sqs\", \"us-east-1\").meta.endpoint_url'",
    "python3 fake_metadata.py 127.0.0.1:8001":
        "{} >serving 2>&1 & SERVER=$!\n"
        "until curl -so there http://127.0.0.1:8001/; do sleep 0.1; done",
}
NAMES = {
    "npm test", "docker build", "docker run", "docker network create", "apt remove",
    "unset SECTION.KEY", "base64 FILE", "service fake-metadata", "service fake-metadata set",
}
# Of other programs; what installs clients is run by tests/clients/install.sh.
OF_OTHERS = re.compile("ec2-metadata-mock |firewall-cmd|nft flush|journalctl|(npm|pip) install")


def inline_commands():
    """Return all commands within the text, each once."""
    return list(dict.fromkeys(INLINE.findall(without_blocks())))


@pytest.mark.parametrize("command", RUN_INLINE)
def test_command_within_the_text(shell, command):
    """A command within the text does what the text says."""
    assert command in inline_commands()

    opened = shell()
    for line in RUN_INLINE[command].format(command).splitlines():
        code, said = opened.run(line)
        assert code == 0, (line, said)


def test_every_command_within_the_text_is_run():
    """All are in a block as well, or run here or on the box, or are only names."""
    in_blocks = "\n".join(block.text for block in blocks())

    assert [command for command in inline_commands()
            if command not in in_blocks and command not in RUN_INLINE
            and command not in NAMES and command not in ON_A_BOX
            and not OF_OTHERS.match(command)] == []


@pytest.mark.parametrize("options", re.findall(r"`(--set ['a-z][^`\n]+)`", readme()))
def test_setting_within_the_text(options):
    """A --set within the text is a good one."""
    code = fake_metadata.main(["--test-config"] + shlex.split(options))

    assert code == 0


# The whole.

def test_everything_has_its_place():
    """Each block is run, or is a file or a configuration, or is there to be looked at."""
    for block in blocks():
        if block.name in CHECKED_APART:
            continue
        if block.language in COMMANDS or block.name:
            assert PLACES[block.section] in ("shell", "box", "docker", "nowhere"), block.section
        else:
            assert block.language in ("ini", "text"), block.text


def test_what_is_not_run():
    """What cannot be run is in the README."""
    first_lines = {block.text.partition("\n")[0] for block in blocks()}
    commands = {without_remark(command) for block in blocks() if block.language in COMMANDS
                for command, _ in commands_of(block)}

    assert set(NOT_RUN) <= first_lines | commands
    nowhere = [command for block in blocks() if PLACES.get(block.section) == "nowhere"
               and block.language in COMMANDS for command, _ in commands_of(block)]
    assert {without_remark(command) for command in nowhere} <= set(NOT_RUN)


@pytest.mark.parametrize("text", [text for text, why in NOT_RUN.items() if "needs" in why])
def test_what_is_said_of_what_is_not_run(text):
    """The README says of what cannot be run that it is not tested, before it or in its line."""
    before, _, after = readme().partition("\n" + text)

    around = before[-300:] + after.partition("\n")[0]
    assert "not tested" in " ".join(around.split())


def test_last_command_of_ci(shell):
    """What the example of hosted CI runs in the end is run here, beside the tests of the README."""
    workflow, = [block.text for block in blocks() if block.name == ".github/workflows/test.yml"]
    opened = shell()
    for block in blocks():
        if block.section == "pytest" and block.name:
            opened.write(block.name, block.text)

    assert "4 passed" in opened.run_example(re.findall("- run: (.*)", workflow)[-1])


def test_links():
    """Each link within the README leads to a heading."""
    headings = re.findall("^#+ (.*)$", without_blocks(), re.M)
    anchors = {re.sub("[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-")
               for heading in headings}

    assert len(anchors) == len(headings)
    assert {anchor for anchor in re.findall(r"\]\(#([^)]+)\)", readme())} <= anchors


# The configurations.

@pytest.mark.parametrize("text", configurations())
def test_configuration(check, tmp_path, text):
    """Every configuration is a good one, alone and behind the file that is installed."""
    key = fake_metadata.make_rsa_key(1024)
    certificate = fake_metadata.make_certificate(key)
    files = {"/etc/fake-metadata.key": key.in_pem(),
             "/etc/fake-metadata.pem": fake_metadata.pem("CERTIFICATE", certificate)}
    for name, content in files.items():
        (tmp_path / os.path.basename(name)).write_text(content)
        text = text.replace(name, str(tmp_path / os.path.basename(name)))
    with open(os.path.join(ROOT, "init.d", "fake-metadata.conf"), encoding="utf-8") as file:
        shipped = file.read()

    for whole in (text, shipped + text):
        code, said = check(whole)
        assert code == 0, said


def test_every_section_of_a_configuration_has_an_example():
    """There is an example of every section."""
    given = {section.split()[0] for text in configurations()
             for section in re.findall(r"^\[([^]]+)\]", text, re.MULTILINE)}

    assert given == {name.split()[0] for name in fake_metadata.SETTINGS}


# The table of all keys.

class Row(NamedTuple):
    """A row of the table: the sections that it is of, and its cells."""

    kinds: List[str]
    key: str
    default: str
    forms: List[str]


def rows():
    """Return the rows of the table of keys; one of a section alone is for those below it."""
    kinds, found = [], []
    table = re.search(r"^\| key \| default .*?\n\n", readme(), re.M | re.S).group()
    for line in table.strip().splitlines()[2:]:
        cells = [cell.strip() for cell in line.split("|")[1:]]
        of_sections = re.findall(r"\*\*`\[([^]]+)\]`", cells[0])
        if of_sections:
            kinds = of_sections
        else:
            assert cells[3], "no meaning: " + line
            forms = re.findall("`([^`]+)`", cells[2])
            found.append(Row(kinds, cells[0].strip("`"), cells[1], forms))
    return found


def settings_of(row):
    """Return (parser, default) of a row's key, in each section that the row is of."""
    return [fake_metadata.SETTINGS[kind][row.key] for kind in row.kinds
            if row.key in fake_metadata.SETTINGS[kind]]


def choices(parse):
    """Return the words among which a parser lets one choose; None if it takes other texts, too."""
    return inspect.isfunction(parse) and inspect.getclosurevars(parse).nonlocals.get("words")


def row_ids():
    return ["%s.%s" % (row.kinds[0], row.key) for row in rows()]


def test_table_has_every_key():
    """Every key of the program has a row, and there is no other row."""
    known = {(kind, key) for kind, keys in fake_metadata.SETTINGS.items() for key in keys}
    known |= {("interface NAME", key) for key in fake_metadata.INTERFACE_SETTINGS}
    known -= {(kind, key) for kind in ("instance", "instance NAME")
              for key in fake_metadata.INTERFACE_SETTINGS}  # they have a row, and its remark
    given = {(kind, row.key) for row in rows() for kind in row.kinds
             if row.key in fake_metadata.SETTINGS[kind]}

    assert {(kind, key) for kind, key in known if key != "*"} == given
    assert [row.key for row in rows() if not settings_of(row)] == []


@pytest.mark.parametrize("row", rows(), ids=row_ids())
def test_default_of_a_key(row):
    """The default in the table is the program's; words, where it follows from something else."""
    for parse, default in settings_of(row):
        first = re.match("`([^`]+)`", row.default)
        if default or default == 0:
            assert parse(first.group(1)) == default
        else:
            assert first is None or default == "" and row.key == "file"


@pytest.mark.parametrize("row", rows(), ids=row_ids())
def test_form_of_a_key(row):
    """The program takes each form in the table, and knows no word that is not there."""
    for parse, _ in settings_of(row):
        for form in row.forms:
            parse(form)
        assert set(choices(parse) or row.forms) == set(row.forms) != set()


def test_every_option():
    """The README names every option of the command line."""
    options = re.findall(r"--[a-z-]+", fake_metadata.make_parser().format_help())

    assert options and [option for option in options
                        if not re.search(r"(?<![\w-])%s(?![\w-])" % option, readme())] == []
