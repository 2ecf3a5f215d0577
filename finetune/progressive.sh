#!/bin/bash
# The paper's progressive extension (arXiv 2402.13753, section 3.3): search at 128k, fine-tune, search at 256k on the
# result, fine-tune on. Each stage goes on where it was interrupted when the same line is given again.
#
#   finetune/progressive.sh meta-llama/Llama-2-7b-hf books/ mixture.yaml runs/llama2
#
# Further options go to both fine-tunings: --sp 8, --offload-activations, --method lora ... A LoRA stage is merged before
# the next search.

set -euo pipefail

if [[ $# -lt 4 ]]; then
    echo "usage: finetune/progressive.sh MODEL BOOKS MIXTURE FOLDER [options of longrope finetune]" >&2
    exit 2
fi
model=$1 books=$2 mixture=$3 folder=$4
shift 4

# stage LENGTH STEPS OPTION...: extends $model to LENGTH and makes the result the model of the next stage.
stage() {
    local length=$1 steps=$2 run=$folder/$1
    shift 2
    longrope search "$model" --target-length "$length" --data "$books" --output "$run/search" --resume
    longrope finetune "$model" --factors "$run/search/factors.json" --data "$mixture" --seq-length "$length" \
        --steps "$steps" --output "$run/finetune" --held-out "$books" --resume "$@"
    if [[ -d $run/finetune/adapter && ! -d $run/merged ]]; then
        longrope merge "$run/finetune/adapter" --output "$run/merged"
    fi
    model=$run/finetune/model
    [[ -d $run/merged ]] && model=$run/merged
    return 0
}

stage 128k 400 "$@"
stage 256k 600 "$@"
echo "extended model: $model"
