#!/bin/sh
# Starts the target's PostgreSQL. Copy it to the source's data directory under the fixed name pgpool_remote_start.
# Arguments: the target's host, the target's data directory.
set -eu
target_host=$1
target_data=$2
start="pg_ctl -w -D '$target_data' -l '$target_data/startup.log' start >/dev/null 2>&1 </dev/null"
if [ "$target_host" = localhost ] || [ "$target_host" = 127.0.0.1 ]; then
    sh -c "$start"
else
    ssh -T -o BatchMode=yes -o StrictHostKeyChecking=accept-new "$target_host" "$start"
fi
