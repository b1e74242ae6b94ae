"""The README taken apart, and a shell in which its blocks are run as they stand.

The language of a block says what it is: `sh` are commands, of which each has to succeed; `console`
are commands behind "$ ", with what they print; `text` is there to be looked at. A block whose first
line is a comment with a file name (`# rotation.py`) is that file, in the folder of the commands
around it. Any other `ini` block is a configuration.
"""
import re
import subprocess
import threading
from typing import NamedTuple

from service import readme, wait_for

# Section -> where its commands are run: in a shell without root, on a box, on a box with Docker.
PLACES = {
    "fake-metadata": "shell",
    "One command": "shell",
    "One shell": "shell",
    "On a box": "box",
    "Manage the service": "box",
    "Diagnose": "box",
    "Upgrade, repair, uninstall": "box",
    "Vagrant, images, many boxes": "box",
    "Containers and VMs": "docker",
    "Hop limit": "docker",
    "IPv6, ECS and EKS": "docker",
    "In your own container": "docker",
    "In CI": "nowhere",
    "pytest": "shell",
    "Any other language": "shell",
    "Watch keys rotate with boto3": "shell",
    "Real keys": "shell",
    "Spot interruption and rebalance recommendation": "shell",
    "IMDSv2 only": "shell",
    "GovCloud and China": "shell",
    "Copy a real instance": "shell",
    "Move from amazon-ec2-metadata-mock": "shell",
    "Container credentials and further roles": "shell",
    "Usage report": "box",
    "Signatures": "box",
    "Tested with": "nowhere",
}

# What no test runs -> why not.
NOT_RUN = {
    "# Vagrantfile": "needs Vagrant; its inline command is run by On a box",
    "# .github/workflows/test.yml": "needs a hosted runner; its last command is run by itself",
    "aws sso login --profile dev": "needs an identity provider and a browser",
    "sh tests/run.sh": "would run this very test again; CI runs it",
    "sh tests/run.sh boxes": "the same",
    "python3 tests/bench.py": "takes minutes",
}

# Commands within the text that are run on a box, by test_readme_box.py.
ON_A_BOX = {
    "dpkg -L fake-metadata",
    "dpkg --verify fake-metadata",
    "sudo chmod 640 /etc/fake-metadata.conf",
    "sudo service fake-metadata set server.allowed-hosts imds.test",
}

# The README speaks to a user who may become root; on a box it is root who types.
SUDO = """
sudo() { env "$@"; }
"""

COMMANDS = ("sh", "console")
FILE_NAME = re.compile(r"(?:#|//) (\S+\.\w+|Vagrantfile)")
SERVES = re.compile(r"python3 fake_metadata\.py(?!.* (--|--capture|--certificate|--who)( |$))")
MARK = "= = ="  # in front of an exit status

# What is not the same in each run.
CHANGING = [
    (re.compile(r"\b[AI]SIA[A-Z0-9]{16}\b"), "ASIA"),
    (re.compile(r"\*{16}\S{4}"), "****"),
    (re.compile(r"\.\.\.[A-Z0-9]{4}\b"), "...XXXX"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "TIME"),
    (re.compile(r"\b\d+\.\d+s\b"), "SECONDS"),
    (re.compile(r"fake-metadata \d+\.\d+"), "fake-metadata VERSION"),
    (re.compile(r"[ \t]+$", re.M), ""),
]


class Block(NamedTuple):
    """What stands between two lines of ``` in the README."""

    section: str
    language: str
    text: str

    @property
    def name(self):
        """The file that the block is; None if it is none."""
        found = FILE_NAME.fullmatch(self.text.partition("\n")[0])
        return found and found.group(1)


def blocks():
    """Return all blocks of the README, in their order."""
    found, section = [], None
    # A heading, or a block with its language.
    for heading, language, text in re.findall(
            r"^#+ ([^\n]*)$|^```(\w+)\n(.*?^)```$", readme(), re.M | re.S):
        section = heading or section
        if language:
            found.append(Block(section, language, text))
    return found


def without_blocks():
    """Return the text of the README around its blocks."""
    return re.sub("^```.*?^```$", "", readme(), flags=re.M | re.S)


def place_of(block):
    """Return where a block is run: what needs sudo needs a box, in any section."""
    place = PLACES[block.section]
    if place == "shell" and "sudo " in block.text:
        place = "box"
    return place


def blocks_at(place, section):
    """Return the blocks of a section that are run at a place, files and commands."""
    return [block for block in blocks() if block.section == section
            and (block.name or block.language in COMMANDS) and place_of(block) == place]


def sections_at(place):
    """Return the sections that have commands for a place, in their order."""
    return [section for section in PLACES
            if any(block.language in COMMANDS for block in blocks_at(place, section))]


def configurations():
    """Return the texts of all blocks that are configurations."""
    return [block.text for block in blocks() if block.language == "ini"]


def commands_of(block):
    """Return [(command, what it prints)]; None where a block of `sh` does not say."""
    if block.language == "sh":
        return [(command, None) for command in split_commands(block.text.splitlines())]
    found = []
    for part in re.split(r"^\$ ", block.text, flags=re.M)[1:]:
        lines = part.splitlines()
        length = next(n for n in range(1, len(lines) + 1) if ends_whole(lines[:n]))
        found.append(("\n".join(lines[:length]), "\n".join(lines[length:])))
    return found


def split_commands(lines):
    """Return the commands of some lines: each ends where a shell has a whole one."""
    commands, open_lines = [], []
    for line in lines:
        open_lines.append(line)
        if ends_whole(open_lines):
            commands.append("\n".join(open_lines))
            open_lines = []
    assert not open_lines, "no whole command: %s" % "\n".join(open_lines)
    return [command for command in commands if command.strip()]


def ends_whole(lines):
    """Tell whether a shell has a whole command at the end of some lines."""
    parsed = subprocess.run(["bash", "-n", "-c", "\n".join(lines)], stderr=subprocess.DEVNULL)
    return not lines[-1].endswith("\\") and parsed.returncode == 0


def without_remark(command):
    """Return a command without the remark behind it, by which NOT_RUN knows it."""
    return re.sub(r"\s+# [^'\"]*$", "", command)


def same(text):
    """Return a text with what changes from run to run replaced."""
    for pattern, replacement in CHANGING:
        text = pattern.sub(replacement, text)
    return text.strip("\n")


class Shell:
    """A bash that runs one command after the other; what serves goes on beside the rest.

    `enter` is the command that brings it where it is to be; `head` is run first.
    """

    def __init__(self, enter, cwd=None, env=None, head="", patience=120):
        self.patience = patience
        self.process = subprocess.Popen(
            enter + ["bash"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, cwd=cwd, env=env, universal_newlines=True)
        self.run(head or "true")

    def run_section(self, place, section):
        """Run what a section has for a place, as it stands; return what that prints."""
        return "".join(
            text for block in blocks_at(place, section) for text in self.run_block(block))

    def run_block(self, block):
        if block.name and "# " + block.name not in NOT_RUN:
            self.write(block.name, block.text)
        if block.language not in COMMANDS:
            return []
        return [self.run_example(command, expected) for command, expected in commands_of(block)
                if without_remark(command) not in NOT_RUN]

    def run_example(self, command, expected=None):
        """Run a command that has to succeed, and print what is expected; return that."""
        if SERVES.match(command):
            return self.start(command)
        code, printed = self.run(command)
        assert code == 0, "%s\nexit %d\n%s" % (command, code, printed)
        if expected is not None:
            assert same(printed) == same(expected), "%s\nprinted:\n%s" % (command, printed)
        return printed

    def start(self, command):
        """Run a command that serves beside the rest, in the place of the one before."""
        self.run("[ -z \"${SERVER-}\" ] || { kill $SERVER; wait $SERVER; }")
        self.run("%s >serving 2>&1 & SERVER=$!" % command)
        wait_for(lambda: "listening on" in self.run("cat serving")[1], what=command)
        return self.run("cat serving")[1]

    def write(self, name, text):
        """Write a file into the shell's folder, or where its name says."""
        code, said = self.run("mkdir -p $(dirname {0}) && cat >{0} <<'END OF FILE'\n"
                              "{1}END OF FILE".format(name, text))
        assert code == 0, said

    def run(self, command):
        """Run a command; return (exit status, what it printed). The shell keeps its state."""
        alarm = threading.Timer(self.patience, self.process.kill)
        alarm.start()
        try:
            self.process.stdin.write("{\n%s\n} </dev/null\necho \"%s $?\"\n" % (command, MARK))
            self.process.stdin.flush()
            return self._read(command)
        finally:
            alarm.cancel()

    def _read(self, command):
        printed = []
        for line in self.process.stdout:
            before, mark, status = line.partition(MARK)
            printed.append(before)
            if mark:
                return int(status), "".join(printed)
        raise AssertionError("the shell ended, or it took over %d s: %s\n%s" % (
            self.patience, command, "".join(printed)))

    def close(self):
        """End what still serves, and the shell."""
        self.process.stdin.write("[ -z \"${SERVER-}\" ] || kill $SERVER\nexit\n")
        self.process.stdin.close()
        self.process.wait(self.patience)
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
