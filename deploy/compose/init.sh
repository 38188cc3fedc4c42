#!/bin/sh
# Makes what must be secret, in the directory given, at the first start. What is
# there already is kept, so that it may run again at each start.
#
#   broker/   for the brokers: certificates, the sealing keys, Redis's password
#   caller/   for the sample caller: its certificate, and the authority of the brokers'
#   clients/  for the brokers and the sample IdP: the secrets of the OAuth clients
#   redis/    for Redis: its password, and who may do what with it
set -eu
umask 077
cd "$1"
mkdir -p broker caller clients redis

# put FILE writes standard input to FILE, all or nothing.
put() {
    cat >"$1.new"
    [ -s "$1.new" ] || {
        echo "init: nothing came for $1" >&2
        exit 1
    }
    mv "$1.new" "$1"
}

random() { od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n'; }

[ -e broker/ring.json ] || broker ring new | put broker/ring.json
[ -e redis/password ] || random | put redis/password
put broker/redis-password <redis/password

# The broker's name in the networks of Compose, and on the host localhost. The
# certificates are good for a year: after that forget the volumes.
if [ ! -e broker/broker.crt ]; then
    rm -rf broker/tls
    broker dev --certificates broker/tls --host broker --host broker-1 --host broker-2 >/dev/null
    mv broker/tls/demo.crt broker/tls/demo.key caller
    cp broker/tls/ca.crt caller
    mv broker/tls/ca.crt broker/tls/broker.key broker/tls/broker.crt broker # the last one tells that all is done
    rmdir broker/tls
fi

for client in orders-api billing-api; do
    [ -e "clients/$client" ] || random | put "clients/$client"
done

# What the broker may do in Redis; nobody else may do anything. Redis needs only
# the hash of the password. +info shows the broker how Redis keeps its data, and
# +wait that its replicas have a changed secret.
hash=$(sha256sum <redis/password | cut -d ' ' -f 1)
put redis/users.acl <<END
user default off
user tokenbroker on #$hash resetchannels ~tb1:* &tb1:* +ping +get +pttl +set +del +pexpire +eval +evalsha +publish +subscribe +info +wait
END
