#!/bin/sh
# A first-stage script for recovery_runner = "sql", "local" or "program", and for Pgpool-II itself.
# Put it into the source's data directory, executable by the server's user, and name it in recovery_1st_stage_command.
# It makes the target's data directory a standby of the source; pgpool_remote_start starts it afterwards.
# Whatever it prints reaches the operator (not with "sql", where PostgreSQL's function throws it away).
set -eu
source_data=$1   # the source's data directory (this script lies in it)
target_host=$2   # localhost when the node has a socket directory for a host
target_data=$3   # the target's data directory
source_port=$4
target_id=$5     # node number
target_port=$6
source_host=$7
slot=pgmend_$target_id

# Runs a command on the target's machine, as the server's user; password-less ssh is needed only for another machine.
on_target() {
    if [ "$target_host" = localhost ] || [ "$target_host" = 127.0.0.1 ]; then sh -c "$1"; else
        ssh -T -o BatchMode=yes -o StrictHostKeyChecking=accept-new "$target_host" "$1"
    fi
}

# A slot keeps the log that the target needs until it streams. A failed script must not leave one behind.
psql -h "$source_host" -p "$source_port" -d postgres -Atqc \
    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '$slot' AND NOT active;
     SELECT pg_create_physical_replication_slot('$slot', true)" >/dev/null
trap 'psql -h "$source_host" -p "$source_port" -d postgres -Atqc "SELECT pg_drop_replication_slot('"'$slot'"')" >/dev/null' EXIT

echo "copying $source_data to $target_host:$target_data"
on_target "
    set -eu
    test -n '$target_data'
    find '$target_data' -mindepth 1 -delete 2>/dev/null || true
    pg_basebackup -h '$source_host' -p '$source_port' -D '$target_data' -X stream -c fast -S '$slot' -w
    touch '$target_data/standby.signal'
    cat >> '$target_data/postgresql.auto.conf' <<EOF
port = $target_port
primary_conninfo = 'host=$source_host port=$source_port application_name=pgmend_$target_id'
primary_slot_name = '$slot'
EOF
"
trap - EXIT
echo "copied"
