# Sourced after lib.sh: packages of a suite of Debian's, unpacked into a folder with all that they need. Nothing is installed on the
# machine. The caller sets
#
#   name        what the lines say that a person reads
#   suite       bookworm, trixie, testing
#   wanted      names of packages
#   unpacked    the folder; empty where none is needed
#   leave_out   patterns of files that are not needed, if there are any, in words
# shellcheck shell=sh
# shellcheck disable=SC2154  # said above

# Debian's archive as this machine's own apt reads it.
archive() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep '/debian/$' | head -n 1
}

# The Release file of testing may be out of date where a mirror stands still. It is taken then, and that is said.
lists() {
    "$@" update >"$unpacked.apt/log" 2>&1 && ! grep -q '^[EW]:' "$unpacked.apt/log" && return
    grep -qi 'not valid anymore\|expired' "$unpacked.apt/log" || return
    say "$name" "the Release file of $suite has expired: taken all the same"
    "$@" -o Acquire::Check-Valid-Until=false update >>"$unpacked.apt/log" 2>&1
}

# fetch : the packages and all that they need, by apt with lists, cache and status of its own.
fetch() {
    have apt-get && have dpkg-deb || die "$name" "cannot be fetched: no apt-get here to read Debian's archive"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -f "$keyring" ] || die "$name" "cannot be fetched: Debian's keys are missing (package debian-archive-keyring)"
    say "$name" "fetching it from Debian $suite"
    rm -rf "$unpacked.apt" "$unpacked.new"
    mkdir -p "$unpacked.apt/state/lists/partial" "$unpacked.apt/cache/archives/partial" "$unpacked.apt/empty"
    : >"$unpacked.apt/status"
    mirror=$(archive)
    [ -n "$mirror" ] || die "$name" "cannot be fetched: this machine's apt sources name no Debian archive"
    echo "deb [signed-by=$keyring] $mirror $suite main" >"$unpacked.apt/sources"
    set -- apt-get -q -y -o Dir::Etc::SourceList="$unpacked.apt/sources" -o Dir::Etc::SourceParts="$unpacked.apt/empty" \
        -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts="$unpacked.apt/empty" \
        -o Dir::State="$unpacked.apt/state" -o Dir::State::Status="$unpacked.apt/status" \
        -o Dir::Cache="$unpacked.apt/cache" -o APT::Sandbox::User=root -o APT::Get::List-Cleanup=false \
        -o Acquire::Languages=none -o Acquire::Retries=3 -o APT::Install-Recommends=false
    # shellcheck disable=SC2086  # packages are words
    if lists "$@" &&
        "$@" install --download-only $wanted </dev/null >>"$unpacked.apt/log" 2>&1; then
        unpack
        return
    fi
    tail -n 5 "$unpacked.apt/log" >&2
    die "$name" "could not be fetched from Debian $suite; all that apt said: $unpacked.apt/log"
}

# unpack : the packages' files, without documentation and what `leave_out` names; no maintainer script runs.
unpack() {
    set -f --
    for pattern in ${leave_out:-}; do set -- "$@" "--exclude=$pattern"; done
    set +f
    for part in bin sbin lib lib64; do
        mkdir -p "$unpacked.new/usr/$part"
        ln -s "usr/$part" "$unpacked.new/$part"
    done
    for package in "$unpacked.apt"/cache/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar -C "$unpacked.new" -x --keep-directory-symlink --no-same-owner "$@" \
            --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*'
        dpkg-deb -f "$package" Package Version | paste -sd' ' | sed 's/Package: //; s/ Version: / /' >>"$unpacked.new/packages"
    done
    # What the package's own script would choose with update-alternatives.
    if [ -e "$unpacked.new/usr/sbin/iptables-nft" ]; then
        for tool in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
            ln -sf "${tool%%tables*}tables-nft${tool#*tables}" "$unpacked.new/usr/sbin/$tool"
        done
    fi
    rm -rf "$unpacked.apt"
    mv "$unpacked.new" "$unpacked"
}

# have_files : unpacks what is missing; several checkouts may ask at once.
have_files() {
    [ -n "$unpacked" ] || return 0
    mkdir -p "${unpacked%/*}"
    if [ -d "$unpacked" ]; then return; fi
    exec 8>"$unpacked.lock"
    flock 8
    [ -d "$unpacked" ] || timed "$name" fetch
    exec 8>&-
}
