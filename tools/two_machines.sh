#!/usr/bin/env bash
# Two machines of one core each, on this one: network namespaces with a cable between them, and a Ray cluster over that.
# Builds one database on one machine and on both, compares the bytes, and prints how much faster both are. Then again with
# a worker killed, the second machine lost, and the second machine added, each in the middle of the build.
#
#     bash tools/two_machines.sh MODEL CALIBRATION LEVELS [options of onnx-obc build]     # as root, for ip netns
#
# $PYTHON: the interpreter, with onnx-obc[cpu,ray]. $SCENARIOS: of both kill lose add, by default all. The second machine
# sees neither the model, the data nor the database: its view of their folders is empty.
set -euo pipefail
model=$(realpath "$1") data=$(realpath "$2") levels=$3
shift 3
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} scenarios=${SCENARIOS:-both kill lose add}
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d " \n") # of this cluster alone
export PYTHONPATH=$PWD RAY_USAGE_STATS_ENABLED=0 RAY_ADDRESS=10.77.0.1:6379
work=$(mktemp -d -t two-machines-XXXX)
mkdir "$work/db"
first=obc-a-$$ second=obc-b-$$

on() { # MACHINE COMMAND…: run it there, on its core
    local machine=$1 core=0
    shift
    [ "$machine" = "$second" ] && core=1
    ip netns exec "$machine" taskset -c $core "$@"
}

unplug() { # MACHINE: everything on it dies at once
    local pids
    pids=$(ip netns pids "$1" 2>/dev/null || true)
    [ -z "$pids" ] || kill -9 $pids 2>/dev/null || true
}

cleanup() {
    for machine in "$second" "$first"; do
        unplug "$machine"
        ip netns del "$machine" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap cleanup EXIT

ip netns add "$first"
ip netns add "$second"
ip link add "veth-a-$$" netns "$first" type veth peer name "veth-b-$$" netns "$second"
for machine in "$first" "$second"; do
    end=a address=10.77.0.1
    [ "$machine" = "$second" ] && end=b address=10.77.0.2
    ip -n "$machine" address add $address/24 dev "veth-$end-$$"
    ip -n "$machine" link set "veth-$end-$$" up
    ip -n "$machine" link set lo up
done

ray_start() { # MACHINE OPTIONS…
    local machine=$1
    shift
    on "$machine" "$python" -m ray.scripts.scripts start --num-cpus 1 --disable-usage-stats "$@" >"$work/ray.log" 2>&1 ||
        { cat "$work/ray.log"; exit 1; }
}
start_first() {
    unplug "$second"
    unplug "$first"
    ray_start "$first" --head --node-ip-address 10.77.0.1 --port 6379 --include-dashboard false
}
start_second() {
    hide='for folder in "$@"; do mount -t tmpfs none "$folder"; done; shift $#; exec '
    (
        hide+="$python -m ray.scripts.scripts start --num-cpus 1 --disable-usage-stats"
        hide+=" --address 10.77.0.1:6379 --node-ip-address 10.77.0.2"
        on "$second" unshare --mount bash -c "$hide" hide "$work/db" "$(dirname "$model")" "$(dirname "$data")"
    ) >"$work/ray.log" 2>&1 || { cat "$work/ray.log"; exit 1; }
}
build() { # NAME OPTIONS…: build a database on the first machine, and with those that it is connected to
    local name=$1
    shift
    on "$first" "$python" -m onnx_obc.cli.main build "$model" "$work/db/$name" --calib "$data" --levels "$levels" --quiet "$@"
}
solutions() { find "$work/db/$1/layers" -name '*.safetensors' 2>/dev/null | wc -l; }
await() { # NAME COUNT: until so many solutions are there
    until [ "$(solutions "$1")" -ge "$2" ]; do
        kill -0 "$builder" 2>/dev/null || { echo "$1: the build ended early"; exit 1; }
        sleep 0.1
    done
}
same() { # NAME: the same files, with the same bytes
    diff -r "$work/db/one" "$work/db/$1" && echo "$1: the same bytes"
}
seconds() { date +%s.%N; }

echo "load before: $(cut -d' ' -f1-3 /proc/loadavg)"
options=("$@")
began=$(seconds)
build one "${options[@]}"
one=$(echo "$(seconds) - $began" | bc)
echo "one machine, one process: $one s, $(solutions one) solutions; load: $(cut -d' ' -f1-3 /proc/loadavg)"
half=$(($(solutions one) / 3))

for scenario in $scenarios; do
    start_first
    [ "$scenario" = add ] || start_second
    began=$(seconds)
    build "$scenario" "${options[@]}" --workers ray &
    builder=$!
    case $scenario in
    kill)
        await kill $half
        for pid in $(ip netns pids "$second"); do
            if tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q '^ray::layer'; then kill -9 "$pid" && echo "killed worker $pid"; fi
        done
        ;;
    lose)
        await lose $half
        unplug "$second"
        echo "lost the second machine"
        ;;
    add)
        await add $half
        start_second
        echo "added the second machine"
        ;;
    esac
    wait $builder
    took=$(echo "$(seconds) - $began" | bc)
    echo "$scenario: $took s, $(echo "scale=2; $one / $took" | bc) times as fast as one; load: $(cut -d' ' -f1-3 /proc/loadavg)"
    same "$scenario"
done
