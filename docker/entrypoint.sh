#!/bin/sh
# Run p2p-dml once the names in AWAIT_HOSTS can be looked up, which a container's can when it has started:
# the first peer may be up seconds before the last one. After a minute the peer itself says who is missing.
tries=600
for host in $AWAIT_HOSTS; do
    until getent hosts "$host" > /dev/null || [ "$tries" -eq 0 ]; do
        tries=$((tries - 1))
        sleep 0.1
    done
done
exec p2p-dml "$@"
