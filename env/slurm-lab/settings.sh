# The folder and ports of a lab, sourced by the other scripts here. Labs with different settings can run at the same time.
#   CURRICULA_SLURM_LAB        its folder, created and deleted by the lab (default /tmp/curricula-slurm-lab)
#   CURRICULA_SLURM_LAB_PORT   the first of 20 ports on 127.0.0.1 (default 30700)
lab=${CURRICULA_SLURM_LAB:-/tmp/curricula-slurm-lab}
port=${CURRICULA_SLURM_LAB_PORT:-30700}
nodes=(n1 n2 n3 n4)
export PATH="$PATH:/usr/sbin:/sbin"

refuse() {
    echo "slurm-lab: $*" >&2
    exit 2
}

# The folder appears in configuration files and socket names, and `down` deletes it.
[[ $lab =~ ^/[A-Za-z0-9._/-]{4,60}$ ]] || refuse "CURRICULA_SLURM_LAB=$lab: name a folder by an absolute path of 5 to 61 plain characters"
[[ $port =~ ^[0-9]+$ ]] && ((port >= 1024 && port <= 65000)) || refuse "CURRICULA_SLURM_LAB_PORT=$port: name a port from 1024 to 65000"
# Root runs what its configuration names, and in /tmp anybody could make the folder first.
[ ! -e "$lab" ] || [ -O "$lab" ] || refuse "$lab: belongs to another user; name another folder with CURRICULA_SLURM_LAB"
if [ -e "$lab" ] && [ -n "$(ls -A "$lab")" ] && [ ! -e "$lab/made-by-slurm-lab" ]; then
    refuse "$lab: this folder is not a lab's; name another with CURRICULA_SLURM_LAB"
fi
export SLURM_CONF=$lab/slurm.conf

# Prints the process ID in a pid file if that process is alive and runs PROGRAM. IDs are reused, and zombies do not count.
alive() { # PID_FILE PROGRAM
    local pid
    pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] && grep -qE "^$pid \($2\) [^ZX]" "/proc/$pid/stat" 2>/dev/null && echo "$pid"
}

# Retries a command until it succeeds; on timeout, prints its last output.
wait_for() { # SECONDS COMMAND...
    local deadline=$((SECONDS + $1)) said
    shift
    until said=$("$@" 2>&1); do
        ((SECONDS < deadline)) || { echo "$said" >&2 && return 1; }
        sleep 0.2
    done
}
