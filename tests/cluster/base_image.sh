#!/usr/bin/env bash
# Make the image that docker/Dockerfile starts from, on a machine that reaches a mirror of Debian but no
# registry of images. Needs root, debootstrap and a running dockerd.
#
#   tests/cluster/base_image.sh NAME[:TAG]
set -euo pipefail
if (($# != 1)); then
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
mirror=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' | sed -n 's/^bookworm //p' | head -n 1)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv bookworm \
    "$root" "${mirror:-http://deb.debian.org/debian}"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*
ln -s /usr/bin/python3 "$root/usr/local/bin/python" # its name in the official image
tar --create --one-file-system --directory "$root" . |
    docker import --change 'CMD ["python"]' - "$1"
