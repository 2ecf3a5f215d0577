#!/bin/bash
# A search on several nodes of a SLURM cluster: a Ray cluster for the length of the job, and `longrope search` on it.
#
#   sbatch --nodes=4 search/slurm.sh meta-llama/Llama-2-7b-hf 128k /shared/books /shared/runs/llama2-128k
#
# Further options go straight to `longrope search`:
#
#   sbatch --nodes=4 search/slurm.sh MODEL 128k DATA OUTPUT --held-out 20 --attn flash_attention_2
#
# OUTPUT must be on a file system that outlives the job. A job that was killed or requeued goes on where it stopped:
# submit the same line again.
#
# EDIT the resources, and the line that makes `longrope` and `ray` available on every node.

#SBATCH --job-name=longrope-search
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=longrope-search-%j.log

set -euo pipefail

if [[ $# -lt 4 ]]; then
    echo "usage: sbatch search/slurm.sh MODEL TARGET_LENGTH DATA OUTPUT [options of longrope search]" >&2
    exit 2
fi
model=$1 target_length=$2 data=$3 output=$4
shift 4

# EDIT: the environment, the same on every node.
source "${LONGROPE_VENV:-$HOME/longrope-venv}/bin/activate"

# GPUs of each evaluator: 1 while the model and one sample fit on a GPU (README.md says how much they need), several,
# or a fraction for a small model.
gpus_per_worker=${GPUS_PER_WORKER:-1}
# Seconds that the nodes have to join.
patience=${RAY_PATIENCE:-600}

gpus_per_node=${SLURM_GPUS_ON_NODE:?run this with sbatch}
workers=$(awk "BEGIN { print $SLURM_JOB_NUM_NODES * int($gpus_per_node / $gpus_per_worker) }")
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
head_ip=${HEAD_IP:-$(hostname -I | awk '{ print $1 }')} # this script runs on the first node
port=$((20000 + SLURM_JOB_ID % 10000)) # of its own, should two jobs share a node
export RAY_ADDRESS=$head_ip:$port      # what `--ray-address auto` looks at first

# Other users can reach the nodes too: this job's Ray takes orders only from who knows its token (Ray 2.52 and later).
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

# Ray runs in job steps in the background, which end with this script, however it ends.
steps=()
stop_ray() {
    trap - EXIT
    kill "${steps[@]}" 2> /dev/null || true
    wait
}
trap stop_ray EXIT
trap 'exit 143' TERM INT

# start_ray NODE OPTION...: one Ray node. Without --overlap it would wait for the steps before it. Ray's temporary
# folder is the user's own: /tmp/ray may belong to someone else.
start_ray() {
    local node=$1
    shift
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" --gpus-per-node="$gpus_per_node" \
        --cpus-per-task="$SLURM_CPUS_PER_TASK" \
        env -u RAY_ADDRESS ray start "$@" --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$gpus_per_node" \
        --object-store-memory=1000000000 --disable-usage-stats --block &
    steps+=($!)
}

# wait_for_gpus N: until the cluster has N GPUs, which is asked for, not guessed; or until a node has failed.
wait_for_gpus() {
    python - "$1" "$patience" "${steps[@]}" << 'PYTHON'
import os
import sys
import time

import ray

wanted, deadline = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
steps = [int(step) for step in sys.argv[3:]]
seen = "no Ray yet"
while time.monotonic() < deadline:
    try:
        if not ray.is_initialized():
            ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
        found = int(ray.cluster_resources().get("GPU", 0))
        if found >= wanted:
            print(f"Ray has {found} GPUs on {sum(node['Alive'] for node in ray.nodes())} nodes", flush=True)
            sys.exit(0)
        seen = f"{found} of {wanted} GPUs"
    except (ConnectionError, RuntimeError, OSError) as error:  # the head is still starting
        seen = str(error).strip().split("\n")[0]
        ray.shutdown()
    try:
        for step in steps:
            os.kill(step, 0)  # asks whether it is there
    except ProcessLookupError:
        sys.exit(f"error: Ray ended on a node ({seen}); see what ray start printed above")
    time.sleep(2)
sys.exit(f"error: the nodes did not join in time ({seen}); see what ray start printed above")
PYTHON
}

start_ray "$head" --head --node-ip-address="$head_ip" --port="$port" --include-dashboard=false \
    --temp-dir="/tmp/ray-$USER-$SLURM_JOB_ID"
wait_for_gpus "$gpus_per_node" # a node that comes before the head is complete gives up
for node in "${nodes[@]:1}"; do
    start_ray "$node" --address="$RAY_ADDRESS"
done
wait_for_gpus $((SLURM_JOB_NUM_NODES * gpus_per_node))

# --resume also starts a run that does not exist yet.
longrope search "$model" --target-length "$target_length" --data "$data" --output "$output" \
    --executor ray --ray-address auto --workers "$workers" --gpus-per-worker "$gpus_per_worker" --resume "$@"
