"""Throw-away Debian boxes: a real init, a network stack of its own, a fresh disk, in namespaces.

    sudo python3 tests/box.py sysvinit 'sh fake-metadata/install.sh && service fake-metadata status'

boots a box of that kind with a copy of this checkout in /home/dev/fake-metadata, runs the command
in /home/dev, and throws the box away. In a test:

    with Box("systemd", folder) as box:
        box.copy_product()
        box.ok("sh fake-metadata/install.sh")

Root file systems are built with debootstrap, once per kind, and kept in $FAKE_METADATA_BOXES
(default ~/.cache/fake-metadata-boxes). $FAKE_METADATA_SUITE and $FAKE_METADATA_MIRROR name another
Debian release and mirror. Nothing in a box reaches the machine around it: it has its own disk,
network (not even a default route), processes, host name and control group, no way to set the clock
or the kernel's settings, and it dies with the process that booted it. 169.254.169.254 in there is
the box's own.
"""
import collections
import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile

from service import ROOT, wait_for

CACHE = os.environ.get("FAKE_METADATA_BOXES") or os.path.expanduser("~/.cache/fake-metadata-boxes")
SUITE = os.environ.get("FAKE_METADATA_SUITE", "bookworm")
MIRROR = os.environ.get("FAKE_METADATA_MIRROR")  # none: debootstrap's default

EVERYWHERE = ["iptables", "iproute2", "logrotate", "python3", "curl", "openssl", "procps",
              "cron"]
SYSTEMD = ["systemd", "systemd-sysv", "dbus", "nftables"]
KINDS = {
    "sysvinit": EVERYWHERE + ["sysvinit-core", "ifupdown", "daemontools", "runit", "python3-boto3"],
    "systemd": EVERYWHERE + SYSTEMD + ["ifupdown"],
    "no-ifupdown": EVERYWHERE + SYSTEMD,  # the network is systemd-networkd's
}
PRODUCT = ["fake_metadata.py", "install.sh", "uninstall.sh", "iptables.rules", "init.d",
           "logrotate.d", "README.md", "CHANGELOG.md"]
HOME = "/home/dev"
DEVELOPER = 1000  # uid and gid of whoever copied the product to the box
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS = ["debootstrap", "unshare", "nsenter", "setpriv", "mount", "pivot_root", "ip", "curl", "tar"]

INTERFACES = """\
# This file describes the network interfaces available on your system
# and how to activate them. For more information, see interfaces(5).

source /etc/network/interfaces.d/*

# The loopback network interface
auto lo
iface lo inet loopback
"""  # as Debian's installer writes it

# Turns what debootstrap leaves into what Debian's installer leaves; no getty, for there is no
# terminal.
PREPARE = ("""
set -eu
apt-get clean
rm -rf /var/lib/apt/lists/*
if [ -d /etc/network ]; then cat >/etc/network/interfaces; else rm -rf /etc/network; fi
echo 127.0.0.1 localhost box >/etc/hosts
echo nameserver 192.0.2.53 >/etc/resolv.conf
echo box >/etc/hostname
mkdir -m 755 -p /home/dev
chown 1000:1000 /home/dev
rm -f /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow-
if [ -e /etc/inittab ]; then
    sed -i /getty/d /etc/inittab
    echo 'bd:2345:once:/bin/touch /run/booted' >>/etc/inittab
else
    systemctl mask getty.target console-getty.service
    systemctl mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer """
           """dpkg-db-backup.timer
    [ -d /etc/network ] || systemctl enable systemd-networkd
fi
""")

# First a control group of the box's own (systemd makes its groups below the one it finds itself
# in) ...
ENTER = """
set -eu
mount --make-rprivate /
mount -t cgroup2 cgroup2 "$1/cgroup"
mkdir -p "$1/cgroup/$2"
echo $$ >"$1/cgroup/$2/cgroup.procs"
umount "$1/cgroup"
exec unshare --cgroup --pid --fork --kill-child --net --uts --ipc sh -c "$3" boot "$1" "$4"
"""

# ... then its disk and devices. The kernel's settings other than the network's are the machine's:
# read-only.
BOOT = """
set -eu
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/disk,workdir=$1/work" "$1/root"
cd "$1/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,rw proc/sys/net
mount -t sysfs -o ro sysfs sys
for folder in sys/class/dmi sys/hypervisor; do  # a box is no cloud's, whatever this machine is
    [ ! -d "$folder" ] || mount -t tmpfs tmpfs "$folder"
done
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 run run
mount -t tmpfs -o mode=755 dev dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
while read -r name major minor; do
    mknod -m 666 "dev/$name" c "$major" "$minor"
done <<DEVICES
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
DEVICES
hostname box
pivot_root . .
umount -l .
exec env -i PATH="$PATH" container=box setpriv --bounding-set=-sys_time,-sys_module /sbin/init
"""

# /lib of a box is a link to /usr/lib.
LAYER = """
set -eu
. /etc/os-release
[ "$VERSION_CODENAME" = "$0" ]
apt-get --quiet --option APT::Sandbox::User=root download "$@"
for package in *.deb; do dpkg -x "$package" .; done
[ ! -d lib ] || cp -a lib/. usr/lib
find . -mindepth 1 -maxdepth 1 ! -name usr -exec rm -r {} +
"""

# A disk below a disk of the same kind, whose dpkg has the package put on it.
BUILD_IMAGE = """
set -eu
mount --make-rprivate /
cd "$1"
mkdir -p builder/disk builder/work builder/root
chmod 755 builder/disk
mount -t overlay overlay -o "lowerdir=$2,upperdir=builder/disk,workdir=builder/work" builder/root
mkdir builder/root/image
mount -t overlay overlay -o "lowerdir=$2,upperdir=disk,workdir=work" builder/root/image
mount -t proc proc builder/root/proc
exec chroot builder/root sh -c '{command}'
"""

FORGET = ('mount -t cgroup2 cgroup2 "$1/cgroup" && '
          'find "$1/cgroup/$2" -depth -type d -exec rmdir {} +')

# Runs in the box; prints what an installer could leave behind.
SNAPSHOT = r"""
import hashlib, json, os, re, stat, subprocess

# What changes by itself or belongs to the tools that the installer calls (insserv writes .depend.*
# in whatever order the folder lists the scripts).
NOT_OURS = re.compile(r'''/(proc|sys|dev)$
    | /run/(systemd|log|udev|user|dbus|utmp|xtables\.lock|initctl|cron\S*|motd\S*)$
    | /etc/(passwd|group|shadow|gshadow|subuid|subgid)-$ | /etc/\.pwd\.lock$
    | /etc/init\.d/\.depend\.
    | /var/log/(journal|wtmp|btmp|lastlog|faillog)$ | /var/log/(fsck/|dmesg)
    | /var/lib/(systemd|logrotate|urandom)/. | (/var)?/tmp/systemd-private-
    | /var/lib/dpkg/(status|status-old|lock|updates|tmp\.ci|triggers/(Lock|Unincorp))$
    | /tmp/fake-metadata\.\w+$  # of an installer that was killed
    | /var/log/(dpkg\.log|alternatives\.log|apt)$ | /run/runit$''', re.X)

def tree(folder):
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if NOT_OURS.match(entry.path):
            continue
        info = entry.stat(follow_symlinks=False)
        content = ""
        if entry.is_symlink():
            content = "-> " + os.readlink(entry.path)
        elif stat.S_ISREG(info.st_mode) and entry.path.startswith("/usr/"):
            # Too much to read at each snapshot.
            content = "%d bytes of %d" % (info.st_size, info.st_mtime_ns)
        elif stat.S_ISREG(info.st_mode):
            with open(entry.path, "rb") as file:
                content = hashlib.sha256(file.read()).hexdigest()[:16]
        yield "%s %o %d:%d %s" % (entry.path, info.st_mode, info.st_uid, info.st_gid, content)
        if stat.S_ISDIR(info.st_mode):
            yield from tree(entry.path)

def output(*command):
    return subprocess.run(command, stdout=subprocess.PIPE,
                          universal_newlines=True).stdout.splitlines()

def processes():
    own, pid = set(), os.getpid()
    while pid:
        own.add(pid)
        with open("/proc/%d/stat" % pid) as file:
            pid = int(file.read().rpartition(")")[2].split()[1])
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) not in own:
            try:
                with open("/proc/%s/cmdline" % pid) as file:
                    yield file.read().replace("\0", " ").strip()
            except OSError:
                pass  # it has ended

def rules(command):
    # An empty built-in chain that accepts is what is there without any rule, too.
    return [line for line in output(command)
            if line.startswith("-A") or re.match(r":\S+ (-|DROP)", line)]

print(json.dumps({
    "files": list(tree("/")),
    "addresses": [line.split(" valid_lft")[0] for line in output("ip", "-o", "addr")],
    "links and routes": output("ip", "-o", "link") + output("ip", "route", "show", "table", "all"),
    "iptables-nft": rules("iptables-nft-save"),
    "iptables-legacy": rules("iptables-legacy-save"),
    "ip6tables-nft": rules("ip6tables-nft-save"),
    "ip6tables-legacy": rules("ip6tables-legacy-save"),
    "users": output("getent", "passwd") + output("getent", "group"),
    "processes": sorted(processes()),
    "ports": sorted(" ".join(line.split()[:5]) for line in output("ss", "-Hltun")),
}))
"""

Result = collections.namedtuple("Result", "code out err")


def why_not():
    """Return why no box can be booted here, or None."""
    if os.geteuid() != 0:
        return "needs root, to boot a Debian in namespaces"
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        return "needs " + ", ".join(missing)
    return None


def root_fs(kind):
    """Return the folder with the root file system of a kind of box; build it if it isn't there."""
    recipe = repr([SUITE, MIRROR, KINDS[kind], PREPARE, INTERFACES])
    folder = os.path.join(CACHE, "%s-%s" % (kind, hashlib.sha256(recipe.encode()).hexdigest()[:8]))
    os.makedirs(CACHE, exist_ok=True)
    # One at a time: debootstrap keeps its packages in one folder for all kinds.
    with open(os.path.join(CACHE, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.isdir(folder):
            build(kind, folder)
    return folder


def build(kind, folder):
    partial = folder + ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    packages = os.path.join(CACHE, "packages")
    os.makedirs(packages, exist_ok=True)
    command = ["debootstrap", "--variant=minbase", "--cache-dir=" + packages,
               "--include=" + ",".join(KINDS[kind])]
    if "sysvinit-core" in KINDS[kind]:
        command.append("--exclude=systemd-sysv")
    command += [SUITE, partial] + ([MIRROR] if MIRROR else [])
    log = os.path.join(CACHE, kind + ".log")
    with open(log, "w") as file:
        if subprocess.call(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL):
            raise RuntimeError("debootstrap failed, see " + log)
        subprocess.run(["unshare", "--mount", "--net", "chroot", partial, "sh", "-c", PREPARE],
                       input=INTERFACES.encode(), stdout=file, stderr=file, check=True,
                       env={"PATH": PATH})
    os.rename(partial, folder)


def layer(name, packages):
    """Return a folder with what packages have below /usr, to lie over the disk of a box.

    Nothing is installed: on a box their programs are there, and none has been started or set up.
    CalledProcessError where they cannot be had, as on a machine with another Debian.
    """
    folder = os.path.join(CACHE, "%s-%s" % (name, hashlib.sha256(
        repr([SUITE, packages, LAYER]).encode()).hexdigest()[:8]))
    os.makedirs(CACHE, exist_ok=True)
    with open(os.path.join(CACHE, name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.isdir(folder):
            partial = folder + ".partial"
            shutil.rmtree(partial, ignore_errors=True)
            os.mkdir(partial)
            os.chmod(partial, 0o755)
            subprocess.run(["sh", "-c", LAYER, SUITE] + packages, cwd=partial, check=True,
                           stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            os.rename(partial, folder)
    return folder


# A service that has just been started makes its signing key beside its work.
UNTIL_KEY_IS_MADE = """
is_due() {
    [ "$(stat -c %U /var/lib/fake-metadata 2>/dev/null)" = fake-metadata ] &&
        pgrep -u fake-metadata -f fake_metadata.py >/dev/null &&
        [ ! -s /var/lib/fake-metadata/instance-identity.pem ]
}
for _ in $(seq 100); do is_due || break; sleep 0.1; done
"""


class Box:
    """One booted Debian on a disk of its own until `close()`, through reboots and power cuts."""

    def __init__(self, kind, folder, *layers):
        self.kind = kind
        self.folder = tempfile.mkdtemp(prefix=kind + "-", dir=str(folder))
        self.name = "box-%d-%s" % (os.getpid(), os.path.basename(self.folder))
        self.root_fs = ":".join(layers + (root_fs(kind),))
        for name in ("disk", "work", "root", "cgroup"):
            os.mkdir(os.path.join(self.folder, name))
        # The top of the tree is the disk's own: mkdir would make it the caller's umask.
        os.chmod(os.path.join(self.folder, "disk"), 0o755)
        self.outer = None
        self.boot()

    def boot(self):
        """Switch it on and wait until its init has started everything."""
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount",
                   "sh", "-c", ENTER, "enter", self.folder, self.name, BOOT, self.root_fs]
        with open(os.path.join(self.folder, "console"), "ab") as console:
            self.outer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console,
                                          stderr=console, env={"PATH": PATH},
                                          start_new_session=True)
        self.pid = wait_for(self._init, 30, "init of " + self.name)
        if self.kind == "sysvinit":
            wait_for(lambda: self.run("test -e /run/booted").code == 0, 60,
                     "the boot of " + self.name)
        else:
            wait_for(lambda: self.run("test -S /run/systemd/private").code == 0, 30,
                     "systemd of " + self.name)
            self.run("systemctl is-system-running --wait", timeout=60)

    def _init(self):
        """Return the pid, out here, of the box's init, once it is init, not its start script."""
        if self.outer.poll() is not None:
            raise AssertionError("the box did not boot: " + self.console())
        with open("/proc/{0}/task/{0}/children".format(self.outer.pid)) as file:
            children = file.read().split()
        if children:
            with contextlib.suppress(OSError), open("/proc/%s/comm" % children[0]) as file:
                if file.read().strip() in ("init", "systemd"):
                    return int(children[0])
        return None

    def console(self):
        with open(os.path.join(self.folder, "console"), errors="replace") as file:
            return file.read()

    def run(self, command, stdin="", timeout=60, env=None, cwd=HOME):
        """Run a shell command as root in the box; return Result(code, out, err).

        The code is 124 or 137 if it took too long. Processes that the command leaves in the
        background keep running.
        """
        variables = dict(self.environment(), **(env or {}))
        inside = ["timeout", "--kill-after=5", str(timeout),
                  "sh", "-c", "cd %s\n%s" % (cwd, command)]
        stdin = stdin.encode() if isinstance(stdin, str) else stdin
        temporary = tempfile.TemporaryFile
        with temporary() as input_, temporary() as out, temporary() as err:
            input_.write(stdin)
            input_.seek(0)
            # Files, not pipes: a daemon that keeps the pipe open would keep us waiting.
            code = subprocess.call(self.entered() + inside, stdin=input_, stdout=out, stderr=err,
                                   env=variables)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode("utf-8", "replace"))
        return Result(code, *texts)

    @staticmethod
    def environment():
        """Return the environment of a command in the box, where nothing else is said."""
        return {"PATH": PATH, "HOME": "/root", "TERM": "dumb", "LANG": "C.UTF-8"}

    def entered(self):
        """Return what stands in front of a command that is to run in the box."""
        return ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--net", "--uts", "--ipc",
                "--cgroup", "--root", "--wd"]

    def ok(self, command, **options):
        """Run a command that has to succeed; return what it printed on stdout."""
        result = self.run(command, **options)
        assert result.code == 0, "%s\nexit %d\n%s%s" % (
            command, result.code, result.out, result.err)
        return result.out

    def read(self, path):
        """Return the bytes of a file as text, line ends and all."""
        return self.ok("cat '%s'" % path)

    def write(self, path, content, mode="644"):
        """Write text or bytes to a file in the box."""
        self.ok("cat >'{0}' && chmod {1} '{0}'".format(path, mode), stdin=content)

    def copy_product(self, name="fake-metadata"):
        """Copy this checkout to the developer's home, as scp does: owned by and private to them."""
        there = [path for path in PRODUCT if os.path.exists(os.path.join(ROOT, path))]
        archive = subprocess.run(["tar", "-C", ROOT, "--owner=dev:%d" % DEVELOPER,
                                  "--group=dev:%d" % DEVELOPER, "--mode=u=rwX,go=",
                                  "--exclude=__pycache__", "-cf", "-"] + there,
                                 stdout=subprocess.PIPE, check=True).stdout
        self.ok("rm -rf {0} && mkdir -m 700 {0} && chown {1}:{1} {0} && "
                "tar --numeric-owner -C {0} -xpf -".format(name, DEVELOPER), stdin=archive)

    def snapshot(self, python="python3"):
        """Return what the box has, by subject: files, addresses, rules, users, processes, ports."""
        self.run(UNTIL_KEY_IS_MADE)
        return json.loads(self.ok(python + " -IB -", stdin=SNAPSHOT))

    def build_image(self, command):
        """Switch it off, and run a command as an image build does: its disk, at /image, no init."""
        self.power_cut()
        script = BUILD_IMAGE.format(command=command)
        process = subprocess.run(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", script,
             "build", self.folder, self.root_fs],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            universal_newlines=True, timeout=120, env={"PATH": PATH, "HOME": "/root"})
        assert process.returncode == 0, process.stdout
        return process.stdout

    def power_cut(self):
        """Switch it off as a failing power supply does."""
        if self.outer.poll() is None:
            os.kill(self.pid, 9)
            self.outer.wait(30)

    def reboot(self):
        """Shut it down in good order, as the reboot command does, and boot from the same disk."""
        self.run("reboot >/dev/null 2>&1 </dev/null", timeout=30)
        try:
            self.outer.wait(90)
        except subprocess.TimeoutExpired:
            raise AssertionError("the box did not shut down: " + self.console()[-2000:])
        self.boot()

    def close(self):
        """Switch it off and throw its disk away."""
        self.power_cut()
        subprocess.run(["unshare", "--mount", "sh", "-c", FORGET, "forget", self.folder, self.name],
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Neighbour:
    """Another machine on the box's LAN, 192.0.2.1, until `close()`; the box becomes 192.0.2.2."""

    BOX = "192.0.2.2"

    def __init__(self, box):
        # cat ends when this process does: no namespace is left behind.
        self.process = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE,
                                        stdout=subprocess.DEVNULL)
        wait_for(self._apart, what="a network namespace")
        self.run("ip link set lo up")
        self.run("ip link add lan0 type veth peer name lan0 netns %d" % box.pid)
        self.run("ip addr add 192.0.2.1/24 dev lan0 && ip link set lan0 up")
        box.ok("ip addr add %s/24 dev lan0 && ip link set lan0 up" % self.BOX)
        # As on a machine in the cloud's neighbourhood that is after the box's credentials.
        self.run("ip route add 169.254.169.254 via " + self.BOX)

    def _apart(self):
        return os.readlink("/proc/%d/ns/net" % self.process.pid) != os.readlink("/proc/self/ns/net")

    def run(self, command):
        """Run a shell command in the neighbour's network; return Result(code, out, err)."""
        process = subprocess.run(["nsenter", "--net", "--target", str(self.process.pid),
                                  "sh", "-c", command],
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 universal_newlines=True, timeout=60, env={"PATH": PATH})
        return Result(process.returncode, process.stdout, process.stderr)

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def difference(before, after):
    """Return what two snapshots differ in, one line each, "-" for what is gone, "+" for new."""
    lines = []
    for subject in before:
        old, new = collections.Counter(before[subject]), collections.Counter(after[subject])
        lines += ["- %s: %s" % (subject, line) for line in (old - new).elements()]
        lines += ["+ %s: %s" % (subject, line) for line in (new - old).elements()]
    return lines


def main(arguments):
    if len(arguments) != 2 or arguments[0] not in KINDS:
        print("usage: box.py %s COMMAND" % "|".join(KINDS), file=sys.stderr)
        return 2
    reason = why_not()
    if reason:
        print("box.py: " + reason, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder, Box(arguments[0], folder) as box:
        box.copy_product()
        result = box.run(arguments[1], timeout=600)
    sys.stdout.write(result.out)
    sys.stderr.write(result.err)
    return result.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
