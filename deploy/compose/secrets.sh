#!/usr/bin/env bash
# Makes the files that compose.yaml hands to its containers, each only where it is missing: `sudo ./secrets.sh [FOLDER]`.
# To renew the server's certificate: remove FOLDER/server.pem, and run it again; the server reads it by itself. DAYS is how long it lasts.
set -euo pipefail
umask 077

if [ "$(id -u)" != 0 ]; then
  echo "secrets.sh: gives files to the users of the containers, so it has to be root: sudo $0" >&2
  exit 1
fi
folder=${1:-$(dirname "$0")/secrets}
days=${DAYS:-365}
# Users of the containers: expertmesh, Prometheus, Grafana.
server=10001 prometheus=65534 grafana=472

mkdir -p "$folder"
cd "$folder"

# owned FILE USER: what was written to FILE.new becomes FILE at once, for this user alone.
owned() {
  chown "$2" "$1.new"
  mv "$1.new" "$1"
}

if [ ! -e ray_token ]; then
  openssl rand -hex 32 > ray_token.new
  owned ray_token $server
fi

# Keys: one for Prometheus, one for you, which may do everything. The server has their hashes.
if [ ! -e keys ]; then
  for name in metrics admin; do
    printf 'em-%s' "$(openssl rand -hex 24)" > "${name}_key.new"
    hash=$(sha256sum < "${name}_key.new")
    suffix=''
    if [ $name = admin ]; then suffix=':admin'; fi
    printf '%s:%s%s\n' "$name" "${hash%% *}" "$suffix"
  done > keys.new
  owned metrics_key $prometheus
  owned admin_key "$(id -u)"
  owned keys $server
fi

if [ ! -e ca.pem ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj '/CN=expertmesh CA' \
    -keyout ca.key -out ca.pem.new 2> /dev/null
  # No secret.
  chmod 644 ca.pem.new
  owned ca.pem "$(id -u)"
fi

if [ ! -e server.key ]; then
  openssl ecparam -name prime256v1 -genkey -noout -out server.key.new
  owned server.key $server
fi

if [ ! -e server.pem ]; then
  names=$(mktemp)
  echo 'subjectAltName=DNS:coordinator,DNS:localhost,IP:127.0.0.1' > "$names"
  openssl req -new -key server.key -subj '/CN=coordinator' |
    openssl x509 -req -CA ca.pem -CAkey ca.key -days "$days" -extfile "$names" -out server.pem.new 2> /dev/null
  rm "$names"
  owned server.pem $server
fi

if [ ! -e grafana_password ]; then
  openssl rand -hex 16 > grafana_password.new
  owned grafana_password $grafana
fi
