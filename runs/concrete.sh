#!/bin/sh
# Concrete subspace learning (arXiv:2312.06173): every command, in order. sh runs/concrete.sh [MODEL [RESULTS]]
# RESULTS: a folder, by default reproduced/, for ours are in results/. Finished work is skipped; an adaptation that was
# stopped goes on.
set -e
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH  # the environment of make, where there is one
MODEL=${1:-ViT-Mini}
RESULTS=${2:-reproduced}

python finetune.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=standard
python eval_single_task.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=none
python eval_single_task.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=standard

# The multi-task table
python main.py --multirun model="$MODEL" results="$RESULTS" method=average,sum,ties
python main.py model="$MODEL" results="$RESULTS" method=adamerging method.granularity=task
python main.py model="$MODEL" results="$RESULTS" method=adamerging
python main.py model="$MODEL" results="$RESULTS" method=adamerging_pp
python main.py model="$MODEL" results="$RESULTS" method=concrete_task_arithmetic
python main.py model="$MODEL" results="$RESULTS" method=concrete_task_wise_adamerging
python main.py model="$MODEL" results="$RESULTS" method=concrete_layer_wise_adamerging

# The same, adapted to validation images, so that test is read once
python main.py --multirun model="$MODEL" results="$RESULTS" method=adamerging,concrete_task_arithmetic method.adapt_on=val

# Tasks and corruptions that were not merged: see also reproduce.py --only unseen robustness
python reproduce.py --model="$MODEL" --only unseen robustness --results="$RESULTS"

python make_tables.py --model="$MODEL" --results="$RESULTS"
python make_figures.py --model="$MODEL" --results="$RESULTS"
python make_report.py --model="$MODEL" --results="$RESULTS"
