"""What is set until the next boot, and the state by which one knows that it is served."""
import json
import os
import re
import signal
import subprocess
import sys

import pytest

import fake_metadata
from fake_metadata import ConfigError, change_overlay, overlay_in_words, read_state, written_texts
from service import PROGRAM, wait_for


@pytest.fixture
def overlay(tmp_path):
    """An empty overlay, as a start makes it."""
    path = tmp_path / "set.conf"
    path.write_text("")
    return path


@pytest.fixture
def config(tmp_path):
    """The configuration below it."""
    path = tmp_path / "fake-metadata.conf"
    path.write_text("[tags]\nName = of-the-file\n[role Build]\nlifetime = 1h\n"
                    "[container]\nauthorization-token = of-the-file\n")
    return path


def run(arguments, text=b"", **environ):
    """Run the program; return its exit code and what it says."""
    result = subprocess.run([sys.executable, PROGRAM, *arguments], input=text, timeout=20,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            env={**os.environ, **environ})
    return result.returncode, result.stdout.decode()


# ---- SECTION.KEY

NAMES = {
    "a fixed section": ("events.spot-interruption", ("events", "spot-interruption")),
    "a named section": ("role Reporting.lifetime", ("role Reporting", "lifetime")),
    "a name with dots": ("role my.own.role.lifetime", ("role my.own.role", "lifetime")),
    "a key with dots": ("tags.a.b", ("tags", "a.b")),
    "a path": ("metadata.placement/host-id", ("metadata", "placement/host-id")),
    "a whole path": ("metadata./latest/dynamic/a.b", ("metadata", "/latest/dynamic/a.b")),
    "a quoted key": ('tags."a=b.c"', ("tags", "a=b.c")),
}


@pytest.mark.parametrize("name", NAMES)
def test_name_of_a_setting(name):
    """A name is split behind the longest section that there is."""
    given, expected = NAMES[name]
    assert fake_metadata.split_name(given) == expected


@pytest.mark.parametrize("name", ["", "events", "events.", ".key", "event.spot-interruption", "."])
def test_what_is_no_name(name):
    """A name without section or key is an error."""
    with pytest.raises(ConfigError):
        fake_metadata.split_name(name)


# ---- the file

TEXTS = {
    "a word": ("tags", "Name", "build-7"),
    "an empty value": ("instance", "public-ipv4", ""),
    "a value that looks like a section": ("tags", "Name", "[tags]"),
    "a value that looks like a comment": ("tags", "Name", "# no"),
    "a value with signs": ("tags", "Name", 'a = b : c "d" % \\ ; #'),
    "a value in quotes": ("tags", "Name", '"a" = b'),
    "letters with accents": ("tags", "Name", "Gr\u00fc\u00dfe"),
    "several lines": ("metadata", "/latest/a", "-----BEGIN-----\nMII=\n[x]\na = b\n-----END-----"),
    "a key with an equals sign": ("tags", "a=b", "c"),
    "a key with a colon": ("tags", "a:b", "c"),
    "a key with a hash": ("faults", "#1", "/latest/* status 500"),
    "a key that looks like a section": ("faults", "[x]", "/latest/* status 500"),
    "a named section": ("role Reporting", "lifetime", "30m"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_set_reads_as_it_was(overlay, name):
    """Whatever a file can have is read as it was set, beside what was set before."""
    section, key, text = TEXTS[name]
    change_overlay(str(overlay), [], "set", "events.rebalance-recommendation", "+60s")
    change_overlay(str(overlay), [], "set", '%s."%s"' % (section, key), text)

    assert written_texts([str(overlay)]) == {
        "events": {"rebalance-recommendation": "+60s"}, section: {key: text}}


CANNOT = {
    "indentation": ("user-data.text", "a:\n  b"),
    "an empty line": ("user-data.text", "a\n\nb"),
    "a comment": ("user-data.text", "#cloud-config\n# b"),
    "a section with a bracket": ("role a].lifetime", "1h"),
    "a key of two lines": ("tags.a\nb", "1h"),
}


@pytest.mark.parametrize("name", CANNOT)
def test_what_a_file_cannot_have(overlay, name):
    """What would read as something else is refused, and the overlay stays as it is."""
    overlay.write_text("[tags]\nName = x\n")

    with pytest.raises(ConfigError, match="file"):
        change_overlay(str(overlay), [], "set", *CANNOT[name])
    assert overlay.read_text() == "[tags]\nName = x\n"


def test_owner_and_mode_stay(overlay):
    """An overlay is a new file with the old mode; nothing is left beside it."""
    overlay.chmod(0o640)
    before = overlay.stat().st_ino

    change_overlay(str(overlay), [], "set", "tags.Name", "x")

    assert overlay.stat().st_mode & 0o777 == 0o640 and overlay.stat().st_ino != before
    assert os.listdir(str(overlay.parent)) == ["set.conf"]


def test_links_are_not_followed(overlay, tmp_path):
    """A link in the place of the new file is not written through."""
    (tmp_path / "victim").write_text("")
    (tmp_path / "set.conf.part").symlink_to(tmp_path / "victim")

    change_overlay(str(overlay), [], "set", "tags.Name", "x")

    assert (tmp_path / "victim").read_text() == "" and not overlay.is_symlink()


# ---- what is said

def test_what_a_change_says(overlay, config):
    """A change says what is different, and what was there before."""
    def change(*arguments):
        return change_overlay(str(overlay), [str(config)], *arguments)

    assert change("set", "tags.Name", "x") == (
        "tags.Name = x (until the next boot; was: of-the-file)")
    assert change("set", "tags.Name", "y") == "tags.Name = y (until the next boot; was: x)"
    assert change("set", "tags.Other", "") == (
        "tags.Other = (empty) (until the next boot; was: not set)")
    assert change("unset", "tags.Name") == (
        "tags.Name = of-the-file (as in the configuration; was: y)")
    assert change("unset", "tags.Other") == (
        "tags.Other = not set (as in the configuration; was: (empty))")
    assert written_texts([str(overlay)]) == {}


def test_event_that_is_set_again(overlay, config):
    """An event, or a fault, that is set to what it is goes on; how to begin it anew is said."""
    def change(*arguments):
        return change_overlay(str(overlay), [str(config)], *arguments)

    first = change("set", "events.rebalance-recommendation", "+0s")
    second = change("set", "events.rebalance-recommendation", "+0s")
    assert "it goes on" not in first
    assert second.endswith(
        "(until the next boot; unchanged, so not restarted: to restart it, unset it first; "
        "was: +0s)")


def test_unset_of_what_is_not_set(overlay, config):
    """To unset what is not set is an error that says what is set."""
    with pytest.raises(ConfigError, match=r"tags\.Name is not set; .* boot: nothing"):
        change_overlay(str(overlay), [str(config)], "unset", "tags.Name")
    change_overlay(str(overlay), [], "set", "role Build.users", "ci")
    with pytest.raises(ConfigError, match=r"boot: role Build\.users"):
        change_overlay(str(overlay), [str(config)], "unset", "tags.Name")


SECRETS = {
    "a key": "credentials.secret-access-key",
    "a session token": "role Build.session-token",
    "an authorization": "container.authorization-token",
    "user data": "user-data.text",
}


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_hidden(overlay, config, name):
    """Neither a change nor show tells a secret, a former one, or user data."""
    paths = str(overlay), [str(config)]
    said = [change_overlay(*paths, "set", SECRETS[name], "ToPsEcReT1"),
            change_overlay(*paths, "set", SECRETS[name], "ToPsEcReT2"),
            *overlay_in_words(*paths),
            change_overlay(*paths, "unset", SECRETS[name])]

    assert not re.search("ToPsEcReT|of-the-file", "\n".join(said)), said


def test_show(overlay, config):
    """show tells, of each setting, what the configuration has instead."""
    assert overlay_in_words(str(overlay), [str(config)]) == ["nothing is set until the next boot"]
    texts = {"tags.Name": "x", "metadata.a": "1\n2", "events.spot-interruption": ""}
    for name, text in texts.items():
        change_overlay(str(overlay), [], "set", name, text)
    assert overlay_in_words(str(overlay), [str(config)]) == [
        "set until the next boot:",
        "  tags.Name = x (in the configuration: of-the-file)",
        "  metadata.a = (3 characters) (in the configuration: not set)",
        "  events.spot-interruption = (empty) (in the configuration: not set)"]


# ---- the command line

def test_value_from_standard_input(overlay):
    """A value loses its last line end and the blanks at line ends, nothing else."""
    given = " -----BEGIN-----\r\nMII= \n-----END-----\n".encode()

    code, said = run(["--overlay", str(overlay), "set", "metadata./latest/a"], given)

    assert (code, said) == (0, "metadata./latest/a = (34 characters) "
                               "(until the next boot; was: not set)\n")
    assert written_texts([str(overlay)]) == {
        "metadata": {"/latest/a": "-----BEGIN-----\nMII=\n-----END-----"}}


BAD_USE = {
    "no verb": ([], b"", "write FILE set SECTION.KEY"),
    "another verb": (["list"], b"", "write FILE set SECTION.KEY"),
    "no name": (["set"], b"x", "write SECTION.KEY"),
    "no UTF-8": (["set", "tags.Name"], b"\xff", "not UTF-8"),
    "too long": (["set", "tags.Name"], b"x" * 65537, "larger than 65536 bytes"),
}


@pytest.mark.parametrize("name", BAD_USE)
def test_bad_use(overlay, name):
    """A mistake is one line and exit code 1, and changes nothing."""
    arguments, text, words = BAD_USE[name]
    code, said = run(["--overlay", str(overlay), *arguments], text)

    assert code == 1 and words in said and said.count("\n") == 1
    assert overlay.read_text() == ""


def test_overlay_that_is_not_there(tmp_path):
    """An overlay that is not there is an error."""
    code, said = run(["--overlay", str(tmp_path / "set.conf"), "set", "tags.Name"], b"x")
    assert code == 1 and "No such file" in said


# ---- the state

@pytest.fixture
def watched(serve, tmp_path):
    """Start a service with a state, and return it with a function that reads its state."""
    def state():
        return read_state(str(tmp_path / "run"))

    def start(config, writes=True):
        (tmp_path / "run").mkdir(exist_ok=True)
        before = state()["starts"]
        service = serve(config, env={"RUNTIME_DIRECTORY": str(tmp_path / "run")})
        wait_for(lambda: not writes or state()["starts"] != before, what="the state")
        return service, state
    return start


def wait_until(state, **counts):
    """Return the state that has these counts."""
    wait_for(lambda: counts.items() <= state().items(), what=str(counts))
    return state()


def test_state_after_a_start(watched):
    """After a start the state says what was read, and what is served; no secret is in it."""
    service, state = watched("[events]\nspot-interruption = +0s terminate\n"
                             "rebalance-recommendation = +1h\n"
                             "[faults]\nnow = /x reset\nlater = /x reset from +1h\n")
    found = state()
    keys = json.loads(service.get("/latest/meta-data/iam/security-credentials/BaseIAMRole")[2])

    changed = os.stat(service.config_path).st_mtime_ns
    assert found["read"] == {service.config_path: "%d.%09d" % divmod(changed, 10 ** 9)}
    assert (found["starts"], found["reloads"], found["rotations"], found["error"]) == (1, 0, 0, "")
    assert found["roles"]["BaseIAMRole"] == "...%s, until %s" % (
        keys["AccessKeyId"][-4:], keys["Expiration"])
    assert (found["events"], found["faults"]) == (["spot-interruption"], ["now"])
    assert keys["AccessKeyId"] not in json.dumps(found)


def test_state_has_a_key_a_line(watched, tmp_path):
    """A shell can read the state with sed."""
    watched("")
    lines = (tmp_path / "run" / "state").read_text().split("\n")
    assert '  "starts": 1,' in lines and '  "error": "",' in lines


def test_counts_grow_within_a_boot(watched):
    """A service that starts anew goes on counting."""
    service, state = watched("")
    service.signal(signal.SIGHUP)
    wait_until(state, reloads=1)
    service.stop()

    service, state = watched("")
    assert wait_until(state, starts=2)["reloads"] == 1


def test_state_after_a_reload(watched):
    """After a reload the state has what was read, and the error of a bad one."""
    service, state = watched("")
    service.reload("[instance]\nbogus = 1\n")
    assert "bogus" in wait_until(state, reloads=1)["error"]

    service.reload("[tags]\nName = x\n")
    found = wait_until(state, reloads=2)
    changed = os.stat(service.config_path).st_mtime_ns
    assert found["error"] == ""
    assert found["read"][service.config_path] == "%d.%09d" % divmod(changed, 10 ** 9)


def test_state_after_a_rotation(watched):
    """A rotation is counted when the new credentials are there; the log says so, too."""
    service, state = watched("[role Build]\n")
    before = state()["roles"]
    service.signal(signal.SIGUSR1)
    after = wait_until(state, rotations=1)["roles"]

    assert set(before) == set(after) and not set(before.values()) & set(after.values())
    line = wait_for(lambda: re.search("rotated: (.*)", service.log()))
    assert "Build " + after["Build"] in line.group(1)


def test_rotation_that_takes_its_time(watched, tmp_path):
    """A rotation is not counted while a source is at work; signals meanwhile are one rotation."""
    script = tmp_path / "source"
    script.write_text("#!/bin/sh\nwhile [ -e %s/slow ]; do sleep 0.05; done\n"
                      'echo \'{"Version": 1, "AccessKeyId": "ASIAIOSFODNN7EXAMPLE", '
                      '"SecretAccessKey": "x"}\'\n' % tmp_path)
    script.chmod(0o755)
    service, state = watched("[credentials]\nsource = process\ncommand = %s\n" % script)
    (tmp_path / "slow").write_text("")

    service.signal(signal.SIGUSR1)
    wait_for(lambda: "new credentials requested" in service.log())
    service.get("/latest/")
    assert state()["rotations"] == 0
    (tmp_path / "slow").unlink()
    assert wait_until(state, rotations=1)["rotation-error"] == ""


def test_rotation_that_fails(watched, tmp_path):
    """A rotation that fails is counted with the reason; the log has it."""
    path = tmp_path / "credentials"
    path.write_text("[default]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\n"
                    "aws_secret_access_key = x\n")
    service, state = watched("[credentials]\nsource = profile\nfile = %s\n" % path)
    path.unlink()
    service.signal(signal.SIGUSR1)

    found = wait_until(state, rotations=1)
    assert found["rotation-error"].startswith("no new credentials for BaseIAMRole: ")
    assert found["roles"]["BaseIAMRole"].startswith("...MPLE")
    wait_for(lambda: "not rotated: no new credentials for BaseIAMRole: " in service.log())


def test_state_follows_what_is_served(watched):
    """Events that begin after a start are in the state as soon as they are served."""
    _, state = watched("[events]\nspot-interruption = +1500ms terminate\n")
    assert state()["events"] == []
    wait_for(lambda: state()["events"] == ["spot-interruption"], what="the event")


HARM = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(str(path)),
    "did not print JSON": lambda path: path.write_text("{"),
    "a list": lambda path: path.write_text("[]"),
    "other types": lambda path: path.write_text('{"starts": "x", "reloads": null}'),
    "a link to nowhere": lambda path: path.symlink_to("/nonexistent/state"),
}


@pytest.mark.parametrize("name", HARM)
def test_something_else_in_its_place(watched, tmp_path, name):
    """Whatever stands in the state's place, the service starts, serves and reloads."""
    (tmp_path / "run").mkdir()
    HARM[name](tmp_path / "run" / "state")
    service, _ = watched("", writes=False)
    service.reload("[instance]\ninstance-type = m7g.large\n")
    assert service.get("/latest/meta-data/instance-type")[2] == "m7g.large"


def test_state_that_cannot_be_written(watched, tmp_path):
    """Where the folder of the state is gone the service serves, reloads and rotates."""
    service, _ = watched("")
    for path in (tmp_path / "run").iterdir():
        path.unlink()
    (tmp_path / "run").rmdir()
    service.signal(signal.SIGUSR1)
    service.reload("[instance]\ninstance-type = m7g.large\n")
    assert service.get("/latest/meta-data/instance-type")[2] == "m7g.large"


def test_show_says_what_is_served(watched, overlay, tmp_path):
    """show has what was read and what is served, and a file that was changed since."""
    service, _ = watched("[faults]\noutage = /x reset\n")
    command = ["--config", service.config_path, "--overlay", str(overlay), "show"]
    _, said = run(command, RUNTIME_DIRECTORY=str(tmp_path / "run"))
    assert re.search(r"role BaseIAMRole: \.\.\.\w{4}, until 20", said), said
    assert "  fault outage is active\n" in said and "changed since" not in said

    service.write_config("")
    _, said = run(command, RUNTIME_DIRECTORY=str(tmp_path / "run"))
    assert "fake-metadata.conf, changed since then; remedy: service fake-metadata reload\n" in said


def test_rotation_after_a_bad_reload(watched, overlay, tmp_path):
    """After a rotation show still says that the file, as it is now, is not what is served."""
    service, state = watched("")
    service.reload("[instance]\nbogus = 1\n")
    service.signal(signal.SIGUSR1)
    wait_until(state, reloads=1, rotations=1)

    _, said = run(["--overlay", str(overlay), "show"], RUNTIME_DIRECTORY=str(tmp_path / "run"))
    assert "not reloaded, the old configuration stays:\n  %s:2: [instance] bogus" % (
        service.config_path) in said
