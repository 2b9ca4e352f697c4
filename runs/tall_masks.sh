#!/bin/sh
# Localizing task information (arXiv:2405.07813): every command, in order. sh runs/tall_masks.sh [MODEL [NUMBERS [RESULTS]]]
# NUMBERS of tasks: 8 (default) or 8,14,20. RESULTS: a folder, by default reproduced/, for ours are in results/.
# Finished work is skipped.
set -e
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH  # the environment of make, where there is one
MODEL=${1:-ViT-Mini}
NUMBERS=${2:-8}
RESULTS=${3:-reproduced}

python finetune.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=standard
python eval_single_task.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=none
python eval_single_task.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=standard

# The main table: merging and compression
python main.py --multirun model="$MODEL" results="$RESULTS" num_tasks="$NUMBERS" method=zeroshot,average,sum,ties,mag_masking
python main.py --multirun model="$MODEL" results="$RESULTS" num_tasks="$NUMBERS" method=tall_mask,consensus
python main.py --multirun model="$MODEL" results="$RESULTS" num_tasks="$NUMBERS" method=tall_mask,consensus method.use_ties=True

# Consensus by its threshold
python main.py --multirun model="$MODEL" results="$RESULTS" method=consensus method.prun_thre_k=1,3,4,5,6,7,8

python make_tables.py --model="$MODEL" --results="$RESULTS"
python make_figures.py --model="$MODEL" --results="$RESULTS"
python make_report.py --model="$MODEL" --results="$RESULTS"
