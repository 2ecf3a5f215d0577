#!/usr/bin/env bash
# The tables of the papers, for one model and its factors:
#
#     evaluation/papers.sh MODEL FACTORS BOOKS OUTPUT [LENGTHS] [options of every suite, such as --gpus-per-worker 2]
#
# BOOKS are long documents (the papers: PG19 validation, Proof-pile test, Books3). A table that is done is not measured
# again, so the same command goes on where it was interrupted.
set -euo pipefail
if [ $# -lt 4 ]; then
    sed -n 2,7p "$0" >&2
    exit 2
fi
model=$1 factors=$2 books=$3 output=$4
shift 4
lengths=4k,8k,16k,32k,64k,128k
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    lengths=$1
    shift
fi

# LongRoPE, section 4.2, long-context language modelling: sliding windows with a stride of 256, every method.
longrope compare "$model" --factors "$factors" --lengths "$lengths" --data "$books" --protocol sliding \
    --output "$output/perplexity-sliding" --resume "$@"
# Each length as the context of the same last tokens, so that lengths can be compared.
longrope compare "$model" --factors "$factors" --lengths "$lengths" --data "$books" --output "$output/perplexity" --resume "$@"
# LongRoPE, section 4.2, passkey retrieval: 10 texts a length.
longrope evaluate passkey "$model" --factors "$factors" --methods yarn,longrope --lengths "$lengths" \
    --output "$output/passkey" --resume "$@"
# LongRoPE2: needles at every depth, and the loss of the answer.
longrope evaluate needle "$model" --factors "$factors" --methods yarn,longrope --lengths "$lengths" --haystack "$books" \
    --output "$output/needle" --resume "$@"
longrope evaluate needle-perplexity "$model" --factors "$factors" --methods yarn,longrope --lengths "$lengths" \
    --data "$books" --output "$output/needle-perplexity" --resume "$@"
