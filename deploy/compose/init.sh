#!/bin/sh
# Makes all secrets in the given directory at the first start. It keeps existing files, so
# it may run again at each start.
#
#   broker/   for the brokers: certificates, the sealing keys, Redis's password
#   caller/   for the sample caller: its certificate, and the authority of the brokers
#   operator/ for the operator: the same
#   clients/  for the brokers and the sample IdP: the secrets of the OAuth clients
#   redis/    for Redis: its password and its access rules
set -eu
umask 077
cd "$1"
mkdir -p broker caller operator clients redis

# put FILE writes standard input to FILE, all or nothing.
put() {
    cat >"$1.new"
    [ -s "$1.new" ] || {
        echo "init: there is no content for $1" >&2
        exit 1
    }
    mv "$1.new" "$1"
}

random() { od -An -v -tx1 -N32 /dev/urandom | tr -d ' \n'; }

[ -e broker/ring.json ] || broker ring new | put broker/ring.json
[ -e redis/password ] || random | put redis/password
put broker/redis-password <redis/password

# The certificate has the broker's names in the networks of Compose, and localhost. The
# certificates are valid for a year: delete the volumes after that.
if [ ! -e broker/broker.crt ] || [ ! -e operator/operator.crt ]; then
    rm -rf broker/tls
    broker dev --certificates broker/tls --host broker --host broker-1 --host broker-2 --caller demo --caller operator >/dev/null
    mv broker/tls/demo.crt broker/tls/demo.key caller
    mv broker/tls/operator.crt broker/tls/operator.key operator
    cp broker/tls/ca.crt caller
    cp broker/tls/ca.crt operator
    mv broker/tls/ca.crt broker/tls/broker.key broker/tls/broker.crt broker # the last file shows that all are in place
    rmdir broker/tls
fi

# billing-api.new is for a rotation: the sample IdP accepts it too.
for client in orders-api billing-api billing-api.new; do
    [ -e "clients/$client" ] || random | put "clients/$client"
done

# The permissions of the broker in Redis, which needs only the hash of the password. With
# +info the broker sees whether Redis keeps its data, and with +wait whether its replicas
# have a changed secret. Nobody can log in as the user "default", which has no password. But
# Redis reads its append-only file as that user: without its permissions, many versions drop
# writes of scripts.
hash=$(sha256sum <redis/password | cut -d ' ' -f 1)
put redis/users.acl <<END
user default on resetpass ~* &* +@all
user tokenbroker on #$hash resetchannels ~tb1:* &tb1:* +ping +get +pttl +set +del +pexpire +eval +evalsha +publish +subscribe +info +wait
END
