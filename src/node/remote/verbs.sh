# What pgmend asks of a node's machine: plain POSIX shell and PostgreSQL's own programs, no pgmend. Sent over standard input.
# Exit: 0 done; 10 try again; 20 refused, nothing was changed; anything else: nobody knows, look again.
# D: data directory; B: bin_directory or nothing; M: major version or nothing; C: the node's own command or nothing.
L=${LC_ALL-}
U=$(umask)
LC_ALL=C
export LC_ALL
umask 077
NL='
'

refuse() {
    printf '%s\n' "$*"
    exit 20
}

fail() {
    printf '%s\n' "$*"
    exit 30
}

# As whom we work: the server's user. PostgreSQL does not run as root.
us() {
    case "$D" in /?*) ;; *) refuse "data_directory must be absolute" ;; esac
    u=$(id -u)
    [ "$u" != 0 ] || refuse "remote_command works as root there; let it work as the server's user (sudo -u postgres {})"
    [ -d "$D" ] || return 0
    o=$(ls -ldn "$D/." | awk '{ print $3 }')
    [ "$o" = "$u" ] || refuse "$D belongs to user id $o, and remote_command works as user id $u"
}

# P: where PostgreSQL's programs are.
programs() {
    if [ -z "$M" ]; then
        { read -r M <"$D/PG_VERSION"; } 2>/dev/null || refuse "there is no PG_VERSION in $D"
    fi
    if [ -n "$B" ]; then set -- "$B"; else set -- "/usr/lib/postgresql/$M/bin" "/usr/pgsql-$M/bin"; fi
    for b; do
        [ -x "$b/pg_ctl" ] && P=$b && return 0
    done
    [ -z "$B" ] && b=$(command -v pg_ctl) && P=${b%/*} && return 0
    refuse "pg_ctl of PostgreSQL $M was not found there in $*; set bin_directory of the node"
}

# Process $1 is there, and not dead already with nobody having asked after it.
lives() {
    if [ -d /proc/self ]; then
        s=
        { read -r s <"/proc/$1/stat"; } 2>/dev/null || return 1
        case "${s##*) }" in [ZX]*) return 1 ;; esac
        return 0
    fi
    kill -s 0 "$1" 2>/dev/null
}

# p: the postmaster. After a crash the number may belong to anybody.
postmaster() {
    p=
    { read -r p <"$D/postmaster.pid"; } 2>/dev/null || return 1
    p=${p%% *}
    case "$p" in '' | *[!0-9]*) return 1 ;; esac
    lives "$p" || return 1
    c=postgres
    if [ -r "/proc/$p/comm" ]; then
        { read -r c <"/proc/$p/comm"; } 2>/dev/null || return 1
    elif command -v ps >/dev/null; then
        c=$(ps -o comm= -p "$p") || return 1
    fi
    case "${c##*/}" in postgres* | postmaster* | edb-postgres*) return 0 ;; esac
    return 1
}

# Where sync knows no files it writes everything.
durable() {
    sync -- "$@" 2>/dev/null || sync
}

arm() {
    touch "$D/standby.signal" && durable "$D/standby.signal" "$D" && return 0
    refuse "standby.signal could not be written in $D"
}

disarm() {
    rm -f "$D/standby.signal" && durable "$D" && return 0
    refuse "standby.signal could not be removed from $D"
}

# Until process $1 has ended, for at most $2 seconds. Clients may wait for it.
ended() {
    e=$(($(date +%s) + $2))
    i=0
    while lives "$1"; do
        i=$((i + 1))
        [ $((i % 20)) -ne 0 ] || [ "$(date +%s)" -lt "$e" ] || return 1
        sleep 0.004 2>/dev/null || sleep 1
    done
}

# own COMMAND: one of the node's own, as a login would run it; ended with all that it has started when its time is over.
own() {
    g=$(command -v setsid || :)
    (
        umask "$U"
        if [ -n "$L" ]; then LC_ALL=$L; else unset LC_ALL; fi
        exec $g sh -c "$1" </dev/null
    ) &
    k=$!
    $g sh -c 'sleep "$2"; kill -s TERM -- "-$1" || kill -s TERM "$1"; sleep 2; kill -s KILL -- "-$1" || kill -s KILL "$1"' \
        sh "$k" "$PGMEND_DEADLINE" >/dev/null 2>&1 &
    t=$!
    wait "$k"
    y=$?
    { kill -s KILL -- "-$t" || kill -s KILL "$t"; } 2>/dev/null
    return "$y"
}

# halt SECONDS SIGNAL WORD: armed before, if WORD says so; then told to stop, waited for, and what it left is told. One journey, for
# clients wait.
halt() {
    us
    programs
    [ "$3" != arm ] || arm
    if postmaster; then
        q=$p
        r=0
        if [ -n "$C" ]; then
            own "$C" || r=$?
            case "$r" in 10 | 20) exit "$r" ;; esac
        else
            kill -s "$2" "$q" || lives "$q" || r=0
        fi
        w=$1
        # A command that failed may have done it all the same: looked at for a moment.
        [ "$r" -eq 0 ] || w=2
        if ! ended "$q" "$w"; then
            [ "$r" -eq 0 ] || fail "the stop command exited with status $r, and the server runs"
            echo stopped=no
            return 0
        fi
    fi
    echo stopped=yes
    "$P/pg_controldata" -D "$D" || :
}

# start SECONDS
start() {
    us
    if postmaster; then return 0; fi
    if [ -n "$C" ]; then
        r=0
        own "$C" || r=$?
        return "$r"
    fi
    programs
    # pg_ctl hands its paths to a shell between double quotes: it gets none that the shell could take apart.
    cd "$D" || refuse "$D cannot be entered"
    g=pgmend_start.log
    [ ! -f "$g" ] || [ "$(wc -c <"$g")" -lt 4194304 ] || rm -f "$g"
    n=0
    [ ! -f "$g" ] || n=$(($(wc -l <"$g")))
    r=0
    "$P/pg_ctl" start -w -t "$1" -D . -l "$g" </dev/null >/dev/null 2>&1 || r=$?
    [ "$r" -ne 0 ] || return 0
    tail -n "+$((n + 1))" "$g" | tail -n 30
    fail "pg_ctl start exited with status $r"
}

# What the node's own status command says, or its postmaster.
runs() {
    if [ -n "$C" ]; then
        r=0
        own "$C" >/dev/null 2>&1 || r=$?
        case "$r" in
        0) echo runs=yes ;;
        3) echo runs=no ;;
        *) echo runs=unknown ;;
        esac
    elif postmaster; then
        echo runs=yes
        echo "pid=$p"
    else
        echo runs=no
    fi
}

# gone SECONDS: it has stopped by itself.
gone() {
    if postmaster && ! ended "$p" "$1"; then echo stopped=no; else echo stopped=yes; fi
}

# immediate SIGNAL SECONDS: ends one that does not obey. A frozen one is woken to hear it.
immediate() {
    if postmaster; then
        kill -s "$1" "$p"
        kill -s CONT "$p"
        if ! ended "$p" "$2"; then echo stopped=no && return 0; fi
    fi
    echo stopped=yes
}

# kick PROCESS…: ends children of the postmaster.
kick() {
    postmaster || return 0
    for k; do
        if [ -r "/proc/$k/status" ]; then
            f=$(awk '/^PPid:/ { print $2 }' "/proc/$k/status")
        else
            f=$(ps -o ppid= -p "$k")
        fi
        [ "$((f))" -eq "$p" ] && kill -s TERM "$k" && echo "kicked=$k"
    done
    return 0
}

control() {
    us
    programs
    "$P/pg_controldata" -D "$D"
}

settings() {
    us
    [ ! -f "$D/postgresql.auto.conf" ] || cat "$D/postgresql.auto.conf"
}

# A standby from now on, with the settings in T.
configure() {
    us
    n=$D/postgresql.auto.conf
    printf '%s' "$T" >"$n.pgmend" && durable "$n.pgmend" && mv -f "$n.pgmend" "$n" && rm -f "$D/recovery.signal" &&
        touch "$D/standby.signal" && durable "$n" "$D/standby.signal" "$D" && return 0
    fail "the settings could not be written in $D"
}

# x: the data directory, or the nearest above it that is there.
nearest() {
    x=$D
    while [ ! -e "$x" ]; do
        x=${x%/*}
        [ -n "$x" ] || x=/
    done
}

free_room() {
    line free_kb "$(df -Pk "$x" | awk 'NR == 2 { print $(NF - 2) }')"
}

# disk WORD: room where the data directory is or will be; with `all` also what it takes there itself, its links not followed.
disk() {
    us
    nearest
    free_room
    [ "$1" = all ] || return 0
    k=0
    [ ! -d "$D" ] || k=$(du -skx "$D/." | awk '{ print $1 }')
    line taken_kb "$k"
}

# line KEY VALUE
line() {
    case "$2" in *"$NL"*) refuse "a path has a line break in it" ;; esac
    printf '%s=%s\n' "$1" "$2"
}

real() {
    readlink -f "$1" 2>/dev/null || printf '%s\n' "$1"
}

# l: where a link leads; a relative one is meant from where it lies.
link_of() {
    l=$(readlink "$1" 2>/dev/null) || return 1
    case "$l" in /*) ;; *) l=${1%/*}/$l ;; esac
}

# places DIRECTORY KEY: where the files of a server are, links resolved.
places() {
    line "$2" "$(real "$1")"
    if link_of "$1/pg_wal"; then line "$2" "$(real "$l")"; fi
    for t in "$1"/pg_tblspc/*; do
        link_of "$t" || continue
        for s in "$l"/PG_*; do
            if [ -e "$s" ]; then line "$2" "$(real "$s")"; fi
        done
    done
}

# survey OTHER…: everything about the directory; OTHER: directories of other nodes on the machine.
survey() {
    us
    programs
    nearest
    if [ "$x" != "$D" ]; then
        [ -w "$x" ] || refuse "$D is not there and cannot be made: $x may not be written to"
        line empty yes
    elif [ -z "$(ls -A "$D" | head -n 1)" ]; then
        line empty yes
    fi
    v=
    if { read -r v <"$D/PG_VERSION"; } 2>/dev/null; then line version "$v"; fi
    if postmaster; then line pid "$p"; fi
    [ ! -e "$D/standby.signal" ] || line armed yes
    [ ! -f "$D/backup_label" ] || line copy yes
    if link_of "$D/pg_wal"; then line wal "$l"; fi
    for t in "$D"/pg_tblspc/*; do
        if link_of "$t"; then line space "${t##*/} $l"; fi
    done
    for h in "$D"/pg_wal/*.history; do
        if [ -e "$h" ]; then line history "${h##*/}"; fi
    done
    places "$D" place
    n=0
    for a; do
        n=$((n + 1))
        places "$a" "other$n"
    done
    free_room
    line programs "$P"
    [ -f "$D/global/pg_control" ] || return 0
    line control yes
    "$P/pg_controldata" -D "$D" || :
}

# users PLACE…: processes with files open in a place, as far as this user may see them.
users() {
    for x; do
        ls -l /proc/[0-9]*/fd 2>/dev/null | X=$x awk '/^\/proc\// { p = $0 }
            (i = index($0, " -> ")) && index(substr($0, i + 4), ENVIRON["X"] "/") == 1 { print "user=" p; exit }'
    done
}

# room PLACE SOURCE: what is in a tablespace's place that is not of this version, and whether it is the source's.
room() {
    line real "$(real "$1")"
    line source "$(real "$2")"
    f=$(ls -A "$1" 2>/dev/null | grep -v "^PG_${M}_" | head -n 1)
    [ -z "$f" ] || line foreign "$f"
}

# segments COUNT: the newest files of the log, with the first 40 bytes of each.
segments() {
    ls "$D/pg_wal" | grep -E '^[0-9A-F]{24}$' | sort -r | head -n "$1" | while read -r f; do
        line segment "$f $(od -An -v -tx1 -N 40 "$D/pg_wal/$f" | tr -d ' \n')"
    done
}

# digest SEGMENT BYTES
digest() {
    head -c "$2" "$D/pg_wal/$1" | {
        sha256sum 2>/dev/null || shasum -a 256 2>/dev/null || openssl dgst -sha256 -r
    }
}

# last_record SEGMENT: reading ends with an error where the log ends.
last_record() {
    programs
    "$P/pg_waldump" "$D/pg_wal/$1" 2>/dev/null | awk '{ l = $0 } END { print l }'
}

# commits FROM FIRST LAST
commits() {
    programs
    "$P/pg_waldump" -s "$1" "$D/pg_wal/$2" "$3" 2>/dev/null |
        awk '/desc: (COMMIT|PREPARE)/ { n++ } { l = $0 } END { print "commits=" n + 0; print l }'
}

# hollow DIRECTORY: removes what is in it; a link is removed, never followed.
hollow() {
    case "$1" in /?*) ;; *) fail "not a directory: $1" ;; esac
    [ -d "$1" ] || return 0
    find "$1/." ! -name . -prune -exec rm -rf {} + || fail "$1 could not be emptied"
}

# empty PLACE…: the directory, W (its log elsewhere), and of tablespaces' places what is of this version.
empty() {
    us
    if postmaster; then refuse "process $p runs on $D"; fi
    for a; do
        for x in "$a"/PG_"$M"_*; do
            rm -rf "$x" || fail "$x could not be removed"
        done
    done
    [ -z "$W" ] || hollow "$W"
    hollow "$D"
    mkdir -p "$D" && chmod 700 "$D" || fail "$D could not be made"
}
