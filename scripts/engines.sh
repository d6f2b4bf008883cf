# Sourced by scripts/engine, after lib.sh: engines unpacked from Debian's packages into a folder of their own and run
# in namespaces of their own (mount and network, without an uplink). Nothing is installed on the machine.
#
#   .work/engines        unpacked packages, a folder for each recipe; only read, may be a link shared by several checkouts
#   .work/engine/NAME    what one checkout's engine writes: images, containers, log, socket
# shellcheck shell=sh

engine_names='docker-20 docker-26 docker-28 docker-28-rootless podman-4 podman-5.4 podman-5 podman-5-rootless'
# What scripts/test, scripts/demo and CI take unless they are told.
newest=docker-28
docker_packages='docker.io iptables nftables iproute2 busybox-static ca-certificates procps'
podman_packages='podman runc netavark aardvark-dns passt uidmap iptables nftables iproute2 busybox-static ca-certificates procps'

# recipe NAME : sets suite, kind, wanted (packages), files (the folder of .work/engines) and its path, unpacked; empty where the
# machine's own files are meant.
recipe() {
    files=$1
    case $1 in
    docker-20) kind=docker suite=bookworm wanted=$docker_packages ;;
    docker-26) kind=docker suite=trixie wanted="$docker_packages docker-cli docker-buildx" ;;
    docker-28) kind=docker suite=testing wanted="$docker_packages docker-cli docker-buildx docker-compose rootlesskit slirp4netns uidmap util-linux" ;;
    docker-28-rootless) recipe docker-28; kind=rootless ;;
    podman-4) kind=podman suite=bookworm wanted=$podman_packages ;;
    podman-5.4) kind=podman suite=trixie wanted=$podman_packages ;;
    podman-5) kind=podman suite=testing wanted=$podman_packages ;;
    podman-5-rootless) recipe podman-5; kind=podman_rootless ;;
    host-vm) kind=vm files='' suite='' wanted='' ;;
    docker-*-vm) recipe "${1%-vm}"; kind=vm ;;
    *) die "engine" "no engine is called $1; there are: $engine_names" ;;
    esac
    made_from=$(hash_of "$suite" "$wanted" 1)
    unpacked=${files:+$work/engines/$files-$made_from}
}

# have_client : where the machine has no docker command, that of an unpacked engine which runs on its libraries.
have_client() {
    if have docker; then return; fi
    client=$unpacked/usr/bin/docker
    [ -x "$client" ] || client=$("$root/scripts/engine" fetch "$newest")/usr/bin/docker
    if "$client" --version >/dev/null 2>&1; then
        mkdir -p "$work/bin"
        ln -sf "$client" "$work/bin/docker"
    else
        packages docker.io
    fi
}

# machine_parts FOLDER : a look at the network through FOLDER/sys shows this namespace; its cgroups are the machine's.
machine_parts() {
    "$unpacked/usr/bin/busybox" ip link set lo up
    mkdir -p "$state/mnt"
    mount --rbind /sys/fs/cgroup "$state/mnt"
    mount -t sysfs sysfs "$1/sys"
    mount --rbind "$state/mnt" "$1/sys/fs/cgroup"
    umount -l "$state/mnt"
}

# own_files : this shell's mount and network namespace are its own. It then finds the engine's /usr where the machine's
# was, an empty /run, and every other path of the machine as it is: binds mean the same.
own_files() {
    mount --make-rslave /
    machine_parts ''
    # The socket's folder may be in /run.
    mount --bind "${socket%/*}" "$state/mnt"
    mount -t tmpfs -o mode=755 tmpfs /run
    mkdir -p /run/engine "${socket%/*}"
    mount --bind "$state/mnt" /run/engine
    case $socket in /run/*) mount --bind "$state/mnt" "${socket%/*}" ;; esac
    umount "$state/mnt"
    # The machine's cache names libraries that are not in this /usr.
    [ ! -f /etc/ld.so.cache ] || mount --bind /dev/null /etc/ld.so.cache
    # Last, because the tools until here are the machine's.
    mount --rbind "$unpacked/usr" /usr
    hash -r
    PATH=/usr/sbin:/usr/bin
}

docker_daemon() {
    echo '{}' >"$state/daemon.json"
    own_files
    exec dockerd --config-file "$state/daemon.json" --host "unix://$socket" --pidfile "$state/pid" \
        --data-root "$state/data" --exec-root "$exec_root" --shutdown-timeout 5
}

# Nothing of the machine's files, as in a virtual machine: binds name what is in there, and no path of the machine's
# leads to its volumes. Only the socket's folder is shared.
vm_daemon() {
    inside=$state/root
    mkdir -p "$inside" "$state/var/tmp"
    mount --make-rslave /
    mount -t tmpfs -o mode=755 tmpfs "$inside"
    for part in usr proc sys dev etc run/engine var tmp mnt; do mkdir -p "$inside/$part"; done
    for part in bin sbin lib lib64; do ln -s "usr/$part" "$inside/$part"; done
    echo '{}' >"$inside/etc/daemon.json"
    echo 'root:x:0:0:root:/:/bin/sh' >"$inside/etc/passwd"
    echo 'root:x:0:' >"$inside/etc/group"
    machine_parts "$inside"
    mount --rbind "$unpacked/usr" "$inside/usr"
    mount --rbind /proc "$inside/proc"
    mount --rbind /dev "$inside/dev"
    mount --bind "$state/var" "$inside/var"
    mount --bind "${socket%/*}" "$inside/run/engine"
    echo $$ >"$state/pid"
    cd "$inside"
    pivot_root . mnt
    cd /
    hash -r
    PATH=/usr/sbin:/usr/bin
    busybox umount -l /mnt
    exec dockerd --config-file /etc/daemon.json --host unix:///run/engine/docker.sock --data-root /var/lib/docker --shutdown-timeout 5
}

# over_etc : the files of $state/etc stand in the place of the machine's.
over_etc() {
    for file in resolv.conf hosts; do cp -L "/etc/$file" "$state/etc/" 2>/dev/null || true; done
    mount -t overlay overlay -o "lowerdir=$state/etc:/etc" /etc
}

# The files of an engine that runs as a user without rights.
user_files() {
    user=4242
    mkdir -p "$state/data" "$state/etc"
    echo "engine:x:$user:$user::/run/engine:/bin/sh" >"$state/etc/passwd"
    echo "engine:x:$user:" >"$state/etc/group"
    echo 'engine:1000000:65536' | tee "$state/etc/subuid" >"$state/etc/subgid"
    echo '{}' >"$state/etc/daemon.json"
    chown "$user:$user" "$state/data" "${socket%/*}"
    over_etc
    mkdir -p "$state/bind"
    mount --bind "$state/data" "$state/bind"
    own_files
    # The state may be below a folder that only root may enter; so may the device be.
    busybox mkdir /run/data
    busybox mount --move "$state/bind" /run/data
    busybox mknod -m 666 /run/tun c 10 200
    busybox mount --bind /run/tun /dev/net/tun
    busybox ln -s /usr/bin/busybox /run/sh
    export XDG_RUNTIME_DIR=/run/engine
}

# The network of its containers is one more namespace, that of rootlesskit.
rootless_daemon() {
    user_files
    exec busybox su -s /run/sh engine -c 'exec rootlesskit --state-dir /run/engine/rootlesskit \
        --net slirp4netns --mtu 65520 --disable-host-loopback --slirp4netns-sandbox=false --slirp4netns-seccomp=false \
        --copy-up /etc --copy-up /run --propagation rslave \
        dockerd --rootless --config-file /etc/daemon.json --host unix:///run/engine/docker.sock \
        --pidfile /run/engine/pid --data-root /run/data --exec-root /run/engine/exec --shutdown-timeout 5'
}

# Podman's settings are in $state/etc/containers, in the place of the machine's. A commit reads its policy there alone.
podman_settings() {
    mkdir -p "$state/etc/containers"
    echo '{"default":[{"type":"insecureAcceptAnything"}]}' >"$state/etc/containers/policy.json"
    echo 'unqualified-search-registries = []' >"$state/etc/containers/registries.conf"
    # Before Podman removes a container, with -f too, it waits until SIGTERM ends it: stop_timeout makes that a second instead of ten.
    # By default Podman cuts its file of events at 1 MB; in a long run of tests the event of a removal was missing once.
    # crun refuses a machine with cgroups of both versions; without a limit named here, Podman sets one that only
    # a process with CAP_SYS_RESOURCE may.
    runtime=crun
    if [ -d /sys/fs/cgroup/unified ]; then runtime=runc; fi
    # shellcheck disable=SC3045  # every sh that Debian has knows -H
    cat >"$state/etc/containers/containers.conf" <<END
[containers]
default_ulimits = ["nofile=$(ulimit -Hn):$(ulimit -Hn)"]
[engine]
runtime = "$runtime"
cgroup_manager = "cgroupfs"
events_logger = "file"
stop_timeout = 1
events_logfile_max_size = "32m"
END
    unset XDG_RUNTIME_DIR XDG_CONFIG_HOME CONTAINERS_CONF CONTAINERS_REGISTRIES_CONF
}

podman_daemon() {
    podman_settings
    over_etc
    mkdir -p "$state/home"
    echo $$ >"$state/pid"
    export HOME="$state/home"
    own_files
    exec podman --root "$state/data" --runroot /run/podman-run --tmpdir /run/podman-tmp \
        --network-config-dir "$state/networks" system service --time 0 "unix://$socket"
}

# The network of its containers is one more namespace, that of pasta.
podman_rootless_daemon() {
    podman_settings
    user_files
    exec busybox su -s /run/sh engine -c 'echo $$ >/run/engine/pid; export HOME=/run/engine; umask 022
        exec podman --root /run/data --runroot /run/engine/containers system service --time 0 unix:///run/engine/docker.sock'
}
