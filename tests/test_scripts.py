"""The shell scripts as files, and what they do for an ordinary user: --help, --deb."""
import gzip
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
           "logrotate.d", "README.md", "CHANGELOG.md"]


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


@pytest.fixture
def deb(sh, folder):
    """Build the package and unpack it: returns (fields, files below /, files of dpkg)."""
    if not shutil.which("dpkg-deb"):
        pytest.skip("dpkg-deb is not installed")

    def build(**variables):
        path = os.path.join(folder, "package.deb")
        result = sh("install.sh --deb " + path, **variables)
        assert result.returncode == 0, result.stderr
        place = tempfile.mkdtemp(dir=folder)
        run("dpkg-deb", "--raw-extract", path, place)
        files = tree(place)
        control = {name: value for name, value in files.items() if name.startswith("DEBIAN/")}
        fields = dict(line.split(": ", 1) for line in
                      control["DEBIAN/control"][1].decode().splitlines() if ": " in line)
        return fields, {"/" + name: value for name, value in files.items()
                        if name not in control and name != "DEBIAN"}, control
    return build


@pytest.mark.parametrize("script", ["install.sh", "uninstall.sh"])
def test_help(sh, script):
    """--help tells an ordinary user of every option and variable, and exits 0."""
    result = sh(script + " --help")
    assert result.returncode == 0 and result.stderr == ""
    for word in ["--dry-run"] + (
            ["--check", "--no-start", "--supervise", "--force", "--deb", "APP_DIR", "LOG_DIR",
             "PORT"] if script == "install.sh" else ["--purge"]):
        assert word in result.stdout, word


@pytest.mark.parametrize("script", ["install.sh", "uninstall.sh"])
def test_help_shows_no_code(sh, script):
    """What --help prints is for users: the header and no more."""
    said = sh(script + " --help").stdout
    assert not re.search(r"^(set |[a-z_]+\(\)|#)|dpkg's|DPKG_|postinst", said, re.M)
    assert fits_a_screen(said)


def fits_a_screen(text):
    lines = text.splitlines()
    return len(lines) < 24 and max(len(line) for line in lines) <= 80


# ---- the init script, on a box where nothing is installed


@pytest.mark.parametrize("words, code", [
    ("help", 0), ("--help", 0), ("-h", 0), ("", 2), ("set", 2), ("status now", 2), ("bogus", 3)])
def test_usage_of_the_service(sh, words, code):
    """help prints a screen on stdout; a wrong call says what is wrong with it, then the same."""
    result = sh("init.d/fake-metadata " + words)
    said, other = result.stdout, result.stderr
    if code:
        assert other.startswith("fake-metadata: ") and other.splitlines()[1].startswith("usage: ")
        said, other = other, said
    assert (result.returncode, other) == (code, "") and fits_a_screen(said), result


def test_manual_page(sh, deb):
    """The manual page has every verb of the usage, and is installed beside the other documents."""
    verbs = re.findall(r"^  ([a-z-]+)", sh("init.d/fake-metadata help").stdout, re.M)
    assert "start" in verbs and "show" in verbs
    _, files, _ = deb()
    page = gzip.decompress(files["/usr/share/man/man8/fake-metadata.8.gz"][1]).decode()
    words = re.sub(r"\\-", "-", page.partition(".SH VERBS")[2].partition(".SH EXIT")[0])
    assert [verb for verb in verbs if not re.search(r"(?<![\w-])%s(?![\w-])" % verb, words)] == []
    assert files["/usr/share/doc/fake-metadata/README.md"] == "/apps/fake-metadata/README.md"
    assert "/usr/share/doc/fake-metadata/changelog.gz" in files


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed")
def test_manual_page_is_sound():
    """groff formats the manual page without a warning."""
    result = run("groff", "-man", "-Tutf8", "-ww", "-z",
                 os.path.join(ROOT, "init.d", "fake-metadata.8"))
    assert (result.returncode, result.stderr) == (0, "")


def test_install_needs_root(sh):
    """An ordinary user cannot install on the box itself; one line says how to."""
    result = sh("install.sh")
    assert result.returncode == 1 and re.match(r".*sudo.*\n$", result.stderr), result


@pytest.mark.parametrize("word", ["--bogus", "-x", "word", "configure", "remove"])
@pytest.mark.parametrize("script", ["install.sh", "uninstall.sh"])
def test_usage_error(sh, script, word):
    """What is no option, a word of dpkg's too, is a usage error, exit 2, and names --help."""
    result = sh(script + " " + word)
    assert result.returncode == 2 and "--help" in result.stderr and word in result.stderr


def test_package(deb):
    """An ordinary user builds the package: root's files, with the version of the program."""
    fields, files, control = deb()
    assert fields["Version"] == fake_metadata.VERSION
    assert fields["Pre-Depends"] == "python3 (>= 3.7), iproute2, iptables"
    for name in ("/apps/fake-metadata/fake_metadata.py", "/apps/fake-metadata/install.sh",
                 "/etc/init.d/fake-metadata", "/etc/network/if-up.d/fake-metadata"):
        assert files[name][0] == "0o100755", name
    for name in ("/etc/fake-metadata.conf", "/etc/default/fake-metadata"):
        assert files[name][0] == "0o100640", name
    assert files["/apps/fake-metadata/logs"] == "/mnt/logs/fake-metadata"
    assert files["/usr/lib/fake-metadata"] == "/apps/fake-metadata"
    assert "/mnt" not in files


def test_conffiles(deb):
    """Every file below /etc is a conffile, and only those."""
    _, files, control = deb()
    below = sorted(name for name in contents(files) if name.startswith("/etc/"))
    assert sorted(control["DEBIAN/conffiles"][1].decode().split()) == below


def test_same_files_make_the_same_package(sh, folder, deb):
    """Two builds of the same files are equal to the byte."""
    for name in ("one.deb", "two.deb"):
        assert sh("install.sh --deb %s/%s" % (folder, name)).returncode == 0
    with open(folder + "/one.deb", "rb") as one, open(folder + "/two.deb", "rb") as two:
        assert one.read() == two.read()


def test_settings_of_a_package(deb):
    """Settings stand in APP_DIR/settings and the scripts of dpkg, and in no file below /etc."""
    _, usual, _ = deb()
    _, files, control = deb(APP_DIR="/opt/imds", LOG_DIR="/srv/log/my-imds", PORT="8123")
    assert b"\nPORT=8123\n" in files["/opt/imds/settings"][1]
    assert files["/opt/imds/logs"] == "/srv/log/my-imds"
    for script in ("preinst", "postinst", "prerm", "postrm"):
        assert b"\nAPP_DIR=/opt/imds\n" in control["DEBIAN/" + script][1]
    unit = files["/lib/systemd/system/fake-metadata.service"][1]
    assert (b"\nAfter=srv.mount srv-log.mount srv-log-my\\x2dimds.mount opt.mount opt-imds.mount\n"
            in unit)
    for name in contents(files):
        if name.startswith("/etc/"):
            assert files[name] == usual[name], name


def test_program_beside_the_preinst(deb):
    """The preinst finds the program beside it: it tests the configuration before the upgrade."""
    _, _, control = deb()
    with open(os.path.join(ROOT, "fake_metadata.py"), "rb") as file:
        assert control["DEBIAN/fake_metadata.py"][1] == file.read()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("script", ["preinst", "postinst", "prerm", "postrm"])
def test_shellcheck_of_the_scripts_of_dpkg(deb, folder, script):
    """shellcheck finds no error in what dpkg runs, either."""
    _, _, control = deb()
    with open(folder + "/script", "wb") as file:
        file.write(control["DEBIAN/" + script][1])
    result = run("shellcheck", "--severity=warning", "--exclude=SC2034,SC2153", folder + "/script")
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("variables", [
    {"PORT": "0"}, {"PORT": "65536"}, {"PORT": "80a"}, {"PORT": ""}, {"APP_DIR": "here"},
    {"APP_DIR": "/with blank"}, {"LOG_DIR": "/a/../b"}, {"APP_DIR": "/a|b"},
    {"LOG_DIR": "/apps/fake-metadata/logs"}, {"ADDRESSES": "169.254.170.2"},
    {"ADDRESSES": "169.254.169.254 169.254.169.253"}, {"CONTAINERS": "docker0 lo"}])
def test_bad_settings(sh, folder, variables):
    """A setting that cannot work is refused in one line that names it, before anything is made."""
    result = sh("install.sh --deb %s/package.deb" % folder, **variables)
    name, value = list(variables.items())[0]
    assert result.returncode == 1 and len(result.stderr.splitlines()) == 1, result
    assert name in result.stderr or value in result.stderr
    assert not os.path.exists(folder + "/package.deb")


def test_package_of_half_a_folder(sh, folder):
    """Where a file is missing beside install.sh it says which."""
    os.remove(folder + "/copy/iptables.rules")
    result = sh("install.sh --deb %s/package.deb" % folder)
    assert result.returncode == 1 and "iptables.rules is missing" in result.stderr


@pytest.mark.parametrize("option", ["", " --purge", " --dry-run"])
def test_uninstall_of_nothing(sh, folder, option):
    """uninstall.sh with nothing installed exits 0, for an ordinary user too."""
    result = sh("uninstall.sh" + option)
    assert result.returncode == 0 and "nothing" in result.stdout
