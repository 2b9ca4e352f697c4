#!/bin/sh
# Concrete subspace learning (arXiv:2312.06173): every command, in order. sh runs/concrete.sh [MODEL]
# Finished work is skipped; an adaptation that was stopped goes on.
set -e
cd "$(dirname "$0")/.."
MODEL=${1:-ViT-Mini}

python finetune.py --model="$MODEL" --finetuning-mode=standard
python eval_single_task.py --model="$MODEL" --finetuning-mode=none
python eval_single_task.py --model="$MODEL" --finetuning-mode=standard

# The multi-task table
python main.py --multirun model="$MODEL" method=average,sum,ties
python main.py model="$MODEL" method=adamerging method.granularity=task
python main.py model="$MODEL" method=adamerging
python main.py model="$MODEL" method=adamerging_pp
python main.py model="$MODEL" method=concrete_task_arithmetic
python main.py model="$MODEL" method=concrete_task_wise_adamerging
python main.py model="$MODEL" method=concrete_layer_wise_adamerging

# The same, adapted to validation images, so that test is read once
python main.py --multirun model="$MODEL" method=adamerging,concrete_task_arithmetic method.adapt_on=val

# Tasks and corruptions that were not merged: see also reproduce.py --only unseen robustness
python reproduce.py --model="$MODEL" --only unseen robustness --results=results

python make_tables.py --model="$MODEL"
python make_figures.py --model="$MODEL"
python make_report.py --model="$MODEL"
