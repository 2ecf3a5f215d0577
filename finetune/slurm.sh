#!/bin/bash
# Fine-tuning on the nodes of a SLURM job: torchrun on every node, one process a GPU.
#
#   sbatch --nodes=2 finetune/slurm.sh meta-llama/Llama-2-7b-hf runs/128k/factors.json mixture.yaml 128k /shared/runs/ft128k
#
# Further options go straight to `longrope finetune`:
#
#   sbatch --nodes=2 finetune/slurm.sh MODEL FACTORS DATA 128k OUTPUT --steps 400 --sp 8 --offload-activations
#
# OUTPUT must be on a file system that all nodes see and that outlives the job. A job that was killed or requeued goes on
# from its newest checkpoint: submit the same line again.
#
# EDIT the resources, and the line that makes `longrope` available on every node.

#SBATCH --job-name=longrope-finetune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=longrope-finetune-%j.log

set -euo pipefail

if [[ $# -lt 5 ]]; then
    echo "usage: sbatch finetune/slurm.sh MODEL FACTORS DATA SEQ_LENGTH OUTPUT [options of longrope finetune]" >&2
    exit 2
fi
model=$1 factors=$2 data=$3 seq_length=$4 output=$5
shift 5

# EDIT: the environment, the same on every node.
source "${LONGROPE_VENV:-$HOME/longrope-venv}/bin/activate"

gpus_per_node=${SLURM_GPUS_ON_NODE:?run this with sbatch}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000)) # of its own, should two jobs share a node
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((SLURM_CPUS_PER_TASK / gpus_per_node))}

# --resume also starts a run that does not exist yet.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" torchrun --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$gpus_per_node" \
    --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$head:$port" \
    --module longrope finetune "$model" --factors "$factors" --data "$data" --seq-length "$seq_length" \
    --output "$output" --resume "$@"
