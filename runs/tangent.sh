#!/bin/sh
# Task arithmetic in the tangent space (arXiv:2305.12827): every command, in order. sh runs/tangent.sh [MODEL [RESULTS]]
# MODEL: ViT-Mini (default), ViT-B-32, ViT-B-16, ViT-L-14. RESULTS: a folder, by default reproduced/, for ours are in
# results/. Finished work is skipped.
set -e
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH  # the environment of make, where there is one
MODEL=${1:-ViT-Mini}
RESULTS=${2:-reproduced}

python finetune.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=standard
python finetune.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=linear

# Figures 2 and 5, and the denominators of everything normalised
python eval_single_task.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=none
python eval_single_task.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=standard
python eval_single_task.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=linear
python eval_single_task.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=posthoc

# Table 1
python eval_task_addition.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=standard
python eval_task_addition.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=linear
python eval_task_addition.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=posthoc

# Table 2
python eval_task_negation.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=standard
python eval_task_negation.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=linear
python eval_task_negation.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=posthoc

# Figures 3, 9 and 10
python eval_disentanglement.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=standard
python eval_disentanglement.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=linear
python eval_disentanglement.py --model="$MODEL" --results="$RESULTS" --finetuning-mode=posthoc

# Figures 6, 14 and 15
python eval_ntk_localization.py --model="$MODEL" --results="$RESULTS"
python eval_ntk_localization.py --model="${MODEL}__init__" --results="$RESULTS"

# Table 3
python finetune.py --model="${MODEL}__init__" --results="$RESULTS" --finetuning-mode=standard
python finetune.py --model="${MODEL}__init__" --results="$RESULTS" --finetuning-mode=linear
python eval_single_task.py --model="${MODEL}__init__" --results="$RESULTS" --finetuning-mode=none
python eval_single_task.py --model="${MODEL}__init__" --results="$RESULTS" --finetuning-mode=standard
python eval_single_task.py --model="${MODEL}__init__" --results="$RESULTS" --finetuning-mode=linear
python eval_task_addition.py --model="${MODEL}__init__" --results="$RESULTS" --finetuning-mode=standard
python eval_task_addition.py --model="${MODEL}__init__" --results="$RESULTS" --finetuning-mode=linear

python make_tables.py --model="$MODEL" --results="$RESULTS"
python make_figures.py --model="$MODEL" --results="$RESULTS"
python make_report.py --model="$MODEL" --results="$RESULTS"
