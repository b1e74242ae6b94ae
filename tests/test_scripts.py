"""The shell scripts as files, and what they do for an ordinary user: --help, --dry-run, DESTDIR."""
import os
import re
import shutil
import subprocess
import tempfile

import pytest

import fake_metadata
from service import ROOT

INSTALLED = r"\.|venv|node_modules|cloud-init|build|__pycache__"  # folders, not the project's
PRODUCT = ["fake_metadata.py", "install.sh", "uninstall.sh", "iptables.rules", "init.d",
           "logrotate.d"]


def run(*command, **options):
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=120, **options)


def scripts(shells):
    """Return the project's files that begin by naming one of some shells."""
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name == ".ci" or not re.match(INSTALLED, name)]
        for path in filter(os.path.isfile, (os.path.join(folder, name) for name in names)):
            with open(path, "rb") as file:
                if re.match(br"#!.*\b(%s)\b" % shells, file.readline(100)):
                    found.append(os.path.relpath(path, ROOT))
    return sorted(found)


def test_names_that_scripts_import():
    """What the scripts take from the program is in it."""
    imported = set()
    for name in scripts(b"sh|dash|bash"):
        with open(os.path.join(ROOT, name), encoding="utf-8") as file:
            for names in re.findall(r"from fake_metadata import ([\w, ]+)", file.read()):
                imported |= set(names.split(", "))

    assert imported and [name for name in imported if not hasattr(fake_metadata, name)] == []


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("name", scripts(b"sh|dash|bash"))
def test_shellcheck(name):
    """shellcheck finds nothing in a script."""
    result = run("shellcheck", os.path.join(ROOT, name))
    assert result.returncode == 0, result.stdout


@pytest.mark.skipif(not shutil.which("dash"), reason="dash is not installed")
@pytest.mark.parametrize("name", scripts(b"sh|dash"))
def test_dash_reads_it(name):
    """dash, which is /bin/sh on Debian, reads a script without complaint."""
    result = run("dash", "-n", os.path.join(ROOT, name))
    assert (result.returncode, result.stderr) == (0, "")


# ---- as an ordinary user; root becomes one, in a network of its own, to harm nothing here


def give_away(folder):
    """Make the ordinary user, if root has to become one, the owner of all below a folder."""
    if os.geteuid() == 0:
        for place, _, names in os.walk(folder):
            for name in [""] + names:
                os.chown(os.path.join(place, name), 65534, 65534)


@pytest.fixture
def folder():
    """A folder, with a copy of the product in it, where an ordinary user may write."""
    path = tempfile.mkdtemp(prefix="fake-metadata-")
    os.mkdir(path + "/copy")
    for name in PRODUCT:
        (shutil.copytree if os.path.isdir(os.path.join(ROOT, name)) else shutil.copy)(
            os.path.join(ROOT, name), os.path.join(path, "copy", name))
    give_away(path)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def sh(folder):
    """Run a script of the copy: sh("install.sh --dry-run", DESTDIR=...)."""
    if os.geteuid() != 0:
        user = []
    elif shutil.which("unshare") and shutil.which("setpriv"):
        user = ["unshare", "--net", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    else:
        pytest.skip("needs unshare and setpriv, for root to become an ordinary user")

    def run_script(words, **variables):
        # The python3 of a version manager may be in a home that this user cannot read.
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        if not shutil.which("python3", path=path):
            pytest.skip("there is no python3 in " + path)
        name, *options = words.split()
        return run(*(user + ["sh", os.path.join(folder, "copy", name)] + options), cwd="/",
                   env=dict({"PATH": path, "HOME": "/nonexistent"}, **variables))
    return run_script


def tree(folder):
    """Return the files and links below a folder, with their mode, and what they hold or lead to."""
    found = {}
    for place, folders, names in os.walk(folder):
        for name in names + folders:
            path = os.path.join(place, name)
            key = os.path.relpath(path, folder)
            if os.path.islink(path):
                found[key] = os.readlink(path)
            elif os.path.isdir(path):
                found[key] = oct(os.stat(path).st_mode)
            else:
                with open(path, "rb") as file:
                    found[key] = oct(os.stat(path).st_mode), file.read()
    return found


def contents(files):
    """Return what is in the files of a tree, without folders and links."""
    return {name: value[1] for name, value in files.items() if isinstance(value, tuple)}


@pytest.mark.parametrize("script", ["install.sh", "uninstall.sh"])
def test_help(sh, script):
    """--help tells an ordinary user of every option and variable, and exits 0."""
    result = sh(script + " --help")
    assert result.returncode == 0 and result.stderr == ""
    for word in ["--dry-run", "DESTDIR"] + (
            ["--check", "--no-start", "--force", "APP_DIR", "LOG_DIR", "PORT"]
            if script == "install.sh" else ["--purge"]):
        assert word in result.stdout, word


def test_help_shows_no_code(sh):
    """What --help prints is its header and no more."""
    assert not re.search(r"^(set |[a-z_]+\(\)|#)", sh("install.sh --help").stdout, re.M)


def test_install_needs_root(sh):
    """An ordinary user cannot install on the box itself; one line says how to."""
    result = sh("install.sh")
    assert result.returncode == 1 and re.match(r".*sudo.*\n$", result.stderr), result


@pytest.mark.parametrize("word", ["--bogus", "-x", "word"])
def test_usage_error(sh, word):
    """An unknown option is a usage error, exit 2, and names --help."""
    result = sh("install.sh " + word)
    assert result.returncode == 2 and "--help" in result.stderr and word in result.stderr


def test_dry_run_with_destdir(sh, folder):
    """--dry-run with DESTDIR prints what it would do, and makes not even the folder."""
    result = sh("install.sh --dry-run", DESTDIR=folder + "/root")
    assert (result.returncode == 0
            and folder + "/root/etc/fake-metadata.conf" in result.stdout), result
    assert not os.path.exists(folder + "/root")


def test_destdir(sh, folder):
    """DESTDIR puts every file below a folder, for packaging, without root and without a service."""
    result = sh("install.sh", DESTDIR=folder + "/root")
    assert result.returncode == 0, result.stderr
    files = tree(folder + "/root")
    for name in ("apps/fake-metadata/fake_metadata.py", "apps/fake-metadata/install.sh",
                 "etc/init.d/fake-metadata"):
        assert files[name][0] == "0o100755", name
    for name in ("etc/fake-metadata.conf", "etc/default/fake-metadata",
                 "etc/network/iptables.rules", "etc/logrotate.d/fake-metadata"):
        assert name in files, name
    assert files["apps/fake-metadata/logs"] == "/mnt/logs/fake-metadata"
    assert not [name for name in contents(files)
                if folder.encode() in contents(files)[name]], "the folder is in a file"


def test_destdir_twice(sh, folder):
    """A second installation into DESTDIR changes nothing."""
    sh("install.sh", DESTDIR=folder + "/root")
    before = tree(folder + "/root")
    assert sh("install.sh", DESTDIR=folder + "/root").returncode == 0
    assert tree(folder + "/root") == before


def test_destdir_leaves_no_trace(sh, folder):
    """uninstall.sh --purge with DESTDIR takes away every file and folder, but none there before."""
    os.makedirs(folder + "/root/etc/network")
    with open(folder + "/root/etc/network/interfaces", "wb") as file:
        file.write(b"iface lo inet loopback\r\n\tmtu 65536")
    give_away(folder)
    before = tree(folder + "/root")
    assert sh("install.sh", DESTDIR=folder + "/root").returncode == 0
    assert tree(folder + "/root")["etc/network/interfaces"] != before["etc/network/interfaces"]
    assert sh("uninstall.sh --purge", DESTDIR=folder + "/root").returncode == 0
    assert tree(folder + "/root") == before


def test_settings_are_everywhere(sh, folder):
    """With APP_DIR, LOG_DIR and PORT no installed file speaks of the usual ones."""
    result = sh("install.sh", DESTDIR=folder + "/root",
                APP_DIR="/opt/imds", LOG_DIR="/srv/log/imds", PORT="8123")
    assert result.returncode == 0, result.stderr
    files = tree(folder + "/root")
    assert files["opt/imds/logs"] == "/srv/log/imds"
    assert b"--to-ports 8123" in files["etc/network/iptables.rules"][1]
    assert files["etc/logrotate.d/fake-metadata"][1].count(b"/srv/log/imds") >= 1
    for name, content in contents(files).items():
        assert (name.startswith("opt/")
                or not re.search(br"/apps/|/mnt/logs|ports 8000", content)), name


@pytest.mark.parametrize("variables", [
    {"PORT": "0"}, {"PORT": "65536"}, {"PORT": "80a"}, {"PORT": ""}, {"APP_DIR": "here"},
    {"APP_DIR": "/with blank"}, {"LOG_DIR": "/a/../b"}, {"APP_DIR": "/a|b"},
    {"DESTDIR": "relative"}])
def test_bad_settings(sh, folder, variables):
    """A setting that cannot work is refused in one line that names it, before anything is made."""
    result = sh("install.sh", **dict({"DESTDIR": folder + "/root"}, **variables))
    name, value = list(variables.items())[0]
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1, result
    assert name in result.stderr or value in result.stderr
    assert not os.path.exists(folder + "/root") and not os.path.exists("/relative")


def test_uninstall_of_nothing(sh, folder):
    """uninstall.sh with nothing installed exits 0."""
    assert sh("uninstall.sh --purge", DESTDIR=folder + "/root").returncode == 0
    assert not os.path.exists(folder + "/root")
